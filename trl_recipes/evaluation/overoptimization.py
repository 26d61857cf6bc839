"""Over-optimisation: where a learnt score still rises and a judge that nothing optimises falls.

A reward model is right about texts like those that it learnt from. The further a policy moves from
the reference, the more it finds what the reward model overrates: the learnt score goes on rising
while the true one turns (Gao, Schulman and Hilton 2022, "Scaling laws for reward model
overoptimization", figure 1). Both are drawn here as there, against the KL from the reference, on
the scale of its square root. A judge is a function given to the trainer as one of its `metrics`,
for which higher is better.

Score and judge have different units. Each is shown as its gain since the start, over the spread of
single responses at the start: at 1 the mean response is where one in six stood before training.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trl_recipes.describe import printable
from trl_recipes.errors import RecipeError
from trl_recipes.report.plots import (
    COLORS,
    GREY,
    Picture,
    moving_average,
    plot_stats,
    save_figure,
    style_axes,
)
from trl_recipes.stats import steps_of

SCORE = "env/reward_mean"
KL = "objective/kl"
# Chance that a run whose judge does not fall is said to part: of all windows together.
FALSE_ALARM = 0.01
# A fall smaller than this is not worth a word, in spreads of the start's responses.
SMALLEST = 0.1


class Parting(NamedTuple):
    """Where score and judge part; gains are in spreads of the start's responses."""

    step: int  # the middle of the window in which the judge was highest
    kl: float  # nats per response there
    fall: float  # of the judge, from there to the end
    rise: float  # of the score, from there to the end


class _Course(NamedTuple):
    """What a run did, step by step: arrays of shape (N,), gains in spreads of the start."""

    steps: np.ndarray
    kl: np.ndarray
    score: np.ndarray
    judge: np.ndarray
    window: int


def find_parting(
    all_stats: Sequence[Mapping[str, Any]], judge: str, score: str = SCORE
) -> Parting | None:
    """Find from where on the judge fell while the score rose.

    The highest mean of a tenth of the steps is held against the mean of the last tenth. A fall
    counts where chance alone, given how much single steps jump, would make one in less than
    `FALSE_ALARM` of runs (Bonferroni over the windows, because the highest was picked), and where
    it exceeds `SMALLEST`. The rise of the score between the same windows is held to the same
    chance.

    Args:
        all_stats: one row a step.
        judge: key of the judge's mean, such as `metrics/vader/mean`.
        score: key of the mean of what is optimised.

    Returns:
        None where they do not part, or there are fewer than two windows of steps.
    """
    course = _course(all_stats, judge, score)
    window = course.window
    windows = len(course.steps) - 2 * window + 1  # that do not reach into the last one
    if windows < 1:
        return None
    means = np.convolve(course.judge, np.ones(window) / window, mode="valid")
    best = int(means[:windows].argmax())
    fall = means[best] - means[-1]
    scores = np.convolve(course.score, np.ones(window) / window, mode="valid")
    rise = scores[-1] - scores[best]
    needed = _quantile(windows) * _standard_error(course.judge, window)
    if fall <= max(needed, SMALLEST):
        return None
    if rise <= _quantile(1) * _standard_error(course.score, window):
        return None
    middle = slice(best, best + window)
    step = int(course.steps[best + window // 2])
    return Parting(step, float(course.kl[middle].mean()), float(fall), float(rise))


def overoptimisation(
    all_stats: Sequence[Mapping[str, Any]], judge: str, score: str = SCORE
) -> str | None:
    """Say in a sentence from where on the judge fell while the score rose.

    Args:
        all_stats: one row a step.
        judge: key of the judge's mean, such as `metrics/vader/mean`.
        score: key of the mean of what is optimised.

    Returns:
        None where they do not part; see `find_parting`.

    Raises:
        RecipeError: no row holds the judge, the score or the KL.
    """
    found = find_parting(all_stats, judge, score)
    if found is None:
        return None
    return (
        f"Score and judge part: from about step {found.step} on (KL {found.kl:.2g} nats a "
        f"response) `{_name(judge)}` fell by {found.fall:.2f} spreads of the start's responses "
        f"while the learnt score rose by {found.rise:.2f}. If `{_name(judge)}` is what is wanted, "
        "the policy over-optimises its reward from there on: stop there (--max_steps), raise "
        "--init_kl_coef, or better the reward."
    )


def plot_overoptimisation(
    all_stats: Sequence[Mapping[str, Any]],
    judge: str,
    score: str = SCORE,
    path: str | Path | None = None,
    title: str | None = None,
) -> Figure:
    """Draw learnt score and judge against the KL from the reference.

    Args:
        all_stats: one row a step, of a run with metrics.
        judge: key of the judge's mean, such as `metrics/vader/mean`.
        score: key of the mean of what is optimised.
        path: where to save the PNG; None saves nothing.
        title: what the picture shows, such as the run's name.

    Returns:
        The figure; a notebook shows it.

    Raises:
        RecipeError: no row holds the judge, the score or the KL.
    """
    course, found = _course(all_stats, judge, score), find_parting(all_stats, judge, score)
    figure = Picture(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    kl = np.clip(course.kl, 0, None)  # the estimate of a KL near 0 goes below it by chance
    for values, name, color in (
        (course.score, "learnt score", COLORS[0]),
        (course.judge, f"judge ({_name(judge)}), not optimised", COLORS[1]),
    ):
        axes.plot(kl, values, "o", color=color, markersize=3.5, alpha=0.3, markeredgewidth=0)
        average = moving_average(values, course.window)
        line = np.clip(moving_average(course.kl, course.window), 0, None)
        axes.plot(line, average, color=color, linewidth=2.4, label=name.replace("$", r"\$"))
    axes.axhline(0, color="black", linewidth=0.8)
    if found is not None:
        _draw_parting(axes, found)
    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.clip(x, 0, None)), np.square))
    axes.set_xlim(0, max(1e-3, 1.03 * kl.max()))
    axes.set_xlabel("KL from the reference, nats per response (scale of its square root)")
    axes.set_ylabel("gain, in spreads of the start's responses")
    axes.legend(loc="upper left", frameon=False)
    style_axes(axes, "Points: single steps; lines: moving averages", grid="y")
    verdict = (
        "score and judge do not part"
        if found is None
        else f"from step {found.step} on the judge falls while the score rises"
    )
    shown = printable(title).replace("$", r"\$") + ": " if title else ""
    figure.suptitle(shown + (verdict if title else verdict.capitalize()))
    return save_figure(figure, path)


def plot_run(
    all_stats: Sequence[Mapping[str, Any]], folder: str | Path, title: str | None = None
) -> list[str]:
    """Draw what the statistics of a run hold: its course, and the score beside each metric.

    Args:
        all_stats: one row a step.
        folder: for `training.png` and an `overoptimisation_<name>.png` for each metric.
        title: what the pictures show, such as the run's name.

    Returns:
        A sentence for each metric that fell while the score rose.
    """
    plot_stats(all_stats, Path(folder) / "training.png", title=title)
    said = []
    for judge in judges_of(all_stats):
        name = re.sub(r"\W+", "_", _name(judge))
        picture = Path(folder) / f"overoptimisation_{name}.png"
        plot_overoptimisation(all_stats, judge, path=picture, title=title)
        said.append(overoptimisation(all_stats, judge))
    return [sentence for sentence in said if sentence is not None]


def judges_of(all_stats: Sequence[Mapping[str, Any]]) -> list[str]:
    """Give the keys of the means of all metrics that a run logged, in their order.

    Args:
        all_stats: one row a step.
    """
    keys = dict.fromkeys(key for row in all_stats for key in row)
    return [key for key in keys if key.startswith("metrics/") and key.endswith("/mean")]


def _course(all_stats: Sequence[Mapping[str, Any]], judge: str, score: str) -> _Course:
    """Steps at which all three are known, with gains standardised."""
    for key in (judge, score, KL):
        if not any(key in row for row in all_stats):
            raise RecipeError(
                f"No row of all_stats holds `{key}`. Its metrics are: "
                f"{', '.join(judges_of(all_stats)) or 'none'}; give the judge to the trainer as "
                "one of its `metrics`."
            )
    columns = [[row.get(key) for row in all_stats] for key in (KL, score, judge)]
    kl, scores, judged = (
        np.array([math.nan if v is None else float(v) for v in column]) for column in columns
    )
    known = np.isfinite(kl) & np.isfinite(scores) & np.isfinite(judged)
    steps = np.array(steps_of(all_stats))[known]
    rows = [row for row, keep in zip(all_stats, known, strict=True) if keep]
    window = max(3, len(rows) // 10)
    return _Course(
        steps,
        kl[known],
        _gains(scores[known], rows, score, window),
        _gains(judged[known], rows, judge, window),
        window,
    )


def _gains(values: np.ndarray, rows: list[Mapping[str, Any]], key: str, window: int) -> np.ndarray:
    """Gains since the first window, over the spread of its responses.

    Where the run did not log the spread, or all responses began alike (a true reward that none
    earned yet), the spread is that of the steps' means.
    """
    if not len(values):
        return values
    logged = [row.get(key.removesuffix("mean") + "std") for row in rows[:window]]
    spreads = [float(value) for value in logged if value is not None and math.isfinite(value)]
    spread = sum(spreads) / len(spreads) if spreads else 0.0
    spread = spread if spread > 1e-8 else float(values.std())
    return (values - values[:window].mean()) / (spread if spread > 1e-8 else 1.0)


def _standard_error(values: np.ndarray, window: int) -> float:
    """Of the difference of two windows' means, from how much neighbouring steps differ.

    Differences of neighbours hold twice the variance of one step and hardly any of the trend (von
    Neumann 1941).
    """
    variance = float(np.mean(np.diff(values) ** 2)) / 2
    return math.sqrt(2 * variance / window)


def _quantile(comparisons: int) -> float:
    return NormalDist().inv_cdf(1 - FALSE_ALARM / comparisons)


def _draw_parting(axes: Axes, found: Parting) -> None:
    axes.axvline(max(found.kl, 0), color=GREY, linestyle=(0, (4, 3)), linewidth=1.2)
    axes.annotate(
        f"part here: step {found.step}, {found.kl:.2g} nats",
        (max(found.kl, 0), 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(4, 3),
        textcoords="offset points",
        color=GREY,
        fontsize=9,
    )


def _name(key: str) -> str:
    """The function's own name out of its key."""
    return printable(key.removeprefix("metrics/").removeprefix("rewards/").removesuffix("/mean"))
