"""`--check`: the first steps on a copy, an estimate that holds, and nothing written."""

import re
import time

import pytest
from test_resume import groups, ppo
from tiny_grpo import same, weights, without_times
from transformers import set_seed

from trl_recipes import RecipeError

FOLLOWED = {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1}
PPO = {"use_score_scaling": True}


def state_of(trainer):
    if not hasattr(trainer, "kl_ctl"):
        return [*trainer.all_stats]
    moments = trainer.optimizer.state_dict()["state"]
    return len(moments), trainer.kl_ctl.value, vars(trainer.scaling.running).copy()


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (ppo, PPO),
        (ppo, PPO | {"trainable": "lora"}),
        (ppo, PPO | {"reward_norm": "reference"}),
        (groups, FOLLOWED),
        (groups, FOLLOWED | {"kind": "rloo", "logging_strategy": "no", "log_samples": 0}),
    ],
)
def test_a_checked_trainer_is_as_it_was_and_trains_as_one_that_was_not(make, settings, tmp_path):
    checked, plain = (make(tmp_path / name, **settings) for name in ("checked", "plain"))
    before = weights(checked), state_of(checked)
    assert "The whole training will take about" in checked.check()
    assert same(before[0], weights(checked))
    assert before[1] == state_of(checked)
    assert not (tmp_path / "checked").exists()
    for trainer in (checked, plain):
        set_seed(5)
        trainer.train()
    assert without_times(checked.all_stats) == without_times(plain.all_stats)
    assert same(weights(checked), weights(plain))


def test_the_estimate_is_within_half_as_much_again_and_a_sample_is_told(tmp_path):
    def slow(completions, **_):  # so that the time of a step is one that no machine changes
        time.sleep(0.3)
        return [float(len(text)) for text in completions]

    trainer = ppo(tmp_path / "run", reward=slow, max_steps=12)
    said = trainer.check()
    estimate = float(re.search(r"about ([\d.]+) seconds \(12 steps", said)[1])
    started = time.perf_counter()
    trainer.train()
    took = time.perf_counter() - started
    assert took / 1.5 < estimate < took * 1.5
    assert 0.1 < float(re.search(r"and ([\d.]+) GB", said)[1]) < 4
    size = sum(p.numel() for p in trainer.model.parameters()) * 4 / 1e9
    assert f"of it weights {size:.2g}, gradients {size:.2g}, optimizer" in said
    assert "ratio 1 before the first update" in said
    assert re.search(r"'[\d ]+' was continued by '[\d ]+', score \d\.\d\d", said)


def test_what_would_stop_the_run_stops_the_check(tmp_path):
    calls = iter(range(9))

    def later(completions, **_):  # right when it is tried, wrong on the first batch
        return [0.0 if next(calls) == 0 else float("nan")] * len(completions)

    with pytest.raises(RecipeError, match="returned nan"):
        ppo(tmp_path / "run", reward=later).check()
    assert not (tmp_path / "run").exists()
