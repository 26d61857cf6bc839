"""Rewards: how functions are called, weighted, named and checked."""

import functools
import math

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


def test_an_exception_of_the_function_is_raised_as_it_is():
    def broken(**kwargs):
        raise KeyError("label")

    with pytest.raises(KeyError, match="label"):
        score(Rewards(broken))


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
        ([length, "sentiment"], None, r"`reward_funcs\[1\]` is 'sentiment' \(str\)"),
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
