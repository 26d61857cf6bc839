"""Several real processes under Accelerate and gloo: the answer of one, in all of them."""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from architectures import VOCAB, ppo_trainer
from launching import launch
from safetensors.torch import load_file, save_file
from tiny_grpo import at_call, build, noisy, prompts, tiny, variety, weights, without_times

from trl_recipes import RecipeError
from trl_recipes import distributed as processes
from trl_recipes.errors import RunStopped
from trl_recipes.rewards import Rewards
from trl_recipes.rewards.base import score_part
from trl_recipes.stats import load_stats

RANK, PROCESSES = (int(os.environ.get(key, n)) for key, n in (("RANK", 0), ("WORLD_SIZE", 1)))
GLOBAL_BATCH, STEPS = 16, 3
PROBE = torch.arange(24).view(2, 12) % VOCAB
# What TRL averages over passes, whose rows it draws in each process, rather than over tokens.
OF_PASSES = ("entropy", "kl", "clip_ratio")
assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)

# What each process does: a case gives tensors that were found, and what else there is to tell


def given_responses(step, rows):
    """Responses of one to six words for rows of the whole batch, whoever has them."""
    for row in rows:
        draw = torch.Generator().manual_seed(1000 * step + row)
        length = int(torch.randint(1, 7, (1,), generator=draw))
        yield torch.randint(2, VOCAB, (length,), generator=draw).tolist()


def update(kind, folder, **settings):
    """Steps on given responses: what is logged, and what the model has become."""
    seen, steps = [], iter(range(100))

    def reward(prompts, completions, id, **_):
        seen.append([*zip(prompts, completions, id, strict=True)])
        words = [len(set(text.split())) for text in completions]
        return [count + 0.1 * number for count, number in zip(words, id, strict=True)]

    size = GLOBAL_BATCH // PROCESSES
    settings = {"mini_batch_size": 4, "max_grad_norm": 1.0} | settings
    # Adam divides by a gradient's size: where that is rounding alone, epsilon keeps it from a step
    settings |= {"batch_size": size, "max_steps": STEPS, "adam_epsilon": 1e-5}
    trainer = build(kind, rewards=reward, **settings)

    def given(prompt_ids, *_, **__):
        responses = [*given_responses(next(steps), range(RANK * size, RANK * size + size))]
        return (responses, None) if kind == "grpo" else responses

    trainer._generate_single_turn = given
    trainer.train()
    found = weights(trainer)
    with torch.no_grad():
        found["logits"] = trainer.accelerator.unwrap_model(trainer.model)(PROBE).logits
    rows = without_times(trainer.all_stats)
    return found, {"rows": rows, "seen": seen[1:]}  # the first were made up to check the reward


def trainer_of(kind, rewards, folder=None, metrics=None, **settings):
    """A trainer of prompts with a column `words`."""
    more = {"metrics": metrics}
    if kind != "ppo":
        settings |= {} if folder is None else {"output_dir": str(folder)}
        data = prompts(9, words=list(range(9)))
        return build(kind, rewards=rewards, data=data, more=more, **settings)
    model = tiny()
    chosen = {"batch_size": GLOBAL_BATCH // PROCESSES // 2, "ppo_epochs": 1, "learning_rate": 3e-3}
    chosen |= {"response_length": 6, "save_steps": 2, "reward_norm": "none", "max_steps": STEPS}
    data = {"input_ids": torch.randint(2, VOCAB, (40, 3)).tolist(), "words": list(range(40))}
    return ppo_trainer(model, rewards, data, folder, more=more, **chosen | settings)


def four_steps(kind, rewards, folder, **settings):
    """A trainer of as many prompts a step whatever the number of processes."""
    if kind != "ppo":
        settings |= {"batch_size": GLOBAL_BATCH // PROCESSES, "num_generations": 4}
    return trainer_of(kind, rewards, folder, max_steps=4, save_steps=50, **settings)


def spell(completions, words, **_):
    pairs = zip(completions, words, strict=True)
    return [None if len(text) < 9 else float(len(text) + word) for text, word in pairs]


async def patient(prompts, completions, **_):
    await asyncio.sleep(0.001)
    pairs = zip(prompts, completions, strict=True)
    return [float(len(prompt) - len(text)) for prompt, text in pairs]


def counted(function, calls):
    """The same function, which notes what it was called with."""

    def noting(**arguments):
        calls.append([*zip(arguments["prompts"], arguments["completions"], strict=True)])
        return function(**arguments)  # of an asynchronous one what is awaited

    noting.__name__ = function.__name__
    return noting


def once(kind, folder):
    """The same run with rewards in each process and once for all: rows, and who was called."""
    told = {}
    for name, reward_once in (("each", False), ("once", True)):
        calls = {"spell": [], "patient": [], "variety": []}
        functions = [counted(f, calls[f.__name__]) for f in (spell, patient, variety)]
        settings = {"reward_once": reward_once, "reward_weights": [1.0, 0.5]}
        trainer = trainer_of(kind, functions[:2], metrics=functions[2:], **settings)
        trainer.train()
        told[name] = {"rows": without_times(trainer.all_stats), "calls": calls}
    return {}, told


def fails():
    raise ValueError(f"out of paper in {RANK}")


def is_told_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


def ended(kind, folder, what, rank=1, **settings):
    """Something happens to one process at the second step: what each makes of it."""
    told, reward = {}, at_call(2, what) if rank == RANK else noisy  # once checked
    try:
        four_steps(kind, reward, folder / "run", **settings).train()
    except (RecipeError, RunStopped) as end:
        told = {"said": str(end), "code": getattr(end, "exit_code", None)}
    processes.gather([0])  # all have written
    told["checkpoints"] = [path.name for path in (folder / "run" / "checkpoints").iterdir()]
    return {}, told


def resumed(kind, folder):
    """A run left alone, and one that went on from its checkpoint: weights and rows of both."""
    found, told = {}, {}
    settings = {"save_steps": 2, "max_steps": 4, "learning_rate": 1e-3}
    for name in ("whole", "stopped"):
        path = folder / name
        trainer = trainer_of(kind, noisy, path, **settings)
        trainer.train()
        if name == "stopped":
            processes.broadcast_from_main(partial(damage, path))
            trainer = trainer_of(kind, noisy, path, resume_from_checkpoint="true", **settings)
            trainer.train()
        found |= {f"{name}.{key}": value for key, value in weights(trainer).items()}
        told[name] = without_times(load_stats(path)) if RANK == 0 else []
    return found, told


def damage(run):
    """As if the run had been killed while it wrote its last checkpoint."""
    last = max(run.glob("checkpoints/*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in last.glob("*.json"):
        path.unlink()


def conversations(folder):
    """Parts of different sizes, of messages, scored once."""
    calls = []

    def polite(prompts, completions, completion_ids, mood, **_):
        calls.append([prompts, completions, completion_ids, mood])
        lengths = [float(len(completion[0]["content"])) for completion in completions]
        # that of each token where it is good, which has one
        return [None if m == "bad" else [n] for m, n in zip(mood, lengths, strict=True)]

    mine = [[0], [1, 2]][RANK]
    message = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    scores, raw = score_part(
        Rewards(polite),
        True,
        [message("user", f"question {i}") for i in mine],
        [message("assistant", "word " * i) for i in mine],
        [[i] * i for i in mine],
        {"mood": [["bad", "good", "bad"][i] for i in mine]},
    )
    return {}, {"scores": scores, "raw": raw, "calls": calls}


OVER_BOTH = {"num_generations": 16, "loss_type": "grpo", "scale_rewards": "batch"}
UPDATES = {"grpo": {}, "grpo, groups over both": OVER_BOTH, "rloo": {}}
UPDATES["grpo, batches used twice"] = {"num_iterations": 2}
CASES = {f"{kind}, once": partial(once, kind) for kind in ("ppo", "grpo", "rloo")}
for kind in ("ppo", "grpo"):
    CASES[f"{kind}, failing"] = partial(ended, kind, what=fails)
    CASES[f"{kind}, failing once"] = partial(ended, kind, what=fails, rank=0, reward_once=True)
    CASES[f"{kind}, stopped"] = partial(ended, kind, what=is_told_to_stop)
    CASES[f"{kind}, resumed"] = partial(resumed, kind)
CASES["conversations"] = conversations
CASES |= {name: partial(update, name.partition(",")[0], **more) for name, more in UPDATES.items()}


def run(folder, names):
    """Run cases in this process; what they found and told goes to a folder for each."""
    for name in names:
        own = folder / name.replace(", ", "-")
        own.mkdir(parents=True, exist_ok=True)
        found, told = CASES[name](own)
        save_file({k: v.contiguous() for k, v in found.items()}, own / f"found-{RANK}.safetensors")
        (own / f"told-{RANK}.json").write_text(json.dumps(told))


def results(folder, name, rank=0):
    own = folder / name.replace(", ", "-")
    found = load_file(own / f"found-{rank}.safetensors")
    return found, json.loads((own / f"told-{rank}.json").read_text())


# The tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All cases in two processes."""
    folder = tmp_path_factory.mktemp("both")
    launch(Path(__file__), folder)
    return folder


@pytest.fixture
def both(folder):
    """A function that gives what each process found and told in a case."""
    return lambda name: [results(folder, name, rank) for rank in (0, 1)]


@pytest.mark.parametrize("name", UPDATES)
def test_given_the_same_responses_two_processes_make_the_update_of_one(name, both, tmp_path):
    (first, told), (second, other) = both(name)
    run(tmp_path, [name])
    alone, expected = results(tmp_path, name)

    assert_equal(first, second)
    torch.testing.assert_close(first["logits"], alone["logits"], rtol=0, atol=1e-5)
    joined = [mine + theirs for mine, theirs in zip(told["seen"], other["seen"], strict=True)]
    assert joined == expected["seen"]  # no prompt twice, and in the same order
    assert len(expected["rows"]) == STEPS
    for row, together, beside in zip(expected["rows"], told["rows"], other["rows"], strict=True):
        assert {"loss", "grad_norm", "objective/kl", "samples/distinct_2"} & {*row}
        names = {name for name in row if not name.startswith(OF_PASSES)}
        row, together, beside = ({k: r[k] for k in names} for r in (row, together, beside))
        assert together == beside == pytest.approx(row, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo"])
def test_rewards_are_called_once_for_all_and_score_the_same(kind, both):
    (_, main), (_, other) = both(f"{kind}, once")
    assert main["once"]["rows"] == main["each"]["rows"]
    assert len(main["once"]["rows"]) == STEPS
    assert all(row["env/reward_std"] > 0 for row in main["once"]["rows"])
    for name, (check, *steps) in main["once"]["calls"].items():
        assert other["once"]["calls"][name] == []
        assert len(check) == 2
        assert len(steps) == STEPS
        parts = [told["each"]["calls"][name][1:] for told in (main, other)]
        assert steps == [mine + theirs for mine, theirs in zip(*parts, strict=True)]


def test_parts_of_different_sizes_and_conversations_are_put_in_order(both):
    (_, main), (_, other) = both("conversations")
    ((prompts, completions, ids, mood),) = main["calls"]
    assert [prompt[0]["content"] for prompt in prompts] == [f"question {i}" for i in range(3)]
    assert [len(text[0]["content"]) for text in completions] == [0, 5, 10]
    assert (ids, mood) == ([[], [1], [2, 2]], ["bad", "good", "bad"])
    assert other == {"scores": [5.0, 0.0], "raw": {"polite": [5.0, None]}, "calls": []}
    assert (main["scores"], main["raw"]) == ([0.0], {"polite": [None]})


@pytest.mark.parametrize(("case", "rank"), [("failing", 1), ("failing once", 0)])
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_reward_that_fails_in_one_process_is_told_in_all_and_nothing_is_lost(
    kind, case, rank, both
):
    for _, told in both(f"{kind}, {case}"):
        assert f"`noisy` raised ValueError: out of paper in {rank}" in told["said"]
        assert told["checkpoints"] == ["checkpoint-1"]


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_resumed_run_ends_as_one_that_was_left_alone(kind, both):
    (first, told), (second, _) = both(f"{kind}, resumed")
    assert_equal(first, second)
    whole = {key[6:]: value for key, value in first.items() if key.startswith("whole.")}
    assert whole
    assert_equal(whole, {key: first[f"stopped.{key}"] for key in whole})
    assert told["whole"] == told["stopped"]
    assert [row["step"] for row in told["whole"]] == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_what_one_process_is_told_ends_all_and_another_number_goes_on(
    kind, both, folder, tmp_path, caplog
):
    (_, told), (_, other) = both(f"{kind}, stopped")
    assert told == other
    assert "Stopped by SIGTERM after step 2 of 4" in told["said"]
    assert (told["code"], told["checkpoints"]) == (128 + 15, ["checkpoint-2"])

    left = shutil.copytree(folder / f"{kind}-stopped" / "run", tmp_path / "run")
    before, seen = load_stats(left), []

    def lengths(prompts, completions, **_):
        seen.append(list(prompts))
        return [float(len(text)) for text in completions]

    with caplog.at_level("WARNING"):
        four_steps(kind, lengths, left, resume_from_checkpoint="true").train()
    told = "The run had 2 processes and has 1 now.*: it goes on with the same weights"
    assert re.search(told, caplog.text)
    rows = load_stats(left)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[:2] == before
    assert rows[3]["episode"] == 2 * rows[1]["episode"]  # as large a batch
    gone_on = seen[-2:]
    four_steps(kind, lengths, tmp_path / "another").train()
    assert seen[-2:] == gone_on  # the prompts of a run of one process


if __name__ == "__main__":
    processes.init_process()
    run(Path(sys.argv[1]), CASES)
    processes.let_go()
