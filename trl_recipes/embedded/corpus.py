"""Film reviews that the project writes: half of them positive, none twice."""

from .grammar import Writer, parse_grammar, read_yaml

SPLITS = {"train": 18_000, "prompts": 4_000, "heldout": 2_000}  # reviews, half of them positive
SEED = 20_240


def write_reviews(
    splits: dict[str, int] = SPLITS, seed: int = SEED
) -> dict[str, list[dict[str, str | int]]]:
    """Write so many distinct reviews for each split, positive and negative in turn.

    Returns rows {"text": the review, "label": 1 positive or 0 negative} by split. No text stands
    twice, in one split or in two.
    """
    writer, seen, written = Writer(parse_grammar(read_yaml("reviews")), seed), set(), {}
    for split, size in splits.items():
        rows = written[split] = []
        while len(rows) < size:
            label = 1 - len(rows) % 2
            writer.used, writer.bound = set(), {}
            text = writer.sentences("review", "+" if label else "-")
            if text not in seen:
                seen.add(text)
                rows.append({"text": text, "label": label})
    return written
