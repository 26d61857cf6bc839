"""Ranges are held to the end of a run; alarms ring on what they are for, once, and else not."""

import json
import math
from functools import partial
from pathlib import Path

import pytest

from trl_recipes.diagnostics import (
    HEALTHY,
    RUNNING,
    WINDOW,
    Alarms,
    group_alarms,
    judge,
    ppo_alarms,
)

# Rows of recipes/ppo_sentiment.py as it is ("healthy"), and with --init_kl_coef 0
# --learning_rate 3e-3 --max_steps 40 ("collapsing"), both of seed 0, rounded.
CURVES = json.loads(Path(__file__).with_name("alarm_curves.json").read_text())
PPO_ROW = {"objective/kl": 2.0, "ppo/skipped_minibatches": 0, "tokens/responses_len_mean": 9.0}
PPO_ROW |= {"env/reward_mean": 0.5, "env/reward_std": 1.0}
PPO_ROW |= {"samples/unique": 1.0, "samples/distinct_2": 0.6}
FALL = {"samples/distinct_2": lambda i: 0.6 - 0.012 * i, "env/reward_mean": lambda i: i / 40}
LENGTH = "tokens/responses_len_mean"
EQUAL = {"env/reward_mean": 0.1, "env/reward_std": 1e-9}  # 0 but for rounding
SAMPLER = "sampling/sampling_logp_difference/mean"


def rows(count, **changes):
    """`count` healthy rows of PPO; a change is a number, or a function of the row's number."""
    return [
        {"step": 1 + i}
        | PPO_ROW
        | {k: value(i) if callable(value) else value for k, value in changes.items()}
        for i in range(count)
    ]


def ppo(**settings):
    defaults = {"batch_size": 256, "response_length": 16, "min_response_length": 4}
    return Alarms(partial(ppo_alarms, **defaults | settings))


def rung(watch, given, first=1):
    """Step and sentence of each alarm as a run goes on from its `first` row."""
    counts = range(first, len(given) + 1)
    return [(given[n - 1]["step"], what) for n in counts for what in watch.look(given[:n])]


def curve(name):
    columns = CURVES[name]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values())]  # noqa: B905


def test_ranges_are_held_to_the_last_tenth_by_hand():
    given = [
        {"objective/kl": 0.1 * i, "ppo/policy/clipfrac": 0.4, "samples/distinct_2": 0.8 - 0.02 * i}
        for i in range(1, 31)
    ]
    found = {j.healthy.key: (j.last, j.within) for j in judge(given)}
    kl = (pytest.approx(2.9), True)  # three rows of thirty: 28 to 30
    share = (0.8 - 0.02 * 29) / (0.8 - 0.02 * 2)  # beside steps 1 to 3
    clipped, distinct = (pytest.approx(0.4), False), (pytest.approx(share), False)
    held = {"objective/kl": kl, "ppo/policy/clipfrac": clipped, "samples/distinct_2": distinct}
    assert {key: found[key] for key in held} == held
    assert "grad_norm" not in found
    assert judge([]) == []


def test_every_range_has_a_limit_and_a_source():
    assert len({h.key for h in HEALTHY}) == len(HEALTHY) > 15
    assert all(h.source and h.why for h in HEALTHY)
    assert all(math.isfinite(h.low) or math.isfinite(h.high) for h in HEALTHY)


def test_a_healthy_run_rings_nothing():
    assert len(curve("healthy")) == 80
    assert rung(ppo(), curve("healthy")) == []


def test_a_run_without_kl_penalty_and_with_a_high_learning_rate_rings():
    """It ends in "I see we see we see we see we"."""
    watch = ppo()
    found = rung(watch, curve("collapsing"))
    assert set(watch.said) == {"falling diversity"}
    assert all(2 * WINDOW <= step < 30 for step, _ in found)
    assert "init_kl_coef" in watch.said["falling diversity"]


@pytest.mark.parametrize(
    ("settings", "changes", "step", "words"),
    [
        ({}, {"objective/kl": lambda i: -1.5 - 0.1 * i}, RUNNING, ["-1.70", "top_k"]),
        ({}, {"ppo/skipped_minibatches": lambda i: 2 * (i > 4)}, 6, ["2 minibatch", "learning_r"]),
        ({}, EQUAL, RUNNING, ["0.1", "reward function"]),
        ({"batch_size": 8}, {"samples/unique": 1 / 8}, RUNNING, ["all responses of a batch"]),
        ({}, {SAMPLER: lambda i: 2.2 * (i > 1)}, 3, ["vLLM's log-probabilities are 2.2 nats"]),
        ({"min_response_length": None}, {LENGTH: 16.0}, RUNNING, ["16 tokens", "end token"]),
        ({}, FALL, 30, ["distinct pairs of tokens has fallen from 0.58 to 0.28"]),
        # what is no alarm
        ({}, {"objective/kl": lambda i: -1.5 + 0.1 * (i % 2)}, None, []),
        ({}, {"objective/kl": lambda i: -0.9 + 0.001 * -i}, None, []),
        ({"batch_size": 1}, EQUAL, None, []),
        ({}, EQUAL | {"env/reward_std": lambda i: float(i % 3 == 0)}, None, []),
        ({"batch_size": 8}, {"samples/unique": 2 / 8}, None, []),
        ({"batch_size": 1}, {"samples/unique": 1.0}, None, []),
        ({"min_response_length": None, "stop_token": None}, {LENGTH: 16.0}, None, []),
        ({"min_response_length": None}, {LENGTH: 15.99}, None, []),
        ({}, {LENGTH: 16.0}, None, []),  # limits are drawn from 4 to 16
        ({}, FALL | {"env/reward_mean": 0.5}, None, []),  # the score does not rise
        ({}, {"objective/kl": float("nan"), "samples/unique": None}, None, []),
    ],
)
def test_an_alarm_of_ppo_rings_once_and_says_why_or_keeps_silent(settings, changes, step, words):
    given = rows(40, **changes)
    found = rung(ppo(**settings), given)
    assert [at for at, _ in found] == [step] * bool(words)
    assert [word for word in words if word not in found[0][1]] == []
    watch = ppo(**settings)
    watch.replay([{k: v for k, v in row.items() if k != "step"} for row in given])
    assert bool(watch.said) == bool(words)
    if not words:
        assert rung(ppo(**settings), [{"step": 0}, *given]) == []


@pytest.mark.parametrize("cut", [1, 2, WINDOW, 2 * WINDOW + 3])
def test_a_resumed_run_says_what_one_that_was_not_stopped_does(cut):
    given = rows(45, **FALL, **{"objective/kl": lambda i: -1.5 - 0.1 * i})
    whole, before, resumed = ppo(), ppo(), ppo()
    expected = rung(whole, given)
    assert len(expected) == 2
    resumed.replay(given[:cut])
    assert rung(before, given[:cut]) + rung(resumed, given, cut + 1) == expected
    assert resumed.said == whole.said


def group_rows(count=12, **changes):
    """Rows of GRPO whose score rises and whose variety falls a little; changes are by step."""
    healthy = {"groups/equal": 0.2, "clip_ratio/region_mean": 0.1, "skipped_steps": 0.0}
    return [
        healthy
        | {"step": step, "env/reward_mean": 0.1 * step}
        | {"samples/distinct_2": 0.6 - 0.01 * step, "samples/unique": 0.9}
        | {name: value(step) for name, value in changes.items()}
        for step in range(1, count + 1)
    ]


@pytest.mark.parametrize(
    ("changes", "rings", "word"),
    [
        ({}, [], ""),
        ({"groups/equal": lambda step: float(step > 9)}, ["equal groups"], "nothing to learn"),
        ({"groups/equal": lambda step: 0.97}, [], ""),
        ({"groups/equal": lambda step: float(step % 3 > 0)}, [], ""),
        ({"clip_ratio/region_mean": lambda step: 0.7}, ["clipping"], "70% of the probability"),
        ({"skipped_steps": lambda step: float(step == 12)}, ["skipped steps"], "not finite"),
        ({SAMPLER: lambda step: 0.11}, ["vLLM"], "do not reach vLLM"),
        ({SAMPLER: lambda step: 0.02}, [], ""),
        ({"tokens/masked_share": lambda step: 1.0}, ["all masked"], "mask_truncated_completions"),
        ({"samples/distinct_2": lambda step: 0.7 / step}, ["falling diversity"], "beta"),
        ({"samples/unique": lambda step: 1 / step}, ["falling diversity"], "distinct responses"),
        # variety that buys nothing is no hacking of the reward
        ({"samples/distinct_2": lambda s: 1 / s, "env/reward_mean": lambda s: -s}, [], ""),
    ],
)
def test_alarms_of_grpo_ring_on_their_state_alone(changes, rings, word):
    found = group_alarms(group_rows(**changes))
    assert list(found) == rings
    assert all(word in sentence and sentence.startswith("Step 12: ") for sentence in found.values())
    assert group_alarms(group_rows(count=2, **changes)).keys() <= {"skipped steps", "vLLM"}


@pytest.mark.parametrize(("std", "times"), [(0.05, 1), (0.12, 1), (0.13, 0), (0.0, 0)])
def test_a_price_that_leaves_less_than_half_a_standard_deviation_to_gain_is_told(std, times):
    given = rows(3, **{"ppo/std_scores": std, "objective/kl_coef": 0.25})
    told = [what for _, what in rung(ppo(), given) if "drowns" in what]
    assert len(told) == times
    if std == 0.05:
        assert "a nat costs 0.25" in told[0]
        assert "only about 0.2 standard deviations" in told[0]
        assert "init_kl_coef to about 0.01" in told[0]


def test_groups_know_the_price_where_rewards_are_weighed_as_they_are():
    row = {"step": 1, "env/reward_mean": 0.3, "reward_std": 0.01}
    assert "beta to about 0.003" in group_alarms([row], beta=0.05)["KL price"]
    assert "KL price" not in group_alarms([row], beta=None)


@pytest.mark.parametrize(
    ("rise", "noise", "steps", "told_at"),
    [
        (0.0, 0.01, 60, [12]),  # after a fifth
        (0.0, 0.01, 20, [10]),  # two windows at least
        (0.01, 0.01, 60, []),
        (-0.01, 0.01, 60, [12]),
        (0.0, 0.01, 5000, []),
    ],
)
def test_a_score_that_does_not_rise_is_told_after_a_fifth_of_the_steps(rise, noise, steps, told_at):
    given = rows(60, **{"env/reward_mean": lambda i: 0.3 + rise * i + noise * (-1) ** i})
    told = [step for step, what in rung(ppo(steps=steps), given) if "has not risen" in what]
    assert told == told_at
