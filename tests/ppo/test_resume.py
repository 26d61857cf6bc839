"""Exact resume: a run that goes on from a checkpoint ends as one without a stop, bit for bit."""

import os
import signal

import pytest
import torch
import torture
from architectures import ARCHITECTURES, VOCAB, ppo_trainer
from launching import Recipe
from tiny_grpo import assert_same_run, at_call, noisy, same, weights, without_times

from trl_recipes import RecipeError
from trl_recipes.checkpointing import checkpoints_in
from trl_recipes.errors import RunStopped
from trl_recipes.stats import load_stats


def trainer_of(folder, name="gpt2", reward=noisy, steps=6, **settings):
    torch.manual_seed(0)
    model = ARCHITECTURES[name]()
    queries = torch.randint(2, VOCAB, (7, 3)).tolist()  # a batch spans two rounds of the prompts
    chosen = {"batch_size": 4, "ppo_epochs": 2, "learning_rate": 3e-3, "response_length": 6}
    chosen |= {"min_response_length": 2, "lr_scheduler_type": "linear", "save_steps": 2}
    chosen |= {"reward_norm": "none", "max_steps": steps}
    return ppo_trainer(model, reward, queries, folder, **chosen | settings)


def fail():
    raise ValueError("in the middle of a step")


CASES = {
    "plain": {},
    "adaptive KL, scaled scores, sgd": {"use_score_scaling": True, "target": 1, "optim": "sgd"},
    "attention of t5, normed scores": {"name": "t5", "trainable": "attention"}
    | {"use_score_scaling": True, "use_score_norm": True},
    "bart with lora": {"name": "bart", "trainable": "lora"},
    "full KL": {"kl_penalty": "full"},
}


@pytest.mark.parametrize("case", CASES)
def test_three_steps_and_three_more_are_six(case, tmp_path):
    folders = [tmp_path / "whole", tmp_path / "halves"]
    whole = trainer_of(folders[0], **CASES[case])
    whole.train()
    # the sixth call of the reward (one a step, after one that checks it) is in step 5
    with pytest.raises(RecipeError, match="`noisy` raised ValueError"):
        trainer_of(folders[1], reward=at_call(5, fail), **CASES[case]).train()
    assert len(load_stats(folders[1])) == 4
    torch.manual_seed(99)  # whatever state the new process is in
    halves = trainer_of(folders[1], **CASES[case])
    halves.train(resume_from_checkpoint=True)
    assert halves.state.global_step == 6
    assert halves.kl_ctl.value == whole.kl_ctl.value
    assert_same_run(whole, halves, folders)


def test_a_given_checkpoint_is_gone_on_from_and_later_rows_are_dropped(tmp_path):
    folder = tmp_path / "run"
    whole = trainer_of(folder, save_total_limit=None)
    whole.train()
    rows = without_times(load_stats(folder))
    names = [path.name for path in checkpoints_in(folder / "checkpoints")]
    assert names == ["checkpoint-6", "checkpoint-4", "checkpoint-2"]
    again = trainer_of(folder, resume_from_checkpoint=str(folder / "checkpoints" / "checkpoint-2"))
    again.train()
    assert without_times(load_stats(folder)) == rows
    assert_same_run(whole, again, [folder, folder])


@pytest.mark.parametrize(
    ("steps", "settings", "kept"),
    [(5, {"lr_scheduler_type": "constant"}, True), (6, {"save_steps": 0}, False)],
    ids=["more steps are asked for", "no checkpoint"],
)
def test_a_finished_run_goes_on_and_one_without_a_checkpoint_starts_at_its_first_step(
    steps, settings, kept, tmp_path
):
    folders = [tmp_path / "whole", tmp_path / "again"]
    whole = trainer_of(folders[0], steps=steps, **settings)
    whole.train()
    trainer_of(folders[1], steps=3, **settings).train()
    assert (folders[1] / "checkpoints").exists() is kept
    again = trainer_of(folders[1], steps=steps, **settings)
    again.train(resume_from_checkpoint=True)
    assert_same_run(whole, again, folders)


def test_other_weights_than_the_checkpoints_are_refused(tmp_path):
    trainer_of(tmp_path / "run", steps=2).train()
    other = trainer_of(tmp_path / "run", trainable="attention")
    with pytest.raises(RecipeError, match=r"other weights than this run trains: `.*not there"):
        other.train(resume_from_checkpoint=True)
    with pytest.raises(RecipeError, match="needs `output_dir`"):
        trainer_of(None).train(resume_from_checkpoint=True)


def test_a_full_disk_ends_no_run(tmp_path, monkeypatch, caplog):
    trainer = trainer_of(tmp_path / "run")
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
        trainer_of(tmp_path / "run").train()
    assert not (tmp_path / "run" / "all_stats.jsonl").exists()


def test_steps_that_are_never_finite_end_the_run(tmp_path):
    trainer = trainer_of(tmp_path / "run", steps=9)
    poisoned = trainer.value_head_model.v_head.summary.weight
    poisoned.register_hook(lambda gradient: gradient * float("inf"))
    before = weights(trainer)
    with pytest.raises(RecipeError, match=r"4 optimizer steps in a row.*step 2.*learning rate"):
        trainer.train()
    assert same(weights(trainer), before)
    assert load_stats(tmp_path / "run")[-1]["ppo/skipped_minibatches"] == 2
    assert checkpoints_in(tmp_path / "run" / "checkpoints")[0].name == "checkpoint-2"


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_saves_and_says_how_to_go_on(tmp_path):
    folders = [tmp_path / "whole", tmp_path / "stopped"]
    whole = trainer_of(folders[0])
    whole.train()
    said = r"Stopped by SIGINT after step 3 .*the same command with --resume_from_checkpoint true"
    with pytest.raises(RunStopped, match=said):
        trainer_of(folders[1], reward=at_call(3, interrupt), save_steps=50).train()
    again = trainer_of(folders[1])
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    assert_same_run(whole, again, folders)


@pytest.mark.slow
def test_a_run_survives_being_killed_again_and_again(tmp_path):
    flags = [*torture.make_models(tmp_path), "--max_steps", "60"]
    Recipe("ppo_sentiment.py", *flags, "--output_dir", tmp_path / "calm").ends_with(0)
    struck = torture.torture(flags, tmp_path / "run", kills=5, seed=1)
    assert struck >= 1  # in the middle of writing a checkpoint
    torture.assert_same(tmp_path / "calm", tmp_path / "run")
