"""The offline default: film reviews that the project writes, and small models built from them.

Nothing is downloaded. The reviews come from a grammar (`grammar`, `corpus`); a GPT-2 and a
sentiment classifier are trained on them on first use (`build`) and kept for later (`cache`).
"""

from functools import lru_cache
from pathlib import Path

from trl_recipes.errors import RecipeError

from . import cache, corpus

__all__ = ["language_model", "reviews", "sentiment_classifier"]


def language_model() -> Path:
    """Give the folder of the embedded GPT-2, in the hub's format; built on first use.

    It writes reviews of both moods, half and half, and ends each with `<|endoftext|>`. As GPT-2 it
    has no pad token.

    Raises:
        RecipeError: the cache folder cannot be written.
    """
    return cache.models() / "language_model"


def sentiment_classifier() -> Path:
    """Give the folder of the embedded `text-classification` model; built on first use.

    Its labels are NEGATIVE (0) and POSITIVE (1). It reads whole reviews and fragments alike; one
    that says nothing yet gets about 0.5.

    Raises:
        RecipeError: the cache folder cannot be written.
    """
    return cache.models() / "sentiment_classifier"


def reviews(split: str) -> list[dict[str, str | int]]:
    """Give the embedded reviews of a split, the same on every machine.

    Args:
        split: "train" (both models learn from it), "prompts" or "heldout"; no text is in two.

    Returns:
        Rows {"text": the review, "label": 1 for a positive verdict, 0 for a negative}, in turn.

    Raises:
        RecipeError: there is no such split.
    """
    if split not in corpus.SPLITS:
        raise RecipeError(
            f"The embedded reviews have no split {split!r}. Use {', '.join(corpus.SPLITS)}."
        )
    return [dict(row) for row in _all_reviews()[split]]


@lru_cache(maxsize=1)
def _all_reviews() -> dict[str, list[dict[str, str | int]]]:
    return corpus.write_reviews()
