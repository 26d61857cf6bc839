"""Rewards that only look at the letters of a completion."""

import re
from collections.abc import Sequence
from typing import Any

from trl_recipes.errors import RecipeError
from trl_recipes.rewards.text import completion_texts


class KeywordReward:
    """Share of the keywords that a completion holds, as whole words, in either letter case.

    Args:
        keywords: words or phrases; white space in a phrase stands for any.
        name: the name in logs; `keywords` when None.

    Raises:
        RecipeError: there is no keyword, or an empty one.

    >>> KeywordReward(["plot", "C++"])(["The plot thickens.", "Plots in c++"])
    [0.5, 0.5]
    """

    def __init__(self, keywords: Sequence[str], *, name: str | None = None):
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
        self.__name__ = name or "keywords"

    def __call__(self, completions: Sequence[Any], **kwargs: Any) -> list[float]:
        """Look for the keywords in each completion.

        Args:
            completions: B texts or conversations.
            **kwargs: what else a trainer passes; not used.

        Returns:
            B shares, 0 to 1.
        """
        return [
            sum(pattern.search(text) is not None for pattern in self.patterns) / len(self.patterns)
            for text in completion_texts(completions)
        ]


class RegexReward:
    """1 where a regular expression is found in a completion, else 0.

    Args:
        pattern: Python's syntax; start it with `(?i)` for either letter case and with `(?s)` where
            a dot may be a new line.
        whole: the pattern must match the whole completion, not a part of it.
        name: the name in logs; `regex` when None.

    Raises:
        RecipeError: the pattern cannot be read.

    >>> RegexReward("[0-9]+", whole=True)(["42", "about 42"])
    [1.0, 0.0]
    """

    def __init__(self, pattern: str, *, whole: bool = False, name: str | None = None):
        try:
            compiled = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise RecipeError(
                f"RegexReward: the pattern {pattern!r} cannot be read ({error}). Mend it."
            ) from error
        self.match = compiled.fullmatch if whole else compiled.search
        self.__name__ = name or "regex"

    def __call__(self, completions: Sequence[Any], **kwargs: Any) -> list[float]:
        """Match each completion.

        Args:
            completions: B texts or conversations.
            **kwargs: what else a trainer passes; not used.

        Returns:
            B values, 0 or 1.
        """
        return [float(self.match(text) is not None) for text in completion_texts(completions)]


class UppercaseReward:
    """Share of the letters of a completion that are upper case: how much it shouts.

    Letters of scripts without case do not count. A completion without letters gets 0.

    Args:
        name: the name in logs; `uppercase` when None.

    >>> UppercaseReward()(["NO!", "No", "42"])
    [1.0, 0.5, 0.0]
    """

    def __init__(self, *, name: str | None = None):
        self.__name__ = name or "uppercase"

    def __call__(self, completions: Sequence[Any], **kwargs: Any) -> list[float]:
        """Measure each completion.

        Args:
            completions: B texts or conversations.
            **kwargs: what else a trainer passes; not used.

        Returns:
            B shares, 0 to 1.
        """
        return [_upper_share(text) for text in completion_texts(completions)]


def _upper_share(text: str) -> float:
    upper = sum(character.isupper() for character in text)
    cased = upper + sum(character.islower() for character in text)
    return upper / cased if cased else 0.0
