"""TRL's own trainer in the benchmark: timing it changes nothing, and every phase is found."""

from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from trl_recipes.benchmark import models
from trl_recipes.benchmark.models import Workload

ppo_trainer = pytest.importorskip("trl.experimental.ppo.ppo_trainer")

from trl_recipes.benchmark.trl_baseline import timed_phases, trl_trainer  # noqa: E402

WORK = Workload("tiny", batch=3, query=2, response=4, epochs=2, steps=1)


def build(folder, work=WORK):
    return trl_trainer(work, str(folder), learning_rate=1e-3, callback=TrainerCallback())


def test_timing_changes_nothing(tmp_path):
    def trained(context):
        trainer = build(tmp_path)
        np.random.seed(0)  # TRL shuffles the batch with it, and does not seed it
        with context(trainer):
            trainer.train()
        return trainer.accelerator.unwrap_model(trainer.model).state_dict()

    timed = trained(lambda trainer: timed_phases(trainer, lambda name: nullcontext()))
    plain = trained(lambda trainer: nullcontext())
    start = models.language_model(WORK).state_dict()
    assert all(torch.equal(timed[name], plain[name]) for name in plain)
    assert any(not torch.equal(plain[f"policy.{name}"], start[name]) for name in start)


@pytest.mark.parametrize("peft", [False, True])
def test_each_phase_is_found_once_a_step(tmp_path, peft):
    calls = Counter()

    @contextmanager
    def phase(name):
        calls[name] += 1
        yield

    trainer = build(tmp_path, replace(WORK, peft=peft))
    with timed_phases(trainer, phase):
        trainer.train()
    steps = WORK.steps + 1
    # forward passes: the reference model and the value model
    assert calls == {"generation": steps, "scoring": steps, "forward": 2 * steps}


def test_trls_functions_are_put_back_whatever_happens():
    before = (ppo_trainer.batch_generation, ppo_trainer.get_reward, ppo_trainer.forward)
    timed = timed_phases(None, lambda name: nullcontext())
    timed.__enter__()
    assert ppo_trainer.forward is not before[2]
    timed.__exit__(KeyError, KeyError(), None)
    assert before == (ppo_trainer.batch_generation, ppo_trainer.get_reward, ppo_trainer.forward)
