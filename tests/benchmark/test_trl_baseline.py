"""TRL's own trainer in the benchmark: timing it changes nothing, and every phase is found."""

from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
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


def trained(folder, work, context):
    trainer = trl_trainer(work, str(folder), learning_rate=1e-3, callback=TrainerCallback())
    np.random.seed(0)  # TRL shuffles the batch with it, and does not seed it
    with context(trainer):
        trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model).state_dict()


@pytest.mark.parametrize("peft", [False, True])
def test_each_phase_is_found_once_a_step_and_timing_changes_nothing(tmp_path, peft):
    calls, work = Counter(), replace(WORK, peft=peft)

    @contextmanager
    def phase(name):
        calls[name] += 1
        yield

    timed = trained(tmp_path, work, lambda trainer: timed_phases(trainer, phase))
    steps = WORK.steps + 1
    # forward passes: the reference model and the value model
    assert calls == {"generation": steps, "scoring": steps, "forward": 2 * steps}
    plain = trained(tmp_path, work, lambda trainer: nullcontext())
    torch.testing.assert_close(timed, plain, rtol=0, atol=0)
    start = models.language_model(WORK).state_dict()
    assert peft or any(not plain[f"policy.{name}"].equal(start[name]) for name in start)


def functions():
    return [getattr(ppo_trainer, name) for name in ("batch_generation", "get_reward", "forward")]


def test_trls_functions_are_put_back_whatever_happens():
    before = functions()
    with suppress(KeyError), timed_phases(None, lambda name: nullcontext()):
        assert not set(functions()) & set(before)
        raise KeyError
    assert functions() == before
