"""A reward for words: text stays text while something else is rewarded."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trl_recipes.errors import RecipeError
from trl_recipes.rewards.text import completion_texts

WORD = re.compile(r"[^\W\d_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}][^\W\d_]+)*")  # don't is one


class KnownWordsReward:
    """Share of a completion's words that a text has, in either letter case.

    A last word that the end of the completion may have cut is left out.

    Args:
        text: the text, or the .txt file that holds it.
        name: the name in logs; `known_words` when None.

    Raises:
        RecipeError: the file cannot be read, or the text has no words.
    """

    def __init__(self, text: str, *, name: str | None = None):
        self.words = set(words_of(_read(text)))
        if not self.words:
            raise RecipeError("KnownWordsReward: the text has no words. Give one that has.")
        self.__name__ = name or "known_words"

    def __call__(self, completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
        """Look the words of each completion up.

        Args:
            completions: B texts or conversations.
            **kwargs: what else a trainer passes; not used.

        Returns:
            B shares, 0 to 1; None for a completion without a whole word.
        """
        return [self._share(whole_words(text)) for text in completion_texts(completions)]

    def _share(self, words: list[str]) -> float | None:
        return sum(word in self.words for word in words) / len(words) if words else None


def words_of(text: str) -> list[str]:
    """The words of a text, case aside: runs of letters, with apostrophes inside them.

    Args:
        text: any.

    >>> words_of("Don't SHOUT, 3 times")
    ["don't", 'shout', 'times']
    """
    return [word.casefold() for word in WORD.findall(text)]


def whole_words(text: str) -> list[str]:
    """The words of a text that may be cut in its last word, without that one.

    Args:
        text: such as a response that reached its longest length.

    >>> whole_words("It was go"), whole_words("It was good.")
    (['it', 'was'], ['it', 'was', 'good'])
    """
    words = words_of(text)
    return words[:-1] if text[-1:].isalpha() else words


def known_share(texts: Iterable[str], words: set[str]) -> float:
    """Share of all whole words of several texts that are among `words`; nan without any.

    Args:
        texts: each may be cut in its last word.
        words: in lower case.
    """
    found = [word for text in texts for word in whole_words(text)]
    return sum(word in words for word in found) / len(found) if found else float("nan")


def _read(text_or_file: str) -> str:
    if not text_or_file.endswith(".txt"):
        return text_or_file
    try:
        return Path(text_or_file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"KnownWordsReward: `{text_or_file}` could not be read as text ({error}). Give a UTF-8 "
            "text file, or the text itself."
        ) from error
