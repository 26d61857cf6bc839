"""`--check`: the first steps on a copy, an estimate that holds, and nothing written."""

import re
import time

import pytest
import torch
from test_resume import trainer_of
from transformers import set_seed

from trl_recipes import RecipeError


def state_of(trainer):
    moments = trainer.optimizer.state_dict()["state"]
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return weights, len(moments), trainer.kl_ctl.value, vars(trainer.scaling.running).copy()


@pytest.mark.parametrize("settings", [{}, {"trainable": "lora"}, {"reward_norm": "reference"}])
def test_a_checked_trainer_is_as_it_was_and_trains_as_one_that_was_not(settings, tmp_path):
    checked = trainer_of(tmp_path / "checked", use_score_scaling=True, **settings)
    before = state_of(checked)
    checked.check()
    after = state_of(checked)
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert before[1:] == after[1:]
    assert not (tmp_path / "checked").exists()

    plain = trainer_of(tmp_path / "plain", use_score_scaling=True, **settings)
    rows = []
    for trainer in (checked, plain):
        set_seed(5)
        trainer.train()
        rows.append([row["ppo/loss/total"] for row in trainer.all_stats])
    assert rows[0] == rows[1]
    weights = plain.model.state_dict()
    assert all(torch.equal(value, weights[n]) for n, value in checked.model.state_dict().items())


def test_the_estimate_is_within_half_as_much_again(tmp_path):
    def slow(completions, **_):  # so that the time of a step is one that no machine changes
        time.sleep(0.3)
        return [float(len(text)) for text in completions]

    trainer = trainer_of(tmp_path / "run", reward=slow, steps=12)
    said = trainer.check()
    estimate = float(re.search(r"about ([\d.]+) seconds \(12 steps", said)[1])
    started = time.perf_counter()
    trainer.train()
    took = time.perf_counter() - started
    assert took / 1.5 < estimate < took * 1.5
    memory = float(re.search(r"and ([\d.]+) GB", said)[1])
    assert 0.1 < memory < 4


def test_what_would_stop_the_run_stops_the_check(tmp_path):
    calls = iter(range(9))

    def later(completions, **_):  # right when it is tried, wrong on the first batch
        return [0.0 if next(calls) == 0 else float("nan")] * len(completions)

    trainer = trainer_of(tmp_path / "run", reward=later)
    with pytest.raises(RecipeError, match="returned nan"):
        trainer.check()
    assert not (tmp_path / "run").exists()


def test_a_sample_and_what_was_checked_are_told():
    trainer = trainer_of(None)
    said = trainer.check()
    weights = sum(p.numel() for p in trainer.model.parameters()) * 4 / 1e9
    assert f"of it weights {weights:.2g}, gradients {weights:.2g}, optimizer" in said
    assert "ratio 1 before the first update" in said
    assert re.search(r"'[\d ]+' was continued by '[\d ]+', score \d\.\d\d", said)
