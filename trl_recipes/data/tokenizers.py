"""Tokenizers made from texts: one whose tokens are characters, and byte-level BPE."""

from collections.abc import Iterable, Sequence
from typing import Literal

import regex
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trl_recipes.errors import RecipeError

END = "<|endoftext|>"
PAD = "<|pad|>"
_ANY = r"[\s\S]"  # one character, a line break too
_NO_UNKNOWN = "<|no token|>"  # not in the vocabulary, so that an unknown character is an error
# GPT-2's tokens, none that ends a text, and T5's.
_SPECIAL_TOKENS = {
    "causal": {"bos_token": END, "eos_token": END},
    "classifier": {"pad_token": PAD},
    "seq2seq": {"pad_token": "<pad>", "eos_token": "</s>"},
}


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    kind: Literal["causal", "classifier", "seq2seq"] = "causal",
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer for a kind of model; `vocab_size` counts special tokens too.

    Text that is encoded and decoded comes back unchanged. A classifier's ignores case, and treats
    a text's first word like others; an encoder-decoder's ends each text with `</s>`.
    """
    named = _SPECIAL_TOKENS[kind]
    special = list(dict.fromkeys(named.values()))
    if vocab_size < 256 + len(special):
        raise RecipeError(
            f"--vocab_size is {vocab_size}. Use {256 + len(special)} or more: 256 bytes and "
            f"{' and '.join(special)}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "classifier")
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "classifier":
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if kind == "seq2seq":
        end = named["eos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def character_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer of the characters that a text has, one token each.

    Whatever is made of these characters comes back unchanged, even the names of the special tokens:
    `<|endoftext|>` (bos and eos, as in GPT-2) and `<|pad|>`, which stand behind the characters in
    the order of their code points. Encoding an unknown character fails; see `check_characters`.
    """
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


def is_character_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer is one of `character_tokenizer`, made here or loaded."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and getattr(backend.model, "unk_token", None) == _NO_UNKNOWN


def check_characters(
    texts: str | Iterable[str], tokenizer: PreTrainedTokenizerBase, where: str
) -> None:
    """Refuse a text with characters that a character tokenizer never saw."""
    if not is_character_tokenizer(tokenizer):
        return
    known = {token for token in tokenizer.get_vocab() if len(token) == 1}
    for number, text in enumerate([texts] if isinstance(texts, str) else texts, 1):
        unknown = sorted(set(text) - known)
        if unknown:
            shown = ", ".join(f"{mark!r} (U+{ord(mark):04X})" for mark in unknown[:5])
            raise RecipeError(
                f"{where}: text {number} holds characters that the tokenizer was not made from: "
                f"{shown}. Remove them, or train with a text that has them."
            )


def appended_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Count the tokens, such as EOS or SEP, that a tokenizer by itself puts behind a text."""
    first = text.strip()[:1]
    mask = tokenizer(first, return_special_tokens_mask=True)["special_tokens_mask"] if first else []
    return len(mask) - max((i + 1 for i, special in enumerate(mask) if not special), default=0)


def cut_length(ids: Sequence[int], length: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """Find how many tokens, at most `length` if the first allows, end with a whole character."""
    if length < 1:
        return 0
    tried = (*range(min(length, len(ids)), 0, -1), *range(length + 1, len(ids)))
    return next((end for end in tried if _ends_whole(ids, end, tokenizer)), len(ids))


def _ends_whole(ids: Sequence[int], end: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    if end == len(ids):
        return True
    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    text = tokenizer.decode(ids[:end], **plain)
    longer = tokenizer.decode(ids[: end + 8], **plain)  # no character has more bytes than 4
    if longer.startswith(text):
        return text != "" and starts_character(longer, len(text))
    return not text.endswith("\ufffd")  # bytes that are no character yet


def starts_character(text: str, place: int) -> bool:
    """Whether a character begins at a place of a text, rather than a mark of the one before."""
    return place >= len(text) or len(regex.findall(r"\X", text[: place + 1][-32:])[-1]) == 1
