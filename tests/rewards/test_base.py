"""Rewards: how functions are called, weighted, named and checked."""

import asyncio
import functools
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_recipes.errors import RecipeError
from trl_recipes.rewards import Rewards

PROMPTS = ["The film", "I", "A plot"]
COMPLETIONS = [" was good", " slept", " twist, and more"]
IDS = [[1, 2], [3], [4, 5, 6]]


def length(prompts, completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def tokens(completion_ids, **kwargs):
    return [len(ids) for ids in completion_ids]


def score(rewards, **columns):
    return rewards(PROMPTS, COMPLETIONS, IDS, columns)


def test_one_function_is_accepted_where_a_list_is():
    totals, raw = score(Rewards(length))
    assert totals == [9.0, 6.0, 16.0]
    assert raw == {"length": [9.0, 6.0, 16.0]}


def test_the_total_is_the_weighted_sum():
    rewards = Rewards([length, tokens], [0.5, -2.0])
    totals, raw = score(rewards)
    assert totals == [9 / 2 - 4, 6 / 2 - 2, 16 / 2 - 6]
    assert raw == {"length": [9.0, 6.0, 16.0], "tokens": [2.0, 1.0, 3.0]}
    assert rewards.weights == [0.5, -2.0]


def test_weights_default_to_one():
    assert Rewards([length, tokens]).weights == [1.0, 1.0]


def test_none_leaves_a_sample_out_of_that_reward():
    def some(completions, **kwargs):
        return [None, 1.0, None]

    totals, raw = score(Rewards([some, tokens], [10.0, 1.0]))
    assert totals == [2.0, 11.0, 3.0]
    assert raw["some"] == [None, 1.0, None]


def test_a_sample_without_any_score_counts_zero_and_is_told_once(caplog):
    rewards = Rewards(lambda completions, **kwargs: [None, 1.0, None])
    for _ in range(2):
        assert score(rewards)[0] == [0.0, 1.0, 0.0]
    (record,) = caplog.records
    assert record.message.startswith("2 of 3 samples got None")


def test_columns_arrive_under_their_names():
    seen = {}

    def recorder(**kwargs):
        seen.update(kwargs)
        return [0.0] * 3

    score(Rewards(recorder), label=[1, 0, 1])
    assert seen == {
        "prompts": PROMPTS,
        "completions": COMPLETIONS,
        "completion_ids": IDS,
        "label": [1, 0, 1],
    }


def test_a_column_never_replaces_the_texts():
    assert score(Rewards(length), completions=["", "", ""])[0] == [9.0, 6.0, 16.0]


def test_a_function_without_keyword_columns_gets_only_what_it_names():
    def plain(completions, label):
        return [len(c) * y for c, y in zip(completions, label, strict=True)]

    assert score(Rewards(plain), label=[1, 0, 1], other=[9, 9, 9])[0] == [9.0, 0.0, 16.0]


@pytest.mark.parametrize(
    "values",
    [
        np.array([1, 2, 3], dtype=np.float32),
        torch.tensor([1.0, 2.0, 3.0]),
        (1, 2, 3),
        [torch.tensor(1.0), np.float32(2), 3],
        [True, 2.0, np.int64(3)],
    ],
    ids=["numpy", "tensor", "tuple", "scalars", "bool"],
)
def test_every_kind_of_number_becomes_a_float(values):
    totals, raw = score(Rewards(lambda completions: values))
    assert totals == [1.0, 2.0, 3.0]
    assert {type(value) for value in raw["<lambda>"]} == {float}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        ("5", r"'5' \(str\)"),
        ([1.0], r"\[1.0\] \(list\)"),
        (torch.tensor([1.0, 2.0]), r"\(Tensor\)"),
        (1j, r"1j \(complex\)"),
    ],
)
def test_a_value_that_is_no_finite_number_names_function_and_sample(value, told):
    def broken(completions, **kwargs):
        return [1.0, value, 2.0]

    with pytest.raises(RecipeError, match=f"`broken` returned .*{told}") as error:
        score(Rewards([length, broken]))
    assert "sample 1: prompt 'I', completion ' slept'" in str(error.value)


def test_a_wrong_number_of_values_names_function_prompt_and_completion():
    def short(completions, **kwargs):
        return [1.0, 2.0]

    with pytest.raises(RecipeError, match="`short` returned 2 values for 3 completions") as error:
        score(Rewards(short))
    assert "'The film'" in str(error.value)
    assert "' was good'" in str(error.value)


@pytest.mark.parametrize("value", [None, 1.0, {"score": 1.0}])
def test_something_other_than_a_list_is_an_error(value):
    with pytest.raises(RecipeError, match="must return a list of 3 numbers"):
        score(Rewards(lambda completions: value))


def test_an_exception_names_function_and_line_without_calling_again():
    calls = []

    def broken(completions, **kwargs):
        calls.append(len(completions))
        return [1 / (len(text) - 6) for text in completions]  # the second one has six letters

    expected = (
        r"`broken` raised ZeroDivisionError: .*test_base.py, line \d+\) for a batch that begins "
        "with 'The film', completion ' was good'"
    )
    with pytest.raises(RecipeError, match=expected) as caught:
        score(Rewards([length, broken]))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert calls == [3]


def test_names_come_from_the_functions_and_are_distinct():
    class Scorer:
        def __call__(self, completions):
            return [0.0] * 3

    partial = functools.partial(length, extra=1)
    assert Rewards([length, tokens, length, partial, Scorer()]).names == [
        "length",
        "tokens",
        "length_2",
        "length_3",
        "Scorer",
    ]


@pytest.mark.parametrize(
    ("funcs", "weights", "message"),
    [
        ([], None, "`reward_funcs` is empty"),
        ([length, 5], None, r"`reward_funcs\[1\]` is 5 \(int\)"),
        ([length, "nobody/nothing"], None, r"`reward_funcs\[1\]`: `nobody/nothing` is no folder"),
        (None, None, r"`reward_funcs\[0\]` is None"),
        ([length, tokens], [1.0], "has 1 entries .* for 2 reward"),
        (length, [1.0, 2.0], "has 2 entries .* for 1 reward"),
        (length, [math.nan], "holds nan"),
        (length, ["1"], "holds '1'"),
    ],
)
def test_wrong_functions_and_weights_are_refused_at_once(funcs, weights, message):
    with pytest.raises(RecipeError, match=message):
        Rewards(funcs, weights)


def test_check_finds_a_mistake_with_two_samples():
    calls = []

    def counts(prompts, completions, completion_ids, **kwargs):
        calls.append((len(prompts), len(completions), len(completion_ids)))
        return [1.0] * len(prompts)

    Rewards([counts, length]).check()
    assert calls == [(2, 2, 2)]
    with pytest.raises(RecipeError, match="`<lambda>` returned 1 values for 2"):
        Rewards([length, lambda completions: [1.0]]).check()


def test_check_leaves_out_what_is_not_ready_yet():
    def later(completions):
        raise AssertionError("called too early")

    later.ready = False
    rewards = Rewards([later, length])
    rewards.check()
    with pytest.raises(RecipeError, match="`later` raised AssertionError"):
        score(rewards)


async def slow(completions, **kwargs):
    await asyncio.sleep(0.2)
    return [float(len(completion)) for completion in completions]


class Slow:
    async def __call__(self, completions):
        return await slow(completions)


@pytest.mark.parametrize(
    "func", [slow, Slow(), functools.partial(slow), lambda completions: slow(completions)]
)
def test_an_asynchronous_function_is_awaited_however_it_is_wrapped(func):
    assert score(Rewards(func))[0] == [9.0, 6.0, 16.0]


def test_asynchronous_functions_wait_at_the_same_time_and_on_one_event_loop():
    loops = []

    async def seen(completions):
        loops.append(asyncio.get_running_loop())
        return [0.0] * 3

    rewards = Rewards([slow, tokens, slow, Slow(), seen])
    start = time.perf_counter()
    totals, raw = score(rewards)
    assert time.perf_counter() - start < 0.35  # one after the other would take 0.6
    assert totals == [3 * 9.0 + 2, 3 * 6.0 + 1, 3 * 16.0 + 3]
    assert list(raw) == ["slow", "tokens", "slow_2", "Slow", "seen"]
    score(rewards)
    assert loops[0] is loops[1]


def test_an_asynchronous_function_works_where_a_loop_is_running_already():
    async def notebook():
        return score(Rewards(slow))[0]

    assert asyncio.run(notebook()) == [9.0, 6.0, 16.0]


def test_an_exception_of_an_asynchronous_function_is_told_too():
    async def broken(**kwargs):
        raise KeyError("label")

    with pytest.raises(RecipeError, match="`broken` raised KeyError: 'label'"):
        score(Rewards([slow, broken]))


@pytest.mark.filterwarnings("ignore:coroutine")
def test_coroutines_that_were_never_awaited_are_an_error_that_says_what_to_write():
    with pytest.raises(RecipeError, match=r"`<lambda>` returned a coroutine for sample 0.*gather"):
        score(Rewards(lambda completions: [slow([text]) for text in completions]))


def test_metrics_are_called_and_never_optimised():
    rewards = Rewards(length, metrics=[tokens, length])
    totals, raw = score(rewards)
    assert totals == [9.0, 6.0, 16.0]
    assert raw["tokens"] == [2.0, 1.0, 3.0]
    assert rewards.metric_names == ["tokens", "length_2"]
    assert rewards.weights == [1.0]


def test_a_metric_does_not_hide_that_every_reward_left_a_sample_out(caplog):
    score(Rewards(lambda completions: [None, 1.0, 2.0], metrics=length))
    assert caplog.records[0].message.startswith("1 of 3 samples got None")


def test_normalised_values_are_optimised_and_raw_ones_stay():
    rewards = Rewards([length, tokens], [1.0, -2.0], metrics=length)
    rewards.normalise({"length": (8.0, 2.0), "tokens": (2.0, 0.5)})
    totals, raw = score(rewards)
    assert totals == [0.5 - 0.0, -1.0 + 4.0, 4.0 - 4.0]
    assert raw["length"] == raw["length_2"] == [9.0, 6.0, 16.0]
    assert rewards.raw_totals(raw) == [9 - 4, 6 - 2, 16 - 6]


@pytest.mark.parametrize("std", [0.0, math.nan])
def test_a_function_without_spread_is_shifted_and_not_scaled(std, caplog):
    rewards = Rewards(length)
    rewards.normalise({"length": (5.0, std)})
    assert score(rewards)[0] == [4.0, 1.0, 11.0]
    assert "`length` gives all samples" in caplog.text


def test_none_stays_out_of_a_normalised_reward():
    rewards = Rewards(lambda completions: [None, 1.0, 3.0])
    rewards.normalise({"<lambda>": (1.0, 2.0)})
    assert score(rewards)[0] == [0.0, 0.0, 1.0]


def test_a_penalty_weighs_minus_one_unless_told_otherwise():
    def penalty(completions):
        return [1.0, 0.0, 1.0]

    penalty.default_weight = -1.0
    assert score(Rewards([length, penalty]))[0] == [8.0, 6.0, 15.0]
    assert score(Rewards([length, penalty], [1.0, -3.0]))[0] == [6.0, 6.0, 13.0]


def test_conversations_pass_through_unchanged():
    seen = {}

    def recorder(prompts, completions):
        seen.update(prompts=prompts, completions=completions)
        return [1.0, math.nan]

    prompts = [[{"role": "user", "content": f"Question {i}"}] for i in range(2)]
    completions = [[{"role": "assistant", "content": f"Answer {i}"}] for i in range(2)]
    with pytest.raises(RecipeError, match="prompt 'Question 1', completion 'Answer 1'"):
        Rewards(recorder)(prompts, completions, [[1], [2]])
    assert seen == {"prompts": prompts, "completions": completions}


def test_a_column_that_is_not_there_is_named_with_those_that_are():
    def plain(completions, verdict):
        return [0.0] * 3

    with pytest.raises(RecipeError, match=r"`plain` wants `verdict`.* label, prompts"):
        score(Rewards(plain), label=[1, 0, 1])


def test_what_a_trainer_adds_arrives_as_it_is():
    state = object()

    def recorder(completions, trainer_state, **kwargs):
        assert trainer_state is state
        return [0.0] * 3

    Rewards(recorder)(PROMPTS, COMPLETIONS, IDS, {}, trainer_state=state)


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8),
    weight=st.floats(-10, 10),
    seed=st.integers(0, 1000),
)
def test_the_order_of_samples_does_not_matter(values, weight, seed):
    texts = [str(value) for value in values]
    rewards = Rewards([lambda completions: [float(c) for c in completions], length], [weight, 2.0])
    order = np.random.default_rng(seed).permutation(len(texts))
    ids = [[0]] * len(texts)
    straight, _ = rewards(texts, texts, ids)
    shuffled, _ = rewards([texts[i] for i in order], [texts[i] for i in order], ids)
    assert [straight[i] for i in order] == shuffled
