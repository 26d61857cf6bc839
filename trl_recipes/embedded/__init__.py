"""The offline default: film reviews that the project writes, and small models trained on them.

Nothing is downloaded. The reviews come from a grammar (reviews.yaml); a GPT-2 and a sentiment
classifier, trained on them by `make embedded`, lie in the folder `models`.
"""

from functools import lru_cache
from pathlib import Path

from .grammar import Writer, parse_grammar, read_yaml

__all__ = ["language_model", "reviews", "sentiment_classifier"]

MODELS = Path(__file__).parent / "models"
# Reviews, half of them positive; both models learn from "train".
SPLITS = {"train": 18_000, "prompts": 4_000, "heldout": 2_000}
SEED = 20_240

Review = dict[str, str | int]


def language_model() -> Path:
    """Return the folder of the embedded GPT-2, which writes reviews of both moods."""
    return MODELS / "language_model"


def sentiment_classifier() -> Path:
    """Return the folder of the embedded classifier of reviews: NEGATIVE (0), POSITIVE (1)."""
    return MODELS / "sentiment_classifier"


def reviews(split: str) -> list[Review]:
    """Return the embedded reviews of a split, the same on every machine: columns text and label."""
    return [dict(row) for row in write_reviews()[split]]


@lru_cache(maxsize=1)
def write_reviews() -> dict[str, list[Review]]:
    """Write the distinct reviews of each split, positive (1) and negative (0) in turn."""
    writer, seen, written = Writer(parse_grammar(read_yaml("reviews")), SEED), set(), {}
    for split, size in SPLITS.items():
        rows = written[split] = []
        while len(rows) < size:
            label = 1 - len(rows) % 2
            writer.used, writer.bound = set(), {}
            text = writer.sentences("review", "+" if label else "-")
            if text not in seen:
                seen.add(text)
                rows.append({"text": text, "label": label})
    return written
