"""The character tokenizer gives back every character, saved and loaded too."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trl_recipes.data.tokenizers import (
    character_tokenizer,
    check_characters,
    is_character_tokenizer,
)
from trl_recipes.errors import RecipeError
from trl_recipes.training.characters import encode

# all that a UTF-8 file can hold: everything but halves of surrogate pairs
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
ODD = "a\r\n\n\t\x0b\x00 e\u0301 \ufeff\u2028\u200d\U0001f600 don 't <|pad|><|endoftext|> ."


@given(TEXT)
@example(ODD)
@example(" ")
@example("<|endoftext|>")
def test_every_text_comes_back_character_for_character(text):
    tokenizer = character_tokenizer(text)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.batch_decode([ids], skip_special_tokens=True) == [text]


@given(text=TEXT)
@example(text=ODD)
@settings(max_examples=15, deadline=None)
def test_a_loaded_tokenizer_gives_the_same_ids(text, tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("saved"), character_tokenizer(text)
    tokenizer.save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert is_character_tokenizer(loaded)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "padding_side"):
        assert getattr(loaded, name) == getattr(tokenizer, name)


@given(TEXT)
def test_ids_are_places_in_the_sorted_characters(text):
    characters = sorted(set(text))
    tokenizer = character_tokenizer(text)
    expected = [characters.index(character) for character in text]
    assert tokenizer(text)["input_ids"] == expected
    assert torch.equal(encode(text, tokenizer), torch.tensor(expected))


def test_end_and_pad_are_two_tokens_that_no_text_has():
    tokenizer = character_tokenizer("abc")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 3
    assert tokenizer.pad_token_id == 4
    assert len(tokenizer) == 5
    padded = tokenizer(["ab", "abc"], padding=True)
    assert padded["input_ids"] == [[4, 0, 1], [0, 1, 2]]
    assert padded["attention_mask"] == [[0, 1, 1], [1, 1, 1]]


def test_an_unknown_character_is_never_lost_silently():
    with pytest.raises(Exception, match="WordLevel"):
        character_tokenizer("abc")("abd")


def test_unknown_characters_are_named_with_their_text_and_other_tokenizers_left_alone(tokenizer):
    known, told = character_tokenizer("ab\n"), r"text 2 holds .*'x' .U\+0078., 'é' .U\+00E9."
    with pytest.raises(RecipeError, match=f"^--prompt: {told}"):
        check_characters(["ab", "ab\naxé"], known, "--prompt")
    assert not is_character_tokenizer(tokenizer)
    check_characters("é", tokenizer, "here")


@given(TEXT, TEXT)
def test_exactly_unknown_characters_are_refused(known, text):
    tokenizer = character_tokenizer(known)
    if set(text) <= set(known):
        check_characters(text, tokenizer, "here")
    else:
        with pytest.raises(RecipeError, match=r"^here: "):
            check_characters(text, tokenizer, "here")
