"""Exact resume: a run that goes on from a checkpoint ends as one without a stop, bit for bit."""

import signal
from functools import partial

import pytest
import torch
import torture
from architectures import ARCHITECTURES, VOCAB, ppo_trainer
from launching import Recipe
from tiny_grpo import (
    assert_same_run,
    at_call,
    build,
    noisy,
    prompts,
    same,
    variety,
    weights,
    without_times,
)
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from trl_recipes import RecipeError
from trl_recipes.checkpointing import checkpoints_in
from trl_recipes.errors import RunStopped
from trl_recipes.run_folder import RunFolder, read_config, write_config
from trl_recipes.stats import load_stats


def ppo(folder, name="gpt2", reward=noisy, **settings):
    torch.manual_seed(0)
    model = ARCHITECTURES[name]()
    queries = torch.randint(2, VOCAB, (7, 3)).tolist()  # a batch spans two rounds of the prompts
    chosen = {"batch_size": 4, "ppo_epochs": 2, "learning_rate": 3e-3, "response_length": 6}
    chosen |= {"min_response_length": 2, "lr_scheduler_type": "linear", "save_steps": 2}
    chosen |= {"reward_norm": "none", "max_steps": 6}
    return ppo_trainer(model, reward, queries, folder, **chosen | settings)


def groups(folder, kind="grpo", reward=noisy, **config):
    settings = {"output_dir": str(folder), "max_steps": 7, "save_steps": 50}  # prompts come twice
    settings |= {"lr_scheduler_type": "linear"} | config
    return build(kind, rewards=reward, **settings)


def fail():
    raise ValueError("out of paper")


def interrupted(number):
    return partial(signal.raise_signal, number)


FAILS = (fail, RecipeError, r"`noisy` raised ValueError: out of paper")
STOPS = "after step [1-6] .*the same command with --resume_from_checkpoint true"
STOPPED = (interrupted(signal.SIGTERM), RunStopped, f"Stopped by SIGTERM {STOPS}")
INTERRUPTED = (interrupted(signal.SIGINT), RunStopped, f"Stopped by SIGINT {STOPS}")
REWARDED = {"use_score_scaling": True, "use_score_norm": True}
ADAPTIVE = {"use_score_scaling": True, "target": 1, "optim": "sgd"}
PARTS = {"mini_batch_size": 4, "steps_per_generation": 1}
TWICE = {"steps_per_generation": 2, "num_iterations": 2}
FOLLOWED = {"sync_ref_model": True, "ref_model_sync_steps": 1, "beta": 0.5}
# Of GRPO and RLOO: checkpoints between two sampled batches, and in the middle of one's use.
CASES = {
    "PPO": (ppo, {}, FAILS),
    "PPO, interrupted": (ppo, {"save_steps": 50}, INTERRUPTED),
    "PPO, adaptive KL, scaled scores, sgd": (ppo, ADAPTIVE, FAILS),
    "PPO of t5, attention alone": (ppo, {"name": "t5", "trainable": "attention"} | REWARDED, FAILS),
    "PPO of bart with lora": (ppo, {"name": "bart", "trainable": "lora"}, FAILS),
    "PPO, full KL": (ppo, {"kl_penalty": "full"}, FAILS),
    "each batch once": (groups, {}, STOPPED),
    "each batch once, failing": (groups, {}, FAILS),
    "three passes over a batch": (groups, {"num_iterations": 3}, STOPPED),
    "RLOO, three passes over a batch": (groups, {"num_iterations": 3, "kind": "rloo"}, STOPPED),
    "a batch for two steps": (groups, {"steps_per_generation": 2}, STOPPED),
    "accumulated, sampled at once": (groups, {"mini_batch_size": 4}, STOPPED),
    "accumulated, sampled in parts": (groups, PARTS, STOPPED),
    "a reference that follows": (groups, FOLLOWED, STOPPED),
    "a batch for two steps, twice": (groups, TWICE, STOPPED),
}


class Seen(TrainerCallback, ExportableState):
    """Keeps the events of training, in its state too."""

    def __init__(self):
        self.events = []
        pairs = [f"{part}_{end}" for part in ("train", "epoch", "step") for end in ("begin", "end")]
        for event in (*pairs, "log", "save"):
            setattr(self, f"on_{event}", lambda *_, e=event, **__: self.events.append(e))

    def state(self):
        return {"args": {}, "attributes": {"events": [*self.events]}}


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "whole", tmp_path / "broken"


@pytest.mark.parametrize("case", CASES)
def test_a_broken_run_ends_as_one_that_was_not(case, folders):
    make, settings, (what, error, said) = CASES[case]
    whole = make(folders[0], **settings)
    whole.train()
    # a call a sampled batch, after one that checks the function
    broken = make(folders[1], reward=at_call(1 if what is STOPPED[0] else 4, what), **settings)
    with pytest.raises(error, match=said):
        broken.train()
    assert 0 < len(load_stats(folders[1])) == broken.state.global_step < whole.state.global_step
    torch.manual_seed(99)  # whatever state the new process is in
    resumed = make(folders[1], resume_from_checkpoint="true", **settings)
    resumed.train()
    assert_same_run(whole, resumed, folders)


@pytest.mark.parametrize("make", [ppo, groups])
def test_a_given_or_the_last_whole_checkpoint_is_gone_on_from_and_later_rows_dropped(
    make, tmp_path
):
    whole = make(tmp_path, save_steps=2, save_total_limit=None)
    whole.train()
    rows = without_times(load_stats(tmp_path))
    *damaged, kept = checkpoints_in(tmp_path / "checkpoints")
    assert kept.name == "checkpoint-2"
    given = {"resume_from_checkpoint": str(kept)}
    if make is groups:
        given["resume_from_checkpoint"] = "true"
        for checkpoint in damaged:  # as if killed while it was written
            (checkpoint / "trainer_state.json").unlink()
    again = make(tmp_path, **given)
    again.train()
    assert without_times(load_stats(tmp_path)) == rows
    assert_same_run(whole, again, [tmp_path, tmp_path])
    done = make(tmp_path, resume_from_checkpoint="true")
    done.train()
    assert_same_run(whole, done, [tmp_path, tmp_path])
    with pytest.raises(RecipeError, match="already holds a run"):
        make(tmp_path).train()


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_run_that_goes_on_weighs_rewards_by_name_and_as_it_is_told(kind, tmp_path):
    def short(completions, **_):
        return [-1.0 * len(text) for text in completions]

    settings = {"kind": kind, "reward_norm": "reference", "save_steps": 1}
    first = groups(tmp_path, reward=[variety, short], max_steps=1, **settings)
    first.train()
    settings |= {"resume_from_checkpoint": "true", "reward_weights": [1.0, 2.0, 4.0]}
    again = groups(tmp_path, reward=[noisy, short, variety], max_steps=2, **settings)
    again.train()
    by_name = [first.rewards.normalization[name][1] for name in ("short", "variety")]
    expected = [1.0, 2.0 / by_name[0], 4.0 / by_name[1]]
    assert again.reward_weights.tolist() == pytest.approx(expected)
    rows = load_stats(tmp_path)
    for name, moments in first.rewards.normalization.items():
        kept = [(row[f"rewards/{name}/shift"], row[f"rewards/{name}/scale"]) for row in rows]
        assert kept == [moments] * 2
    plain = settings | {"reward_norm": "none"}
    raw = groups(tmp_path, reward=[noisy, short, variety], max_steps=3, **plain)
    raw.train()
    assert raw.reward_weights.tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("before", "after", "batches"),
    [
        ({"num_iterations": 2}, {"mini_batch_size": 4}, 2),
        ({}, {"batch_size": 16, "mini_batch_size": 4}, 3),
    ],
)
def test_batches_of_another_form_are_sampled_anew(before, after, batches, tmp_path, caplog):
    seen = []

    def look(id, completions, **_):
        seen.append(set(id))
        return variety(completions)

    settings = {"save_steps": 1, "data": prompts(24)} | before
    groups(tmp_path, max_steps=3, **settings).train()
    settings |= {"resume_from_checkpoint": "true"} | after
    groups(tmp_path, reward=look, max_steps=6, **settings).train()
    assert "had 8 as `mini_batch_size` and has 4 now" in caplog.text
    _, *sampled = seen  # the first call tried the function
    assert len(sampled) == batches
    assert len(set().union(*sampled)) == sum(map(len, sampled))  # each prompt once


@pytest.mark.parametrize(
    ("steps", "settings", "kept"),
    [(5, {"lr_scheduler_type": "constant"}, True), (6, {"save_steps": 0}, False)],
    ids=["more steps are asked for", "no checkpoint"],
)
def test_a_finished_run_goes_on_and_one_without_a_checkpoint_starts_at_its_first_step(
    steps, settings, kept, folders, caplog
):
    whole = ppo(folders[0], max_steps=steps, **settings)
    whole.train()
    ppo(folders[1], max_steps=3, **settings).train()
    assert (folders[1] / "checkpoints").exists() is kept
    again = ppo(folders[1], max_steps=steps, **settings)
    again.train(resume_from_checkpoint=True)
    whole.train()
    assert f"All {steps} steps of this run are done" in caplog.text
    assert_same_run(whole, again, folders)


@pytest.mark.parametrize("make", [ppo, groups])
def test_settings_that_the_checkpoint_decides_are_told_and_another_optimizer_is_refused(
    make, tmp_path, caplog
):
    make(tmp_path, max_steps=2, learning_rate=1e-3).train()
    other = partial(make, tmp_path, max_steps=3, resume_from_checkpoint="true")
    for more in ({"init_kl_coef": 0.9}, {}) if make is ppo else ({},):
        caplog.clear()
        trainer = other(learning_rate=1.0, weight_decay=0.1, **more)
        write_config(RunFolder(tmp_path), trainer.args)
        trainer.train()
        told = "init_kl_coef 0.2, not 0.9; " * bool(more)
        assert f"s: {told}learning_rate 0.001, not 1.0; weight_decay 0.0, not 0.1." in caplog.text
        assert read_config(tmp_path)["learning_rate"] == 0.001
    with pytest.raises(RecipeError, match=r"none like this run's SGD \(it lacks .*momentum"):
        other(optim="sgd").train()


def test_callbacks_are_called_in_transformers_order_and_keep_their_state(tmp_path):
    seen = Seen()
    first = ppo(tmp_path, max_steps=3, save_strategy="epoch", logging_steps=2)
    first.add_callback(seen)
    first.train()
    step = ["step_begin", "step_end"]
    epoch, last = ["epoch_begin", *step, *step], ["epoch_begin", *step]
    ends = ["epoch_end", "log", "save"], ["epoch_end", "save"]
    assert seen.events == ["train_begin", *epoch, *ends[0], *last, *ends[1], "train_end"]
    again = {"restore_callback_states_from_checkpoint": True, "resume_from_checkpoint": "true"}
    resumed = ppo(tmp_path, max_steps=4, **again)
    resumed.add_callback(Seen())
    resumed.train()
    (restored,) = (c for c in resumed.callback_handler.callbacks if isinstance(c, Seen))
    ends = ["epoch_end", "log", "save", "train_end"]
    assert restored.events == [*seen.events[:-2], "train_begin", *last, *ends]


def test_what_cannot_be_gone_on_from_is_refused(folders):
    ppo(folders[0], max_steps=2).train()
    with pytest.raises(RecipeError, match=r"other weights than this run trains: `.*not there"):
        ppo(folders[0], trainable="attention").train(resume_from_checkpoint=True)
    with pytest.raises(RecipeError, match="needs `output_dir`"):
        ppo(None).train(resume_from_checkpoint=True)
    groups(folders[1], save_steps=2, max_steps=2).train()
    with pytest.raises(RecipeError, match=r"of a run that measured no reward"):
        groups(folders[1], resume_from_checkpoint="true", reward_norm="reference").train()
    (checkpoint,) = folders[1].glob("checkpoints/checkpoint-*")
    torch.save({"passes": 1}, checkpoint / "sampled_batch_0.pt")
    with pytest.raises(RecipeError, match=r"no checkpoint of a GRPO or RLOO run"):
        groups(folders[1], resume_from_checkpoint="true").train()


def test_a_full_disk_ends_no_run(tmp_path, monkeypatch, caplog):
    trainer = ppo(tmp_path / "run")
    write, calls = torch.save, iter(range(10))

    def full_from_the_second_on(*args):
        if next(calls) > 2:  # three a checkpoint
            raise OSError(28, "No space left on device")
        write(*args)

    monkeypatch.setattr(torch, "save", full_from_the_second_on)
    trainer.train()
    assert trainer.state.global_step == 6
    assert "could not be written ([Errno 28] No space left on device). The run goes" in caplog.text
    assert checkpoints_in(tmp_path / "run" / "checkpoints")[0].name == "checkpoint-2"


def test_a_disk_that_is_too_small_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 10_000}))
    with pytest.raises(RecipeError, match=r"0\.0 GB free.*--save_total_limit 1"):
        ppo(tmp_path / "run").train()
    assert not (tmp_path / "run" / "all_stats.jsonl").exists()


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_steps_that_are_never_finite_change_nothing_and_end_the_run(max_grad_norm, tmp_path):
    trainer = ppo(tmp_path, max_steps=9, max_grad_norm=max_grad_norm)
    poisoned = trainer.value_head_model.v_head.summary.weight
    poisoned.register_hook(lambda gradient: gradient * float("inf"))
    before = weights(trainer)
    with pytest.raises(RecipeError, match=r"4 optimizer steps in a row.*step 2.*learning rate"):
        trainer.train()
    assert same(weights(trainer), before)
    assert load_stats(tmp_path)[-1]["ppo/skipped_minibatches"] == 2
    assert checkpoints_in(tmp_path / "checkpoints")[0].name == "checkpoint-2"


@pytest.mark.slow
def test_a_run_survives_being_killed_again_and_again(tmp_path):
    flags = [*torture.make_models(tmp_path), "--max_steps", "60"]
    Recipe("ppo_sentiment.py", *flags, "--output_dir", tmp_path / "calm").ends_with(0)
    struck = torture.torture(flags, tmp_path / "run", kills=5, seed=1)
    assert struck >= 1  # in the middle of writing a checkpoint
    torture.assert_same(tmp_path / "calm", tmp_path / "run")
