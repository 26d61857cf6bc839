"""Reading, dividing and cutting a text: no character is lost, and prompts are whole words."""

import re

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from trl_recipes.data.tokenizers import character_tokenizer
from trl_recipes.errors import RecipeError
from trl_recipes.training.characters import RandomWindows, cut_prompts, divide_text, encode

LINES = "".join(f"Line {i} says that it is number {i}.\n" for i in range(60))


@given(st.text("ab \n", min_size=2, max_size=400), st.integers(1, 50))
def test_both_parts_are_the_text_and_each_holds_a_context(text, shortest):
    try:
        train, heldout = divide_text(text, shortest, "a.txt")
    except RecipeError:
        assert len(text) < 2 * shortest
    else:
        assert train + heldout == text
        assert min(len(train), len(heldout)) >= shortest
        assert len(heldout) >= 0.1 * len(text) - 1


def test_the_held_out_part_starts_at_a_line():
    train, heldout = divide_text(LINES, 20, "a.txt")
    assert train.endswith("\n")
    assert 0.1 <= len(heldout) / len(LINES) < 0.13


def test_prompts_are_whole_words_of_the_text_up_to_the_next_word():
    tokenizer = character_tokenizer(LINES)
    prompts = cut_prompts(LINES, tokenizer, 24, 50, seed=0)
    words = set(LINES.split())
    assert len(set(prompts["query"])) > 25
    for query, ids in zip(prompts["query"], prompts["input_ids"], strict=True):
        assert query in LINES
        assert len(query) <= 24
        assert set(query.split()) <= words
        assert re.search(r"\s$", query)
        assert tokenizer.decode(ids) == query
    assert cut_prompts(LINES, tokenizer, 24, 50, seed=0)["query"][:] == prompts["query"][:]
    assert cut_prompts(LINES, tokenizer, 24, 50, seed=1)["query"][:] != prompts["query"][:]


def test_a_text_without_spaces_has_prompts_too():
    text = "字符" * 30
    prompts = cut_prompts(text, character_tokenizer(text), 8, 5, seed=0)
    assert all(len(query) == 8 for query in prompts["query"])


def test_windows_lie_anywhere_in_the_text_and_follow_from_the_seed():
    ids = encode(LINES[:200], character_tokenizer(LINES))
    windows = RandomWindows(ids, 10, 3000, seed=0)
    assert len(windows) == 3000
    assert set(windows.starts) == set(range(191))  # every place, the first and the last too
    assert windows[7]["input_ids"] == ids[windows.starts[7] :][:10].tolist()
    assert RandomWindows(ids, 10, 3000, seed=0).starts == windows.starts
    assert RandomWindows(ids, 10, 3000, seed=1).starts != windows.starts


@pytest.mark.parametrize("text", ["e\u0301a\u0327\u0300o" * 40, "न\u093eम\u0947स" * 40])
def test_prompts_of_a_script_without_spaces_hold_whole_characters(text):
    whole = set(regex.findall(r"\X", text))
    cut = cut_prompts(text, character_tokenizer(text), length=8, count=30, seed=0)["query"]
    assert {character for query in cut for character in regex.findall(r"\X", query)} <= whole
    assert {len(query) for query in cut} <= set(range(4, 9))
