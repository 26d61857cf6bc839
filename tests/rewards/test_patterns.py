"""Rewards of letters alone, each against a slow and obvious version."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_recipes.errors import RecipeError
from trl_recipes.rewards import KeywordReward, RegexReward, UppercaseReward

TEXTS = st.lists(st.text(max_size=30), min_size=1, max_size=6)


def ask(reward, completions):
    return reward(prompts=[""] * len(completions), completions=completions, completion_ids=[])


def test_keywords_are_whole_words_in_either_letter_case():
    reward = KeywordReward(["film", "Plot", "last scene", "C++"])
    completions = ["A FILM", "filmed plots", "the last\n scene of the plot.", "C++ film plot", ""]
    assert ask(reward, completions) == [0.25, 0.0, 0.5, 0.75, 0.0]


@given(words=st.lists(st.sampled_from(["good", "bad", "film", "goodness"]), max_size=8))
def test_keywords_as_found_by_splitting(words):
    keywords = ["good", "film"]
    expected = sum(keyword in words for keyword in keywords) / 2
    assert ask(KeywordReward(keywords), [" ".join(words)]) == [expected]


def test_one_keyword_may_be_given_alone():
    assert ask(KeywordReward("film"), ["a film"]) == [1.0]


@pytest.mark.parametrize("keywords", [[], [""], ["a", "  "], [3]])
def test_keywords_that_are_none_are_refused(keywords):
    with pytest.raises(RecipeError, match="KeywordReward: the keywords are"):
        KeywordReward(keywords)


def test_a_pattern_is_searched_for_or_must_be_all():
    completions = ["I give it 7 stars", "7 stars", "none"]
    assert ask(RegexReward(r"\d stars"), completions) == [1.0, 1.0, 0.0]
    assert ask(RegexReward(r"\d stars", whole=True), completions) == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("pattern", ["(", None])
def test_a_pattern_that_cannot_be_read_is_refused(pattern):
    with pytest.raises(RecipeError, match="cannot be read"):
        RegexReward(pattern)


@given(text=st.text(string.ascii_letters + string.digits + " .!", max_size=30))
def test_shouting_is_the_share_of_upper_case_letters(text):
    letters = [c for c in text if c in string.ascii_letters]
    expected = sum(c in string.ascii_uppercase for c in letters) / max(len(letters), 1)
    assert ask(UppercaseReward(), [text]) == [expected]


def test_letters_without_case_and_texts_without_letters_do_not_shout():
    assert ask(UppercaseReward(), ["漢字A", "123 !", "", "ÄÖü"]) == [1.0, 0.0, 0.0, 2 / 3]


@pytest.mark.parametrize(
    "reward", [KeywordReward(["a", "b"]), RegexReward("a.b"), UppercaseReward()]
)
@given(texts=TEXTS, seed=st.randoms(use_true_random=False))
def test_order_and_batching_do_not_matter(reward, texts, seed):
    together = ask(reward, texts)
    order = list(range(len(texts)))
    seed.shuffle(order)
    assert ask(reward, [texts[i] for i in order]) == [together[i] for i in order]
    assert [value for text in texts for value in ask(reward, [text])] == together


def test_conversations_are_judged_by_what_the_assistant_says():
    completions = [[{"role": "assistant", "content": "A FILM"}]]
    assert ask(UppercaseReward(), completions) == [1.0]
    assert ask(KeywordReward("film"), completions) == [1.0]
    assert ask(RegexReward("FILM"), completions) == [1.0]
