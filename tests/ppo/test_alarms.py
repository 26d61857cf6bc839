"""Alarms ring on the curves that they are for, once, and keep silent on a healthy run."""

import json
from pathlib import Path

import pytest

from trl_recipes.ppo.alarms import RUNNING, WINDOW, Alarms

# Rows of recipes/ppo_sentiment.py as it is ("healthy"), and with --init_kl_coef 0
# --learning_rate 3e-3 --max_steps 40 ("collapsing"), both of seed 0, rounded.
CURVES = json.loads(Path(__file__).with_name("alarm_curves.json").read_text())
HEALTHY = {
    "objective/kl": 2.0,
    "ppo/skipped_minibatches": 0,
    "env/reward_mean": 0.5,
    "env/reward_std": 1.0,
    "tokens/responses_len_mean": 9.0,
    "samples/unique": 1.0,
    "samples/distinct_2": 0.6,
}


def alarms(**changes):
    return Alarms(**{"batch_size": 256, "response_length": 16, "min_response_length": 4} | changes)


def rows(count, first=1, **changes):
    """`count` healthy rows; a change is a number, or a function of the row's number from 0."""
    return [
        {"step": first + i}
        | HEALTHY
        | {k: value(i) if callable(value) else value for k, value in changes.items()}
        for i in range(count)
    ]


def feed(watch, given):
    return [(row["step"], sentence) for row in given for sentence in watch.look(row)]


def curve(name):
    columns = CURVES[name]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values())]  # noqa: B905


def test_a_healthy_run_rings_nothing():
    assert len(curve("healthy")) == 80
    assert feed(alarms(), curve("healthy")) == []


def test_a_run_without_kl_penalty_and_with_a_high_learning_rate_rings():
    """It ends in "I see we see we see we see we", 10 tokens long where limits have that mean."""
    watch = alarms()
    rung = feed(watch, curve("collapsing"))
    assert set(watch.said) == {"falling diversity", "full length"}
    assert all(2 * WINDOW <= step < 30 for step, _ in rung)
    assert "init_kl_coef" in watch.said["falling diversity"]


def test_negative_kl_rings_only_while_it_grows():
    falling = {"objective/kl": lambda i: -1.5 - 0.1 * i}
    level = {"objective/kl": lambda i: -1.5 + 0.1 * (i % 2)}
    small = {"objective/kl": lambda i: -0.9 + 0.001 * -i}
    ((step, sentence),) = feed(alarms(), rows(10, **falling))
    assert step == RUNNING
    assert "-1.70" in sentence
    assert "top_k" in sentence
    assert feed(alarms(), rows(10, **level)) == []
    assert feed(alarms(), rows(10, **small)) == []


def test_a_skipped_minibatch_rings_at_once_and_once():
    watch = alarms(ratio_threshold=7)
    ((step, sentence),) = feed(
        watch, rows(20, **{"ppo/skipped_minibatches": lambda i: 2 * (i > 4)})
    )
    assert step == 6
    assert "2 minibatch" in sentence
    assert "(7)" in sentence
    assert "learning_rate" in sentence


def test_equal_scores_ring_after_three_steps_but_not_for_a_batch_of_one():
    equal = {"env/reward_mean": 0.1, "env/reward_std": 1e-9}  # 0 but for rounding
    ((step, sentence),) = feed(alarms(), rows(9, **equal))
    assert step == RUNNING
    assert "0.1" in sentence
    assert "reward function" in sentence
    assert feed(alarms(batch_size=1), rows(9, **equal)) == []
    assert feed(alarms(), rows(9, **equal | {"env/reward_std": lambda i: float(i % 3 == 0)})) == []


def test_equal_responses_ring_but_not_for_a_batch_of_one():
    ((step, sentence),) = feed(alarms(batch_size=8), rows(9, **{"samples/unique": 1 / 8}))
    assert step == RUNNING
    assert "all 8 responses" in sentence
    assert feed(alarms(batch_size=8), rows(9, **{"samples/unique": 2 / 8})) == []
    assert feed(alarms(batch_size=1), rows(9, **{"samples/unique": 1.0})) == []


def test_full_length_rings_where_every_response_reaches_the_one_limit():
    full = rows(9, **{"tokens/responses_len_mean": 16.0})
    ((step, sentence),) = feed(alarms(min_response_length=None), full)
    assert step == RUNNING
    assert "16 tokens" in sentence
    assert "end token" in sentence
    assert feed(alarms(min_response_length=None, ends=False), full) == []
    nearly = rows(9, **{"tokens/responses_len_mean": 15.99})
    assert feed(alarms(min_response_length=None), nearly) == []


def test_with_drawn_limits_being_cut_is_no_alarm_but_ceasing_to_end_is():
    """Limits of 4 to 16 have the mean 10: responses that are only ever cut are 10 tokens long."""
    length = "tokens/responses_len_mean"
    cut = rows(40, **{length: lambda i: 10 + 0.2 * (-1) ** i})
    assert feed(alarms(), cut) == []
    ceasing = rows(40, **{length: lambda i: min(10.0, 8.7 + i / 15)})
    ((step, sentence),) = feed(alarms(), ceasing)
    assert step > 2 * WINDOW
    assert "4 to 16" in sentence
    assert feed(alarms(), rows(40, **{length: lambda i: min(9.6, 8.7 + i / 15)})) == []


def test_diversity_may_fall_while_the_score_does_not_rise():
    fall = {"samples/distinct_2": lambda i: 0.6 - 0.012 * i}
    assert feed(alarms(), rows(40, **fall)) == []
    ((_, sentence),) = feed(alarms(), rows(40, **fall, **{"env/reward_mean": lambda i: i / 40}))
    assert "distinct pairs of tokens has fallen from 0.58 to 0.28" in sentence


def test_missing_and_nan_keys_keep_an_alarm_silent():
    given = rows(40, **{"objective/kl": float("nan"), "samples/unique": None})
    assert feed(alarms(), [{"step": 1}, *given]) == []


@pytest.mark.parametrize("cut", [1, 2, WINDOW, 2 * WINDOW + 3])
def test_a_restored_state_goes_on_as_if_nothing_had_happened(cut):
    given = rows(
        45,
        **{
            "objective/kl": lambda i: -1.5 - 0.1 * i,
            "samples/distinct_2": lambda i: 0.6 - 0.012 * i,
            "env/reward_mean": lambda i: i / 40,
        },
    )
    whole = alarms()
    expected = feed(whole, given)
    assert len(expected) == 2
    before, after = alarms(), alarms()
    rung = feed(before, given[:cut])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert rung + feed(after, given[cut:]) == expected
    assert after.state_dict() == whole.state_dict()
