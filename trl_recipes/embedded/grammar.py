"""A small generator: text from a grammar and a seed, the same bytes on every machine and Python."""

import re
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import yaml

OTHER = {"+": "-", "-": "+"}  # mood
REFERENCE = re.compile(r"<([~@]?)(\w+)>")
A_BEFORE_VOWEL = re.compile(r"\b([Aa]) (?=(?!uni(?!n)|use|one\b|eu)[aeiou]|hour|honest)")
FIRST_LETTER = re.compile(r"(?:^|(?<=[.!?] ))[a-z]")


class Choice(NamedTuple):
    """One alternative of a symbol: texts, and a mark and a symbol for each reference."""

    parts: tuple[str | tuple[str, str], ...]
    is_word: bool  # holds no reference


Grammar = dict[str, list[Choice]]


def read_yaml(name: str) -> dict[str, Any]:
    """Read one of the data files beside this module."""
    return yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8"))


def parse_grammar(rules: dict[str, str]) -> Grammar:
    """Read rules, written as reviews.yaml says, into the alternatives of each symbol and mood.

    The keys are such as "adj+" and "adj-". Raises ValueError for a reference to an unknown symbol.
    """
    choices = {symbol: _choices(body) for symbol, body in rules.items()}
    symbols = dict.fromkeys(symbol.rstrip("+-") for symbol in rules)
    grammar = {
        symbol + mood: choices.get(symbol, []) + choices.get(symbol + mood, [])
        for symbol in symbols
        for mood in "+-"
    }
    for key, alternatives in grammar.items():
        for part in (part for choice in alternatives for part in choice.parts):
            if isinstance(part, tuple) and not all(grammar.get(part[1] + mood) for mood in "+-"):
                raise ValueError(f"the grammar's {key} refers to <{part[1]}>, which is not there")
    return grammar


def _choices(body: str) -> list[Choice]:
    choices = []
    for alternative in body.split(" | "):
        weight, text = re.fullmatch(r"(?:(\d+)\*)?(.*)", alternative.strip()).groups()
        parts = [
            REFERENCE.fullmatch(part).groups() if index % 2 else part
            for index, part in enumerate(re.split(r"(<[~@]?\w+>)", text))
            if part
        ]
        is_word = all(isinstance(part, str) for part in parts)
        choices += [Choice(tuple(parts), is_word)] * int(weight or 1)
    return choices


class Writer:
    """Writes text by a grammar, one piece after another, from a seed."""

    def __init__(self, grammar: Grammar, seed: int):
        self.grammar = grammar
        self.random = Random(seed).random  # Python promises the sequence of this method alone
        self.used: set[str] = set()  # words of the running piece
        self.bound: dict[str, str] = {}  # what is drawn once a piece

    def sentences(self, symbol: str, mood: str) -> str:
        """Expand a symbol, then correct articles and capital letters."""
        text = A_BEFORE_VOWEL.sub(r"\1n ", self.expand(symbol, mood))
        return FIRST_LETTER.sub(lambda letter: letter.group().upper(), text)

    def expand(self, symbol: str, mood: str) -> str:
        """Draw one of a symbol's alternatives, and so on for what it refers to."""
        choice = self._draw(self.grammar[symbol + mood])
        return "".join(p if isinstance(p, str) else self._refer(*p, mood) for p in choice.parts)

    def pick(self, values: list) -> Any:
        """Draw one of several values."""
        return values[int(self.random() * len(values))]

    def _refer(self, mark: str, symbol: str, mood: str) -> str:
        if mark != "@":
            return self.expand(symbol, OTHER[mood] if mark else mood)
        if symbol not in self.bound:
            self.bound[symbol] = self.expand(symbol, mood)
        return self.bound[symbol]

    def _draw(self, choices: list[Choice]) -> Choice:
        """Draw an alternative, and a new one where the piece already has that word."""
        for _ in range(4):
            choice = self.pick(choices)
            if not choice.is_word or choice.parts[0] not in self.used:
                break
        if choice.is_word:
            self.used.add(choice.parts[0])
        return choice
