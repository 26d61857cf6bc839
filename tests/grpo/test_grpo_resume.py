"""A GRPO or RLOO run that was stopped ends as one that was not, bit for bit."""

import os
import signal

import pytest
import torch
from tiny_grpo import assert_same_run, at_call, build, noisy

from trl_recipes import RecipeError
from trl_recipes.errors import RunStopped
from trl_recipes.stats import load_stats

# Checkpoints between two sampled batches, and in the middle of one's use.
CYCLES = {
    "each batch once": {},
    "three passes over a batch": {"num_iterations": 3},
    "a batch for two steps": {"steps_per_generation": 2},
    "accumulated, sampled at once": {"mini_batch_size": 4},
    "accumulated, sampled in parts": {"mini_batch_size": 4, "steps_per_generation": 1},
    "a reference that follows": {"sync_ref_model": True, "ref_model_sync_steps": 1, "beta": 0.5},
    "a batch for two steps, twice": {"steps_per_generation": 2, "num_iterations": 2},
}
STEPS = 7  # the prompts are gone through more than once


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def fail():
    raise ValueError("out of paper")


def trainer_of(folder, kind="grpo", reward=noisy, **config):
    settings = {"output_dir": str(folder), "max_steps": STEPS, "save_steps": 50}
    settings |= {"lr_scheduler_type": "linear"} | config
    return build(kind, rewards=reward, **settings)


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "whole", tmp_path / "broken"


@pytest.mark.parametrize(
    ("kind", "cycle"),
    [*(("grpo", cycle) for cycle in CYCLES), ("rloo", "three passes over a batch")],
)
def test_a_stopped_run_ends_as_one_that_was_not(kind, cycle, folders):
    whole = trainer_of(folders[0], kind, **CYCLES[cycle])
    whole.train()
    stopped = trainer_of(folders[1], kind, at_call(1, terminate), **CYCLES[cycle])
    with pytest.raises(RunStopped, match="--resume_from_checkpoint true"):
        stopped.train()
    assert 0 < stopped.state.global_step < STEPS
    resumed = trainer_of(folders[1], kind, resume_from_checkpoint="true", **CYCLES[cycle])
    resumed.train()
    assert_same_run(whole, resumed, folders)


def test_rows_after_the_checkpoint_are_dropped(folders):
    whole = trainer_of(folders[0], save_steps=3)
    whole.train()
    names = {path.name for path in (folders[0] / "checkpoints").iterdir()}
    assert names == {"checkpoint-6", "checkpoint-7"}  # save_total_limit is 2
    killed = trainer_of(folders[1], save_steps=3, save_total_limit=None)
    killed.train()
    for folder in folders[1].glob("checkpoints/checkpoint-[67]"):
        (folder / "trainer_state.json").unlink()  # as if killed while it was written
    assert len(load_stats(folders[1])) == STEPS
    resumed = trainer_of(folders[1], save_steps=3, resume_from_checkpoint="true")
    resumed.train()
    assert_same_run(whole, resumed, folders)


def test_what_a_failing_reward_ends_is_kept_and_goes_on(folders):
    whole = trainer_of(folders[0])
    whole.train()
    failing = trainer_of(folders[1], reward=at_call(4, fail))  # once checked, then the fourth step
    with pytest.raises(RecipeError, match=r"`noisy` raised ValueError: out of paper"):
        failing.train()
    resumed = trainer_of(folders[1], resume_from_checkpoint="true")
    resumed.train()
    assert resumed.all_stats[3]["step"] == 4
    assert_same_run(whole, resumed, folders)


def test_a_checkpoint_of_another_kind_of_run_is_refused(tmp_path):
    trainer_of(tmp_path, save_steps=2, max_steps=2).train()
    (checkpoint,) = tmp_path.glob("checkpoints/checkpoint-*")
    torch.save({"passes": 1}, checkpoint / "sampled_batch_0.pt")
    trainer = trainer_of(tmp_path, resume_from_checkpoint="true")
    with pytest.raises(RecipeError, match=r"no checkpoint of a GRPO or RLOO run"):
        trainer.train()
