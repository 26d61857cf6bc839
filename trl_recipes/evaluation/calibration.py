"""Calibration: whether a model that says 0.8 is right in 8 of 10 cases.

Predictions are put into bins; in each, the mean prediction is held against what was observed (Guo
et al. 2017, "On calibration of modern neural networks", equations 1 to 3).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trl_recipes.report.plots import COLORS, GREY, Picture, save_figure, style_axes

BINS = 10


class Bin(NamedTuple):
    """The predictions of one bin: how many, their mean, and the mean of what was observed.

    Attributes:
        count: of predictions.
        predicted: mean of what was predicted.
        observed: mean of what was observed.
    """

    count: int
    predicted: float
    observed: float


def reliability(
    predicted: Sequence[float], observed: Sequence[float], edges: Sequence[float] | None = None
) -> list[Bin]:
    """Put predictions into bins and take the means of each.

    Args:
        predicted: probabilities, or predicted numbers, shape (N,).
        observed: 1 where the prediction came true and 0 elsewhere, or the true numbers, shape (N,).
        edges: ascending borders of the bins, the upper one of each included; `BINS` of one width
            between 0 and 1 when None.

    Returns:
        The bins that hold a prediction, from low to high.
    """
    predicted, observed = np.asarray(predicted, dtype=float), np.asarray(observed, dtype=float)
    edges = np.linspace(0, 1, BINS + 1) if edges is None else np.asarray(edges, dtype=float)
    places = np.clip(np.searchsorted(edges, predicted, side="left") - 1, 0, len(edges) - 2)
    inside = [places == place for place in range(len(edges) - 1)]
    return [
        Bin(int(rows.sum()), float(predicted[rows].mean()), float(observed[rows].mean()))
        for rows in inside
        if rows.any()
    ]


def equal_counts(predicted: Sequence[float], bins: int = BINS) -> np.ndarray:
    """Give borders between which about as many predictions lie in each bin.

    Args:
        predicted: predicted numbers, shape (N,).
        bins: how many; fewer where predictions are equal.

    Returns:
        Ascending borders, at least two.
    """
    edges = np.unique(np.quantile(np.asarray(predicted, dtype=float), np.linspace(0, 1, bins + 1)))
    return edges if len(edges) > 1 else np.array([edges[0] - 0.5, edges[0] + 0.5])


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between what was predicted and what was observed, weighed by the bins' counts.

    Args:
        bins: what `reliability` gave.
    """
    total = sum(entry.count for entry in bins)
    return sum(entry.count * abs(entry.predicted - entry.observed) for entry in bins) / total


def plot_reliability(
    bins: Sequence[Bin],
    path: str | Path | None = None,
    *,
    title: str = "",
    predicted: str = "mean confidence",
    observed: str = "share that is right",
) -> Figure:
    """Draw what was observed against what was predicted, and how many predictions each bin holds.

    Args:
        bins: what `reliability` gave.
        path: where to save the PNG; None saves nothing.
        title: above the picture; the calibration error is added.
        predicted: name of the horizontal axis.
        observed: name of the vertical axis.

    Returns:
        The figure; a notebook shows it.
    """
    figure = Picture(figsize=(6, 6.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    x, y = [entry.predicted for entry in bins], [entry.observed for entry in bins]
    ends = min(*x, *y), max(*x, *y)
    upper.plot(ends, ends, color=GREY, linestyle=(0, (4, 3)), linewidth=1.2, label="calibrated")
    upper.plot(x, y, "o-", color=COLORS[0], linewidth=2, label="held out")
    upper.set_ylabel(observed)
    upper.legend(loc="upper left", frameon=False)
    width = 0.6 * min(np.diff(x), default=ends[1] - ends[0] or 1.0)
    lower.bar(x, [entry.count for entry in bins], width=width, color=COLORS[0], alpha=0.5)
    lower.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    lower.set_xlabel(predicted)
    lower.set_ylabel("count")
    error = expected_calibration_error(bins)
    style_axes(upper, f"{title}: " * bool(title) + f"calibration error {error:.3f}", grid="both")
    style_axes(lower, "How many of them", grid="y")
    return save_figure(figure, path)
