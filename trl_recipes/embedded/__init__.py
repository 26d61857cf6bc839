"""The offline default: film reviews that the project writes, and small models trained on them.

Nothing is downloaded. The reviews come from a grammar (`corpus`, reviews.yaml); a GPT-2 and a
sentiment classifier, trained on them by `make embedded`, lie in the folder `models`.
"""

from functools import lru_cache
from pathlib import Path

from trl_recipes.errors import RecipeError

from . import corpus

__all__ = ["language_model", "reviews", "sentiment_classifier"]

MODELS = Path(__file__).parent / "models"


def language_model() -> Path:
    """Return the folder of the embedded GPT-2, in the hub's format.

    It writes reviews of both moods, half and half, and ends each with `<|endoftext|>`. As GPT-2 it
    has no pad token.
    """
    return MODELS / "language_model"


def sentiment_classifier() -> Path:
    """Return the folder of the embedded `text-classification` model.

    Its labels are NEGATIVE (0) and POSITIVE (1). It reads whole reviews and fragments alike; one
    that says nothing yet gets about 0.5.
    """
    return MODELS / "sentiment_classifier"


def reviews(split: str) -> list[dict[str, str | int]]:
    """Return the embedded reviews of a split, the same on every machine.

    Both models learn from "train"; the others are "prompts" and "heldout", and no text is in two.
    Rows are {"text": the review, "label": 1 for a positive verdict, 0 for a negative}, in turn.
    """
    if split not in corpus.SPLITS:
        raise RecipeError(
            f"The embedded reviews have no split {split!r}. Use {', '.join(corpus.SPLITS)}."
        )
    return [dict(row) for row in _all_reviews()[split]]


@lru_cache(maxsize=1)
def _all_reviews() -> dict[str, list[dict[str, str | int]]]:
    return corpus.write_reviews()
