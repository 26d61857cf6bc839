"""Rewards of text and token ids alone: by hand, against TRL's own and against obvious versions."""

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

from trl_recipes.errors import RecipeError
from trl_recipes.rewards import (
    KeywordReward,
    KnownWordsReward,
    LengthPenalty,
    RegexReward,
    RepetitionPenalty,
    Rewards,
    UppercaseReward,
)
from trl_recipes.rewards.rules import known_share, whole_words, words_of

KNOWN = KnownWordsReward("The film didn't end. It was good.")
IDS = st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=6)


def ask(reward, completions, ids=None):
    return reward(prompts=[""] * len(completions), completions=completions, completion_ids=ids)


def penalize(penalty, ids):
    return ask(penalty, [""] * len(ids), ids)


@pytest.mark.parametrize(
    ("reward", "completions", "expected"),
    [
        (
            KeywordReward(["film", "Plot", "last scene", "C++"]),
            ["A FILM", "filmed plots", "the last\n scene of the plot.", "C++ film plot", ""],
            [0.25, 0.0, 0.5, 0.75, 0.0],
        ),
        (KeywordReward("film"), ["a film"], [1.0]),
        (RegexReward(r"\d stars"), ["I give it 7 stars", "7 stars", "none"], [1.0, 1.0, 0.0]),
        (RegexReward(r"\d stars", whole=True), ["I give it 7 stars", "7 stars"], [0.0, 1.0]),
        (UppercaseReward(), ["漢字A", "123 !", "", "ÄÖü"], [1.0, 0.0, 0.0, 2 / 3]),
        (KNOWN, ["THE FILM ENDED.", "Good film, bad plot!", "DIDN'T IT END?"], [2 / 3, 0.5, 1.0]),
        (KNOWN, ["films good.", "the fi", "the fi.", "film"], [0.5, 1.0, 0.5, None]),  # cut words
        (KNOWN, ["", "... 12 !"], [None, None]),
        (LengthPenalty(2, unit="words"), ["one two three", "one two", ""], [1.0, 0.0, 0.0]),
        (LengthPenalty(6, unit="characters"), ["one two three", "one two", ""], [1.0, 1.0, 0.0]),
    ],
)
def test_texts_by_hand(reward, completions, expected):
    assert ask(reward, completions) == expected


@pytest.mark.parametrize("reward", [UppercaseReward(), KeywordReward("film"), RegexReward("FILM")])
def test_conversations_are_judged_by_what_the_assistant_says(reward):
    assert ask(reward, [[{"role": "assistant", "content": "A FILM"}]]) == [1.0]


@given(ids=IDS, n=st.integers(1, 4))
def test_penalties_are_trls_measures(ids, n):
    overlong = get_soft_overlong_punishment(max_completion_len=8, soft_punish_cache=4)
    assert penalize(LengthPenalty(4, soft=4), ids) == [-value for value in overlong(ids)]
    repetition = get_repetition_penalty_reward(ngram_size=n, max_penalty=-1.0)
    expected = [-value for value in repetition(completion_ids=ids)]
    assert penalize(RepetitionPenalty(n), ids) == expected
    rewards = Rewards([LengthPenalty(1), RepetitionPenalty(1)])  # left to themselves they take off
    assert rewards([""], [""], [[1, 1]])[0] == [-1.5]
    assert rewards.names == ["length", "repetition"]


@given(st.text(string.ascii_letters + " .", max_size=60))
def test_words_as_found_by_splitting(text):
    words = text.replace(".", " ").lower().split()
    assert words_of(text) == words
    assert whole_words(text) == (words[:-1] if text[-1:].isalpha() else words)


def test_the_share_of_several_texts_counts_each_word_once_and_they_may_be_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("The film")
    assert KnownWordsReward(str(tmp_path / "a.txt")).words == {"the", "film"}
    assert known_share(["a b ", "a "], {"a"}) == 2 / 3
    assert math.isnan(known_share(["", "b"], {"b"}))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        *((lambda k=k: KeywordReward(k), "the keywords are") for k in ([], [""], ["a", " "], [3])),
        *((lambda p=p: RegexReward(p), "cannot be read") for p in ("(", None)),
        *((lambda t=t: KnownWordsReward(t), "no words") for t in ("", "12 34")),
        (lambda: KnownWordsReward("no/such.txt"), "KnownWordsReward: .*could not be read"),
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
