"""Penalties of length and repetition, against counting by hand and TRL's own functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

from trl_recipes.errors import RecipeError
from trl_recipes.rewards import LengthPenalty, RepetitionPenalty, Rewards

IDS = st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=6)


def ask(penalty, ids, completions=None):
    completions = completions or [""] * len(ids)
    return penalty(prompts=[""] * len(ids), completions=completions, completion_ids=ids)


def test_length_counts_tokens_words_or_characters():
    texts = ["one two three", "one two", ""]
    ids = [[1] * 5, [1] * 4, []]
    assert ask(LengthPenalty(4), ids, texts) == [1.0, 0.0, 0.0]
    assert ask(LengthPenalty(2, unit="words"), ids, texts) == [1.0, 0.0, 0.0]
    assert ask(LengthPenalty(6, unit="characters"), ids, texts) == [1.0, 1.0, 0.0]


def test_the_soft_form_rises_evenly():
    ids = [[1] * n for n in (3, 4, 5, 6, 7, 8, 20)]
    assert ask(LengthPenalty(4, soft=4), ids) == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


@given(ids=IDS)
def test_the_soft_form_is_trls_overlong_punishment(ids):
    theirs = get_soft_overlong_punishment(max_completion_len=8, soft_punish_cache=4)
    assert ask(LengthPenalty(4, soft=4), ids) == [-value for value in theirs(ids)]


def test_repetition_by_hand():
    assert ask(RepetitionPenalty(2), [[1, 2, 1, 2, 1], [1, 2, 3], [1], []]) == [0.5, 0.0, 0.0, 0.0]


@given(ids=IDS, n=st.integers(1, 4))
def test_repetition_is_trls_measure(ids, n):
    theirs = get_repetition_penalty_reward(ngram_size=n, max_penalty=-1.0)
    assert ask(RepetitionPenalty(n), ids) == [-value for value in theirs(completion_ids=ids)]


@pytest.mark.parametrize(
    "penalty", [LengthPenalty(4), LengthPenalty(2, soft=3), RepetitionPenalty(2)]
)
@given(ids=IDS, seed=st.randoms(use_true_random=False))
def test_order_and_batching_do_not_matter(penalty, ids, seed):
    together = ask(penalty, ids)
    order = list(range(len(ids)))
    seed.shuffle(order)
    assert ask(penalty, [ids[i] for i in order]) == [together[i] for i in order]
    assert [value for row in ids for value in ask(penalty, [row])] == together


def test_left_to_themselves_penalties_take_off():
    rewards = Rewards([LengthPenalty(1), RepetitionPenalty(1)])
    assert rewards([""], [""], [[1, 1]])[0] == [-1.5]
    assert rewards.names == ["length", "repetition"]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: LengthPenalty(-1), "max_length is -1"),
        (lambda: LengthPenalty("8"), "max_length is '8'"),
        (lambda: LengthPenalty(8, soft=-2), "soft is -2"),
        (lambda: LengthPenalty(8, unit="lines"), "unknown unit 'lines'"),
        (lambda: RepetitionPenalty(0), "n is 0"),
    ],
)
def test_wrong_settings_are_refused(make, told):
    with pytest.raises(RecipeError, match=told):
        make()
