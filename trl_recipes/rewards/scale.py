"""What reward functions give on samples of the start model, before any training.

PPO and RLOO weigh the score against a KL price in nats, and one price fits every reward only where
rewards have one unit: their standard deviation on these samples.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator

from trl_recipes.describe import printable
from trl_recipes.rewards.models import SentimentReward

SAMPLES = 256  # of all processes together


class Scale(NamedTuple):
    """Values of one reward function, in its own unit; nan where it gave none."""

    mean: float
    std: float
    least: float
    most: float
    count: int


def measure(values: Sequence[float | None]) -> Scale:
    """Summarize what a reward function gave; None counts for nothing.

    >>> measure([1.0, 3.0, None])
    Scale(mean=2.0, std=1.0, least=1.0, most=3.0, count=2)
    """
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return Scale(math.nan, math.nan, math.nan, math.nan, 0)
    return Scale(fmean(known), pstdev(known), min(known), max(known), len(known))


def rows_to_measure(rows: int, seed: int, accelerator: Accelerator) -> list[int]:
    """Draw the rows of a data set whose responses this process samples to measure rewards."""
    order = np.random.default_rng(seed).permutation(rows)
    return order[accelerator.process_index : SAMPLES : accelerator.num_processes].tolist()


def wants_reference_norm(reward_norm: str, reward_funcs: Iterable[Callable]) -> bool:
    """Whether rewards are normalized: as told, or by default unless all are sentiment logits."""
    # the defaults of the KL coefficients were found for these logits
    if reward_norm != "auto":
        return reward_norm == "reference"
    return not all(isinstance(f, SentimentReward) and f.score == "logit" for f in reward_funcs)


def describe_scales(scales: Mapping[str, Scale], normalized: bool) -> str:
    """Say in a paragraph what each function gave, in its own unit, and how training takes it."""
    each = [
        f"{printable(name)}: mean {s.mean:.4g}, standard deviation {s.std:.3g}, from {s.least:.4g} "
        f"to {s.most:.4g}"
        for name, s in scales.items()
    ]
    count = max(scale.count for scale in scales.values())
    taken = "less its mean, over its standard deviation" if normalized else "as it is"
    return (
        f"Rewards on {count} samples of the start model: {'; '.join(each)}. Each is optimized "
        f"{taken} (reward_norm: {'reference' if normalized else 'none'})."
    )
