"""Texts by the character: none is lost in ids, parts and windows, and prompts are whole words."""

import re

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trl_recipes.data.tokenizers import (
    character_tokenizer,
    check_characters,
    is_character_tokenizer,
)
from trl_recipes.errors import RecipeError
from trl_recipes.training.language_model import RandomWindows, cut_prompts, divide_text, encode

LINES = "".join(f"Line {i} says that it is number {i}.\n" for i in range(60))
# all that a UTF-8 file can hold: everything but halves of surrogate pairs
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
ODD = "a\r\n\n\t\x0b\x00 e\u0301 \ufeff\u2028\u200d\U0001f600 don 't <|pad|><|endoftext|> ."


def assert_spells(tokenizer, text):
    """Ids are places in the sorted characters, and come back character for character."""
    characters = sorted(set(text))
    ids = tokenizer(text)["input_ids"]
    assert ids == [characters.index(character) for character in text]
    assert tokenizer.decode(ids) == text
    assert tokenizer.batch_decode([ids], skip_special_tokens=True) == [text]


@given(TEXT)
@example(ODD)
@example(" ")
@example("<|endoftext|>")
def test_every_text_comes_back_character_for_character(text):
    tokenizer = character_tokenizer(text)
    assert_spells(tokenizer, text)
    assert encode(text, tokenizer).tolist() == tokenizer(text)["input_ids"]


@given(text=TEXT)
@example(text=ODD)
@settings(max_examples=15, deadline=None)
def test_a_loaded_tokenizer_is_the_same(text, tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("saved"), character_tokenizer(text)
    tokenizer.save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    assert_spells(loaded, text)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert is_character_tokenizer(loaded)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "padding_side"):
        assert getattr(loaded, name) == getattr(tokenizer, name)


def test_end_and_pad_are_two_tokens_that_no_text_has():
    tokenizer = character_tokenizer("abc")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (3, 3, 4)
    assert len(tokenizer) == 5
    padded = tokenizer(["ab", "abc"], padding=True)
    assert padded["input_ids"] == [[4, 0, 1], [0, 1, 2]]
    assert padded["attention_mask"] == [[0, 1, 1], [1, 1, 1]]


@given(TEXT, TEXT)
@example("abc", "abd")
def test_exactly_unknown_characters_are_refused_and_never_lost_silently(known, text):
    tokenizer = character_tokenizer(known)
    if set(text) <= set(known):
        check_characters(text, tokenizer, "here")
        return
    with pytest.raises(RecipeError, match=r"^here: "):
        check_characters(text, tokenizer, "here")
    with pytest.raises(Exception, match="WordLevel"):
        tokenizer(text)


def test_unknown_characters_are_named_with_their_text_and_other_tokenizers_left_alone(tokenizer):
    known, told = character_tokenizer("ab\n"), r"text 2 holds .*'x' .U\+0078., 'é' .U\+00E9."
    with pytest.raises(RecipeError, match=f"^--prompt: {told}"):
        check_characters(["ab", "ab\naxé"], known, "--prompt")
    assert not is_character_tokenizer(tokenizer)
    check_characters("é", tokenizer, "here")


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
    first, again, other = (
        cut_prompts(LINES, tokenizer, 24, 50, seed=seed).to_list() for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len({row["query"] for row in first}) > 25
    for row in first:
        query = row["query"]
        assert query in LINES
        assert len(query) <= 24
        assert set(query.split()) <= set(LINES.split())
        assert re.search(r"\s$", query)
        assert tokenizer.decode(row["input_ids"]) == query


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("字符" * 30, {8}),
        ("e\u0301a\u0327\u0300o" * 40, {*range(4, 9)}),
        ("न\u093eम\u0947स" * 40, {*range(4, 9)}),
    ],
)
def test_prompts_of_a_script_without_spaces_hold_whole_characters(text, lengths):
    cut = cut_prompts(text, character_tokenizer(text), length=8, count=30, seed=0)["query"]
    whole, found = (set(regex.findall(r"\X", part)) for part in (text, "\n".join(cut)))
    assert found - {"\n"} <= whole
    assert {len(query) for query in cut} <= lengths


@pytest.mark.parametrize("length", [1, 2])
def test_no_prompt_is_blank(length):
    cut = cut_prompts("a \n\n b. " * 9, character_tokenizer("a b.\n"), length, 30, seed=0)
    assert all(text.strip() for text in cut["query"])
    with pytest.raises(RecipeError, match="blank"):
        cut_prompts(" \n" * 9, character_tokenizer("a b.\n"), length, 30, seed=0)


def test_windows_lie_anywhere_in_the_text_and_follow_from_the_seed():
    ids = encode(LINES[:200], character_tokenizer(LINES))
    windows, again, other = (RandomWindows(ids, 10, 3000, seed=seed) for seed in (0, 0, 1))
    assert len(windows) == 3000
    assert set(windows.starts) == set(range(191))  # every place, the first and the last too
    assert windows[7]["input_ids"] == ids[windows.starts[7] :][:10].tolist()
    assert windows.starts == again.starts != other.starts
