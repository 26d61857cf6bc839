"""Several real processes under Accelerate and gloo: the answer of one, in all of them."""

import json
import shutil
from pathlib import Path

import pytest
import several
import torch
from launching import launch
from safetensors.torch import load_file
from several import STEPS, UPDATES

from trl_recipes.stats import load_stats

# What TRL averages over passes, whose rows it draws in each process, rather than over tokens.
OF_PASSES = ("entropy", "kl", "clip_ratio")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """All cases in two processes: a function that gives what each found and told."""
    folder = tmp_path_factory.mktemp("both")
    launch(Path(several.__file__), folder)

    def found(name):
        return [results(folder, name, rank) for rank in (0, 1)]

    found.folder = folder
    return found


def results(folder, name, rank):
    own = folder / name.replace(", ", "-")
    found = load_file(own / f"found-{rank}.safetensors")
    return found, json.loads((own / f"told-{rank}.json").read_text())


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert first
    for name, value in first.items():
        assert value.equal(second[name]), name


@pytest.mark.parametrize("name", UPDATES)
def test_given_the_same_responses_two_processes_make_the_update_of_one(name, both, tmp_path):
    (first, told), (second, other) = both(name)
    several.run(tmp_path, [name])
    alone, expected = results(tmp_path, name, 0)

    assert_equal(first, second)
    torch.testing.assert_close(first["logits"], alone["logits"], rtol=0, atol=1e-5)
    joined = [mine + theirs for mine, theirs in zip(told["seen"], other["seen"], strict=True)]
    assert joined == expected["seen"]  # no prompt twice, and in the same order
    assert len(expected["rows"]) == STEPS
    for row, together, beside in zip(expected["rows"], told["rows"], other["rows"], strict=True):
        assert {"loss", "grad_norm", "objective/kl", "samples/distinct_2"} & {*row}
        for key, value in row.items():
            if key.startswith(OF_PASSES):
                continue
            assert together[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
            assert together[key] == beside[key], key


@pytest.mark.parametrize("name", ["language model", "classes", "numbers", "pairs", "rewriter"])
def test_after_training_all_processes_hold_the_same_weights(name, both):
    (first, told), (second, other) = both(name)
    assert_equal(first, second)
    assert told["train_loss"] == other["train_loss"]


@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo"])
def test_rewards_are_called_once_for_all_and_score_the_same(kind, both):
    (_, main), (_, other) = both(f"{kind}, once")
    assert main["once"]["rows"] == main["each"]["rows"]
    assert len(main["once"]["rows"]) == STEPS
    assert all(row["env/reward_std"] > 0 for row in main["once"]["rows"])
    for name, calls in main["once"]["calls"].items():
        assert other["once"]["calls"][name] == []
        check, *steps = calls
        assert len(check) == 2
        assert len(steps) == STEPS
        parts = [told["each"]["calls"][name][1:] for told in (main, other)]
        assert steps == [mine + theirs for mine, theirs in zip(*parts, strict=True)]


def test_parts_of_different_sizes_and_conversations_are_put_in_order(both):
    (_, main), (_, other) = both("conversations")
    prompts, completions, ids, mood = main["calls"][0]
    assert [prompt[0]["content"] for prompt in prompts] == [f"question {i}" for i in range(3)]
    assert [len(text[0]["content"]) for text in completions] == [0, 5, 10]
    assert (ids, mood) == ([[], [1], [2, 2]], ["bad", "good", "bad"])
    assert len(main["calls"]) == 1
    assert other["calls"] == []
    assert (main["raw"], other["raw"]) == ({"polite": [None]}, {"polite": [5.0, None]})
    assert (main["scores"], other["scores"]) == ([0.0], [5.0, 0.0])


@pytest.mark.parametrize("name", ["ppo, failing", "grpo, failing"])
def test_a_reward_that_fails_in_one_process_is_told_in_all_and_nothing_is_lost(name, both):
    for told in (told for case in (name, f"{name} once") for _, told in both(case)):
        assert "Reward function `picky` raised ValueError: out of paper in" in told["error"]
        assert [entry.rpartition("-")[2] for entry in told["checkpoints"]] == ["1"]
    for rank, case in ((1, name), (0, f"{name} once")):
        assert all(f"out of paper in {rank}" in told["error"] for _, told in both(case))


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_resumed_run_ends_as_one_that_was_left_alone(kind, both):
    (first, told), (second, _) = both(f"{kind}, resumed")
    assert_equal(first, second)
    whole = {name[6:]: value for name, value in first.items() if name.startswith("whole.")}
    stopped = {name[8:]: value for name, value in first.items() if name.startswith("stopped.")}
    assert_equal(whole, stopped)
    assert told["whole"] == told["stopped"]
    assert [row["step"] for row in told["whole"]] == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_what_one_process_is_told_ends_all_and_another_number_goes_on(kind, both, tmp_path, caplog):
    (_, told), (_, other) = both(f"{kind}, stopped")
    assert told == other
    assert "Stopped by SIGTERM after step 2 of 4" in told["said"]
    assert told["code"] == 128 + 15
    assert [name.rpartition("-")[2] for name in told["checkpoints"]] == ["2"]

    left = both.folder / f"{kind}-stopped" / "run"
    shutil.copytree(left, tmp_path / "run")
    seen = []

    def lengths(prompts, completions, **_):
        seen.append(list(prompts))
        return [float(len(text)) for text in completions]

    trainer = several.long(kind, lengths, tmp_path / "run", resume_from_checkpoint="true")
    with caplog.at_level("WARNING"):
        trainer.train()
    assert "The run had 2 processes and has 1 now: it goes on with the same weights" in caplog.text
    rows = load_stats(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[:2] == load_stats(left)
    assert rows[3]["episode"] == 2 * rows[1]["episode"]  # as large a batch
    gone_on = seen[-2:]
    several.long(kind, lengths, tmp_path / "another").train()
    assert seen[-2:] == gone_on  # the prompts of a run of one process
