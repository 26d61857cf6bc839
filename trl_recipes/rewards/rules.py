"""Rewards that only look at a completion's text or token ids.

Penalties are positive; weigh them -1. `Rewards`, and with it PPOTrainer, gives them that weight
where none is named. TRL's own trainers weigh everything 1 unless told: give them `reward_weights`.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from trl_recipes.data.conversations import Texts, completion_texts
from trl_recipes.data.files import read_text
from trl_recipes.errors import RecipeError

WORD = re.compile(r"[^\W\d_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}][^\W\d_]+)*")  # don't is one


class KeywordReward:
    """Share of the keywords that a completion holds, as whole words, in either letter case.

    >>> KeywordReward(["plot", "C++"])(["The plot thickens.", "Plots in c++"])
    [0.5, 0.5]
    """

    def __init__(self, keywords: Sequence[str]):
        keywords = [keywords] if isinstance(keywords, str) else list(keywords)
        if not keywords or not all(isinstance(k, str) and k.strip() for k in keywords):
            raise RecipeError(
                f"KeywordReward: the keywords are {keywords!r}. Give at least one word, and no "
                "empty one."
            )
        # Not \b, which finds no border beside a sign: keywords such as "C++" end in one.
        self.patterns = [
            re.compile(
                r"(?<!\w)" + r"\s+".join(map(re.escape, k.split())) + r"(?!\w)", re.IGNORECASE
            )
            for k in keywords
        ]
        self.__name__ = "keywords"

    def __call__(self, completions: Texts, **kwargs: Any) -> list[float]:
        """Return each completion's share, 0 to 1."""
        return [
            sum(pattern.search(text) is not None for pattern in self.patterns) / len(self.patterns)
            for text in completion_texts(completions)
        ]


class RegexReward:
    """1 where a regular expression is found in a completion, or with `whole` is all of it, else 0.

    >>> RegexReward("[0-9]+", whole=True)(["42", "about 42"])
    [1.0, 0.0]
    """

    def __init__(self, pattern: str, *, whole: bool = False):
        try:
            compiled = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise RecipeError(
                f"RegexReward: the pattern {pattern!r} cannot be read ({error}). Fix it."
            ) from error
        self.match = compiled.fullmatch if whole else compiled.search
        self.__name__ = "regex"

    def __call__(self, completions: Texts, **kwargs: Any) -> list[float]:
        """Match each completion."""
        return [float(self.match(text) is not None) for text in completion_texts(completions)]


class UppercaseReward:
    """Share of the letters of a completion that are upper case: how much it shouts.

    >>> UppercaseReward()(["NO!", "No", "42"])
    [1.0, 0.5, 0.0]
    """

    def __init__(self):
        self.__name__ = "uppercase"

    def __call__(self, completions: Texts, **kwargs: Any) -> list[float]:
        """Measure each completion, 0 to 1; what has no letters gets 0."""
        shares = []
        for text in completion_texts(completions):
            upper, lower = sum(map(str.isupper, text)), sum(map(str.islower, text))
            shares.append(upper / (upper + lower) if upper + lower else 0.0)
        return shares


class KnownWordsReward:
    """Share of a completion's words that a text, or a .txt file, has, in either letter case."""

    def __init__(self, text: str):
        self.words = set(words_of(text_of(text, "KnownWordsReward")))
        if not self.words:
            raise RecipeError("KnownWordsReward: the text has no words. Give one that has.")
        self.__name__ = "known_words"

    def __call__(self, completions: Texts, **kwargs: Any) -> list[float | None]:
        """Return each completion's share, 0 to 1; None for one without a whole word."""
        return [
            sum(word in self.words for word in words) / len(words) if words else None
            for words in map(whole_words, completion_texts(completions))
        ]


class LengthPenalty:
    """1 where a completion is longer than `max_length`, else 0.

    The `unit` is "tokens" (an end token counts), "words" or "characters". With `soft` the penalty
    rises evenly from 0, at `max_length`, to 1 over that many.

    >>> LengthPenalty(2, unit="words", soft=4)(["a b", "a b c"], [[], []])
    [0.0, 0.25]
    """

    default_weight = -1.0

    def __init__(
        self,
        max_length: int,
        *,
        unit: Literal["tokens", "words", "characters"] = "tokens",
        soft: int = 0,
    ):
        if unit not in ("tokens", "words", "characters"):
            raise RecipeError(
                f"LengthPenalty: unknown unit {unit!r}. Choose tokens, words or characters."
            )
        for option, value in (("max_length", max_length), ("soft", soft)):
            if not isinstance(value, int) or value < 0:
                raise RecipeError(
                    f"LengthPenalty: {option} is {value!r}. Use a whole number, 0 or more."
                )
        self.max_length, self.unit, self.soft = max_length, unit, soft
        self.__name__ = "length"

    def __call__(
        self, completions: Texts, completion_ids: Sequence[Sequence[int]], **kwargs: Any
    ) -> list[float]:
        """Return each completion's penalty, 0 to 1."""
        if self.unit == "tokens":
            lengths = [len(ids) for ids in completion_ids]
        else:
            texts = completion_texts(completions)
            lengths = [len(text.split() if self.unit == "words" else text) for text in texts]
        excess = [length - self.max_length for length in lengths]
        if self.soft == 0:
            return [float(over > 0) for over in excess]
        return [min(max(over / self.soft, 0.0), 1.0) for over in excess]


class RepetitionPenalty:
    """Share of a completion's n-grams that it has used before: 0 where none comes twice.

    That of `trl.rewards.get_repetition_penalty_reward`, positive; `n` counts tokens.

    >>> RepetitionPenalty(2)([[1, 2, 1, 2, 1], [1, 2, 3]])  # of four pairs two are new
    [0.5, 0.0]
    """

    default_weight = -1.0

    def __init__(self, n: int = 3):
        if not isinstance(n, int) or n < 1:
            raise RecipeError(f"RepetitionPenalty: n is {n!r}. Use a whole number, 1 or more.")
        self.n = n
        self.__name__ = "repetition"

    def __call__(self, completion_ids: Sequence[Sequence[int]], **kwargs: Any) -> list[float]:
        """Return each completion's penalty, below 1; 0 for what is shorter than n."""
        penalties = []
        for ids in completion_ids:
            ngrams = list(zip(*(ids[start:] for start in range(self.n)), strict=False))
            penalties.append(1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0)
        return penalties


def words_of(text: str) -> list[str]:
    """List the words of a text, case aside: runs of letters, with apostrophes inside them."""
    return [word.casefold() for word in WORD.findall(text)]


def whole_words(text: str) -> list[str]:
    """List the words of a text without a last one that may be cut ("go" of "going")."""
    words = words_of(text)
    return words[:-1] if text[-1:].isalpha() else words


def known_share(texts: Iterable[str], words: set[str]) -> float:
    """Return the share of all whole words of several texts that are among `words`, or nan."""
    found = [word for text in texts for word in whole_words(text)]
    return sum(word in words for word in found) / len(found) if found else float("nan")


def text_of(text_or_file: str, source: str) -> str:
    """Return the text itself, or what the .txt file holds that it names."""
    is_file = isinstance(text_or_file, str) and text_or_file.endswith(".txt")
    return read_text(text_or_file, source) if is_file else text_or_file
