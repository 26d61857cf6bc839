"""Film reviews written by the embedded grammar: the same bytes on every machine and Python."""

import re
from random import Random
from typing import NamedTuple

from .grammar import FORMS, WORDS

SPLITS = {"train": 18_000, "prompts": 4_000, "heldout": 2_000}  # reviews, half of them positive
SEED = 20_240
OTHER = {"+": "-", "-": "+"}
REFERENCE = re.compile(r"<([~@]?)(\w+)>")
A_BEFORE_VOWEL = re.compile(r"\b([Aa]) (?=(?!uni(?!n)|use|one\b|eu)[aeiou]|hour|honest)")
FIRST_LETTER = re.compile(r"(?:^|(?<=[.!?] ))[a-z]")


class Choice(NamedTuple):
    """One alternative of a symbol: text parts and references, in turn.

    Attributes:
        parts: texts, and a mark and a symbol for each reference.
        is_word: whether it holds no reference.
    """

    parts: tuple[str | tuple[str, str], ...]
    is_word: bool


Grammar = dict[str, list[Choice]]


def parse_grammar(*texts: str) -> Grammar:
    """Read grammar text (see `grammar`) into the alternatives of each symbol and mood.

    Args:
        *texts: parts of the grammar.

    Returns:
        Alternatives under keys such as "adj+" and "adj-"; a likelier one stands there more often.

    Raises:
        ValueError: a reference to a symbol that has no alternatives in one of the moods.
    """
    rules: dict[str, list[str]] = {}
    for text in texts:
        lines = re.sub(r"\n +", " ", text)
        for symbol, body in re.findall(r"^(\w+[+-]?) = (.*)$", lines, re.MULTILINE):
            rules.setdefault(symbol, []).extend(_weighted(body))
    symbols = dict.fromkeys(symbol.rstrip("+-") for symbol in rules)
    grammar = {
        symbol + mood: [
            _choice(text) for text in rules.get(symbol, []) + rules.get(symbol + mood, [])
        ]
        for symbol in symbols
        for mood in "+-"
    }
    for key, choices in grammar.items():
        for part in (part for choice in choices for part in choice.parts):
            if isinstance(part, tuple) and not all(grammar.get(part[1] + mood) for mood in "+-"):
                raise ValueError(f"the grammar's {key} refers to <{part[1]}>, which is not there")
    return grammar


def _weighted(body: str) -> list[str]:
    alternatives = []
    for alternative in body.split(" | "):
        weight, text = re.fullmatch(r"(?:(\d+)\*)?(.*)", alternative.strip()).groups()
        alternatives += [text] * int(weight or 1)
    return alternatives


def _choice(text: str) -> Choice:
    parts: list[str | tuple[str, str]] = []
    for index, part in enumerate(re.split(r"(<[~@]?\w+>)", text)):
        if index % 2:
            parts.append(REFERENCE.fullmatch(part).groups())
        elif part:
            parts.append(part)
    return Choice(tuple(parts), is_word=all(isinstance(part, str) for part in parts))


class Writer:
    """Writes reviews, one after another, from a seed.

    Only `Random.random` is used, because Python promises its sequence for every version; the other
    methods of `random` may change.

    Args:
        seed: decides every review.
    """

    def __init__(self, seed: int):
        self.grammar = parse_grammar(FORMS, WORDS)
        self.random = Random(seed).random

    def review(self, label: int) -> str:
        """Write a review of 1 to 6 sentences; label 1 for a positive verdict, 0 for a negative.

        Args:
            label: of the review.
        """
        self.used: set[str] = set()
        self.bound: dict[str, str] = {}
        text = self._expand("review", "+" if label else "-")
        text = A_BEFORE_VOWEL.sub(r"\1n ", text)
        return FIRST_LETTER.sub(lambda letter: letter.group().upper(), text)

    def _expand(self, symbol: str, mood: str) -> str:
        choice = self._draw(self.grammar[symbol + mood])
        return "".join(
            part if isinstance(part, str) else self._refer(*part, mood) for part in choice.parts
        )

    def _refer(self, mark: str, symbol: str, mood: str) -> str:
        if mark != "@":
            return self._expand(symbol, OTHER[mood] if mark else mood)
        if symbol not in self.bound:
            self.bound[symbol] = self._expand(symbol, mood)
        return self.bound[symbol]

    def _draw(self, choices: list[Choice]) -> Choice:
        """Draw an alternative, and a new one where a review already has that word."""
        for _ in range(4):
            choice = choices[int(self.random() * len(choices))]
            if not choice.is_word or choice.parts[0] not in self.used:
                break
        if choice.is_word:
            self.used.add(choice.parts[0])
        return choice


def write_reviews(
    splits: dict[str, int] = SPLITS, seed: int = SEED
) -> dict[str, list[dict[str, str | int]]]:
    """Write distinct reviews for each split, positive and negative in turn.

    Args:
        splits: how many reviews each split has.
        seed: of the writer.

    Returns:
        For each split its rows: {"text": the review, "label": 1 positive or 0 negative}. No text
        stands twice, in one split or in two.
    """
    writer, seen, written = Writer(seed), set(), {}
    for split, size in splits.items():
        rows = written[split] = []
        while len(rows) < size:
            label = 1 - len(rows) % 2
            text = writer.review(label)
            if text not in seen:
                seen.add(text)
                rows.append({"text": text, "label": label})
    return written
