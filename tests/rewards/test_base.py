"""Rewards: how functions are called, weighted, named and checked."""

import asyncio
import copy
import functools
import math
import time

import numpy as np
import pytest
import torch

from trl_recipes.errors import RecipeError
from trl_recipes.rewards import Rewards

PROMPTS = ["The film", "I", "A plot"]
COMPLETIONS = [" was good", " slept", " twist, and more"]
IDS = [[1, 2], [3], [4, 5, 6]]


def talk(role, texts):
    return [[{"role": role, "content": text}] for text in texts]


def length(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def tokens(completion_ids, **kwargs):
    return [len(ids) for ids in completion_ids]


def some(completions, **kwargs):
    return [None, 1.0, None]


def penalty(completions):
    return [1.0, 0.0, 1.0]


penalty.default_weight = -1.0


async def slow(completions, **kwargs):
    await asyncio.sleep(0.2)
    return length(completions)


class Slow:
    async def __call__(self, completions):
        return await slow(completions)


def score(rewards, prompts=PROMPTS, completions=COMPLETIONS, **columns):
    return rewards(prompts, completions, IDS, columns)


@pytest.mark.parametrize(
    ("functions", "weights", "totals"),
    [
        (length, None, [9.0, 6.0, 16.0]),
        ([length, tokens], [0.5, -2.0], [0.5, 1.0, 2.0]),
        ([length, penalty], None, [8.0, 6.0, 15.0]),  # its own weight is -1
        ([length, penalty], [1.0, -3.0], [6.0, 6.0, 13.0]),
        ([some, tokens], [10.0, 1.0], [2.0, 11.0, 3.0]),  # None leaves a sample out
    ],
)
def test_the_total_is_the_weighted_sum(functions, weights, totals):
    assert score(Rewards(functions, weights))[0] == totals


def test_columns_and_what_a_trainer_adds_arrive_and_no_column_replaces_these(caplog):
    seen, state = {}, object()

    def recorder(**kwargs):
        seen.update(kwargs)
        return [0.0] * 3

    own = {"completions": ["x"] * 3, "trainer_state": ["y"] * 3}
    for _ in range(2):  # told once
        Rewards(recorder)(
            PROMPTS, COMPLETIONS, IDS, {"label": [1, 0, 1]} | own, trainer_state=state
        )
    texts = {"prompts": PROMPTS, "completions": COMPLETIONS, "completion_ids": IDS}
    assert seen == {**texts, "label": [1, 0, 1], "trainer_state": state}
    assert [record.message.split("`")[1] for record in caplog.records] == [*own]


def test_a_function_without_keyword_columns_gets_only_what_it_names():
    def plain(completions, label):
        return [len(c) * y for c, y in zip(completions, label, strict=True)]

    assert score(Rewards(plain), label=[1, 0, 1], other=[9, 9, 9])[0] == [9.0, 0.0, 16.0]
    with pytest.raises(RecipeError, match=r"`plain` wants `label`.*no such column.* other, pr"):
        score(Rewards(plain), other=[9, 9, 9])


@pytest.mark.parametrize(
    "values",
    [
        np.array([1, 2, 3], dtype=np.float32),
        torch.tensor([1.0, 2.0, 3.0]),
        (1, 2, 3),
        [torch.tensor(1.0), np.float32(2), 3],
        [True, 2.0, np.int64(3)],
    ],
)
def test_every_kind_of_number_becomes_a_float(values):
    totals, raw = score(Rewards(lambda completions: values))
    assert totals == [1.0, 2.0, 3.0]
    assert {type(value) for value in raw["<lambda>"]} == {float}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1.0, math.nan, 2.0], r"nan .float. for sample 1: prompt 'I', completion ' slept'"),
        ([1.0, 2.0, math.inf], "inf .float. for sample 2"),
        ([1.0, "5", 2.0], r"'5' \(str\) for sample 1"),
        ([[1.0] * 3, 1.0, 1.0], r"\[1.0, 1.0, 1.0\] \(list\) for sample 0"),
        ([1.0, -1e39, 2.0], r"-1e\+39"),
        ([1.0, 2.0], "2 for 3 completions"),
        (None, "None for 3 .*must return a list of 3 numbers"),
        (1.0, "1.0 for 3 .*must return a list of 3 numbers"),
    ],
)
def test_what_is_no_list_of_as_many_finite_numbers_names_function_and_sample(values, told):
    with pytest.raises(RecipeError, match=f"`<lambda>` returned {told}"):
        score(Rewards([length, lambda completions: values]))


def test_a_sum_beyond_float32_is_told_and_a_conversation_by_its_last_messages():
    with pytest.raises(RecipeError, match=r"weighted sum of <lambda> is beyond .*reward_weights"):
        score(Rewards(lambda completions: [1e30] * 3, [1e30]))
    talks = talk("user", PROMPTS), talk("assistant", COMPLETIONS)
    with pytest.raises(RecipeError, match="prompt 'I', completion ' slept'"):
        score(Rewards(lambda completions: [1.0, math.nan, 1.0]), *talks)


def test_an_exception_names_function_and_line_without_calling_again():
    calls = []

    def broken(completions, **kwargs):
        calls.append(len(completions))
        return [1 / (len(text) - 6) for text in completions]  # the second one has six letters

    expected = (
        r"`broken` raised ZeroDivisionError: .*test_base.py, line \d+\) for a batch that begins "
        "with 'The film', completion ' was good'.*Fix"
    )
    with pytest.raises(RecipeError, match=expected) as caught:
        score(Rewards([length, broken]))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert calls == [3]


def _shuffles(prompts, completions, completion_ids, answer):
    for row in (prompts, completions, completion_ids, answer):
        row.reverse()
    completion_ids[0].clear()
    if isinstance(completions[0], list):
        completions[0][0]["content"] = ""
    return [0.0] * len(answer)


async def _strips(completions, answer):
    completions[:], answer[:] = ["X"] * 3, ["X"] * 3
    return [0.0] * 3


@pytest.mark.parametrize("change", [_shuffles, _strips])
@pytest.mark.parametrize("texts", [COMPLETIONS, talk("assistant", COMPLETIONS)])
def test_what_a_function_changes_in_place_stays_its_own(change, texts):
    seen = []

    def after(prompts, completions, completion_ids, answer):
        seen.append((prompts, completions, completion_ids, answer))
        return [0.0] * 3

    given = copy.deepcopy((PROMPTS, texts, IDS, [["a"], ["b", "c"], []]))
    rewards = Rewards([after, change, after], metrics=[change, after])
    rewards(*given[:3], {"answer": given[3]})
    assert seen == [(PROMPTS, texts, IDS, [["a"], ["b", "c"], []])] * 3 == [given] * 3


@pytest.mark.parametrize(
    ("funcs", "weights", "message"),
    [
        ([], None, "`reward_funcs` is empty"),
        ([length, 5], None, r"`reward_funcs\[1\]` is 5 \(int\)"),
        ([length, "nobody/nothing"], None, r"`reward_funcs\[1\]`: the model `nobody/nothing` c"),
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


def test_check_finds_a_mistake_with_two_samples_and_skips_what_is_not_ready():
    def later(completions):
        raise AssertionError("called too early")

    later.ready, samples = False, (PROMPTS[:2], COMPLETIONS[:2], IDS[:2])
    with pytest.raises(RecipeError, match="`<lambda>` returned 1 for 2"):
        Rewards([later, length, lambda completions: [1.0]]).check(*samples)
    with pytest.raises(RecipeError, match="`later` raised AssertionError"):
        score(Rewards([later, length]))


@pytest.mark.parametrize(
    "func", [slow, Slow(), functools.partial(slow), lambda completions: slow(completions)]
)
def test_an_asynchronous_function_is_awaited_however_it_is_wrapped(func):
    async def notebook():  # where a loop is running already
        return score(Rewards(func))[0]

    assert score(Rewards(func))[0] == asyncio.run(notebook()) == [9.0, 6.0, 16.0]


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


@pytest.mark.filterwarnings("ignore:coroutine")
def test_mistakes_of_asynchronous_functions_are_told_too():
    async def broken(**kwargs):
        raise KeyError("label")

    with pytest.raises(RecipeError, match="`broken` raised KeyError: 'label'"):
        score(Rewards([slow, broken]))
    with pytest.raises(RecipeError, match=r"`<lambda>` returned <coroutine .* for sample 0"):
        score(Rewards(lambda completions: [slow([text]) for text in completions]))


def test_metrics_are_called_and_never_optimized_and_names_are_distinct(caplog):
    rewards = Rewards([length, functools.partial(length, extra=1)], metrics=[tokens, length])
    assert score(rewards) == (
        [18.0, 12.0, 32.0],
        {name: [9.0, 6.0, 16.0] for name in ("length", "length_2", "length_3")}
        | {"tokens": [2.0, 1.0, 3.0]},
    )
    assert (rewards.names, rewards.weights) == (["length", "length_2"], [1.0, 1.0])
    assert rewards.metric_names == ["tokens", "length_3"]
    rewards = Rewards(some, metrics=length)
    for _ in range(2):  # told once, and a metric does not hide what no reward scored
        assert score(rewards)[0] == [0.0, 1.0, 0.0]
    (record,) = caplog.records
    assert record.message == "Samples that got None from every reward function (some) count as 0."


def test_normalized_values_are_optimized_and_raw_ones_stay(caplog):
    rewards = Rewards([length, tokens, some], [1.0, -2.0, 1.0], metrics=length)
    moments = {"length": (8.0, 2.0), "tokens": (2.0, 0.5), "some": (0.5, 0.5)}
    rewards.normalize(moments)
    totals, raw = score(rewards)
    assert totals == [0.5 - 0.0, -1.0 + 4.0 + 1.0, 4.0 - 4.0]  # None stays out
    assert raw["length"] == raw["length_2"] == [9.0, 6.0, 16.0]
    assert rewards.raw_totals(raw) == [9 - 4, 6 - 2 + 1, 16 - 6]
    rewards = Rewards(length)
    for std in (0.0, math.nan):  # without spread: shifted and not scaled
        rewards.normalize({"length": (5.0, std)})
        assert score(rewards)[0] == [4.0, 1.0, 11.0]
    assert caplog.text.count("`length` is equal on all samples") == 2
    rewards.normalize({"length": (math.nan, math.nan)})
    assert "`length` gave None for all samples" in caplog.text
