"""A tokenizer whose tokens are the characters of a text."""

from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trl_recipes.errors import RecipeError

END = "<|endoftext|>"
PAD = "<|pad|>"
_ANY = r"[\s\S]"  # one character, a line break too


def character_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer of the characters that a text has, one token each.

    Whatever is made of these characters comes back unchanged from encoding and decoding: line
    breaks of every kind, tabs, combining marks, even the names of the special tokens. The tokens
    stand in the order of their code points; behind them `<|endoftext|>` (bos and eos, as in GPT-2)
    and `<|pad|>`, which no text contains. There is no token for unknown characters, because it
    would lose them: encoding one fails. `check_characters` says which, and where.

    Args:
        text: at least one character.

    Raises:
        RecipeError: the text is empty.
    """
    if not text:
        raise RecipeError("The text to make a tokenizer of is empty. Give one with characters.")
    vocabulary = {character: token for token, character in enumerate(sorted(set(text)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_NO_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_ANY), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()  # joins without spaces
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # a text that spells `<|pad|>` means its seven characters
    )


_NO_UNKNOWN = "<|no token|>"  # not in the vocabulary, so that an unknown character is an error


def is_character_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer is one of `character_tokenizer`, made here or loaded.

    Args:
        tokenizer: any.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and getattr(backend.model, "unk_token", None) == _NO_UNKNOWN


def check_characters(
    texts: str | Iterable[str] | Mapping[str, str], tokenizer: PreTrainedTokenizerBase, where: str
) -> None:
    """Refuse a text with characters that a character tokenizer never saw.

    Args:
        texts: one text, or several.
        tokenizer: any; one that is not of characters is left alone.
        where: where the text comes from, for the message.

    Raises:
        RecipeError: says which characters, and where the first one stands.
    """
    if not is_character_tokenizer(tokenizer):
        return
    known: dict[str, Any] = tokenizer.get_vocab()
    for number, text in enumerate([texts] if isinstance(texts, str) else texts, 1):
        unknown = sorted(set(text) - {token for token in known if len(token) == 1})
        if not unknown:
            continue
        first = min(map(text.index, unknown))
        line = text.count("\n", 0, first) + 1
        column = first - text.rfind("\n", 0, first)
        row = "" if isinstance(texts, str) else f"text {number}, "
        shown = ", ".join(_shown(character) for character in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise RecipeError(
            f"{where}: the characters {shown}{more} are not in the text that the tokenizer was "
            f"made from; the first, {_shown(text[first])}, is in {row}line {line}, column {column}."
            " Remove them, or train with a text that has them."
        )


def _shown(character: str) -> str:
    """A character with its code point, which tells apart those that look alike."""
    return f"{character!r} (U+{ord(character):04X})"
