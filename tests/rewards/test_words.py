"""Share of known words, against a slow and obvious version."""

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_recipes.errors import RecipeError
from trl_recipes.rewards import KnownWordsReward
from trl_recipes.rewards.rules import known_share, whole_words, words_of

TEXT = "The film didn't end. It was good."


def ask(reward, completions):
    return reward(prompts=[""] * len(completions), completions=completions, completion_ids=[])


def test_words_are_known_in_either_letter_case_and_whole():
    completions = ["THE FILM ENDED.", "Good film, bad plot!", "DIDN'T IT END?", "films good."]
    assert ask(KnownWordsReward(TEXT), completions) == [2 / 3, 0.5, 1.0, 0.5]


def test_a_last_word_that_may_be_cut_does_not_count():
    assert ask(KnownWordsReward(TEXT), ["the fi", "the fi.", "film"]) == [1.0, 0.5, None]


def test_a_completion_without_a_word_has_no_share():
    assert ask(KnownWordsReward(TEXT), ["", "... 12 !"]) == [None, None]


@given(st.text(string.ascii_letters + " .", max_size=60))
def test_words_as_found_by_splitting(text):
    words = text.replace(".", " ").lower().split()
    assert words_of(text) == words
    assert whole_words(text) == (words[:-1] if text[-1:].isalpha() else words)


def test_the_share_of_several_texts_counts_each_word_once():
    assert known_share(["a b ", "a "], {"a"}) == 2 / 3
    assert math.isnan(known_share(["", "b"], {"b"}))


def test_the_text_may_be_a_file(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    assert KnownWordsReward(str(tmp_path / "a.txt")).words == set(words_of(TEXT))


@pytest.mark.parametrize("text", ["", "12 34", "no/such.txt"])
def test_a_text_without_words_is_refused(text):
    with pytest.raises(RecipeError, match="KnownWordsReward: "):
        KnownWordsReward(text)
