"""Pictures from what runs leave: score, KL and loss over the steps, and models side by side.

Figures are made with matplotlib's object interface alone, so drawing works without a display, in
threads and in notebooks, and leaves no state behind. A path saves the figure as PNG.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from trl_recipes.describe import printable
from trl_recipes.errors import RecipeError
from trl_recipes.stats import steps_of

if TYPE_CHECKING:
    from trl_recipes.evaluation.compare import Comparison

# Okabe and Ito's colours, which colour-blind readers tell apart, without the pale ones
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":")  # once the colours are used up
GREY = "#5F5F5F"
SCORE_KEYS = ("env/reward_mean", "ppo/mean_scores")  # the raw score where it was kept
DPI = 150


class Panel(NamedTuple):
    """One of the panels below the score.

    Attributes:
        title: stands above it.
        unit: of its axis.
        keys: of all_stats; the first that a run has is drawn.
        points: every step and a moving average, in the place of a line.
        share: from 0 to 100 percent.
    """

    title: str
    unit: str
    keys: tuple[str, ...]
    points: bool = False
    share: bool = False


KL = Panel("KL from the reference", "nats per response", ("objective/kl",))
LENGTH = Panel("Length of the responses", "tokens", ("tokens/responses_len_mean",))
ENTROPY = Panel("Entropy of the next token", "nats per token", ("entropy", "ppo/policy/entropy"))
PPO_PANELS = (
    KL,
    Panel("KL coefficient", "score per nat", ("objective/kl_coef",)),
    Panel("Total loss", "loss", ("ppo/loss/total",), points=True),
)
GROUP_PANELS = (  # of GRPO and RLOO, whose loss is near 0 and tells nothing
    Panel("Score's spread in a group", "standard deviation", ("groups/reward_std",), points=True),
    Panel("Groups without any spread", "share of groups", ("groups/equal",), share=True),
    KL,
    LENGTH,
    ENTROPY,
)
SHARED_PANELS = (KL, LENGTH, ENTROPY)  # what every algorithm logs


class Picture(Figure):
    """A matplotlib Figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)  # as wide as a notebook's column
        return buffer.getvalue()


def plot_stats(
    all_stats: Sequence[Mapping[str, Any]],
    path: str | Path | None = None,
    title: str | None = None,
    kl_target: float | None = None,
) -> Figure:
    """Draw one run: mean score with its moving average, and what explains it.

    That is KL, KL coefficient and total loss for PPO; the score's spread in a group, the share of
    groups without any, KL, length and entropy for GRPO and RLOO.

    Args:
        all_stats: one row a step, as `load_stats` reads them or as a hand-written loop collects
            what `PPOTrainer.step` returns.
        path: where to save the PNG; None saves nothing.
        title: what the picture shows, such as the run's name. The change of the score is added.
        kl_target: target of the adaptive KL controller in nats per response, drawn as a line.

    Returns:
        The figure; a notebook shows it.
    """
    figure = _draw_runs({"": all_stats}, kl_target)
    change = _score_change(all_stats)
    figure.suptitle(f"{_label_text(title)}: {change}" if title else change.capitalize())
    return save_figure(figure, path)


def plot_runs(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | Path | None = None,
    kl_target: float | None = None,
) -> Figure:
    """Lay several runs over each other: a colour each, the same panels as `plot_stats`.

    Where PPO stands beside GRPO or RLOO, they are those that both have: KL, length and entropy.

    Args:
        runs: the name of each run and its all_stats.
        path: where to save the PNG; None saves nothing.
        kl_target: target of the adaptive KL controller in nats per response, drawn as a line.

    Returns:
        The figure; a notebook shows it.
    """
    figure = _draw_runs(runs, kl_target)
    looks = _styles(len(runs))
    handles = [Line2D([], [], color=color, ls=line, linewidth=2.4) for color, line in looks]
    figure.legend(
        handles,
        [_label_text(name) for name in runs],
        title=f"{len(runs)} runs (points: single steps, lines: moving average)",
        title_fontsize=12,
        loc="outside upper center",
        ncols=max(1, min(len(runs), 90 // (max(map(len, runs)) + 6))),
        frameon=False,
    )
    return save_figure(figure, path)


def plot_comparison(comparison: "Comparison", path: str | Path | None = None) -> Figure:
    """Draw a comparison: means with 95 percent intervals as bars, and a histogram of the scores.

    Args:
        comparison: what `trl_recipes.evaluation.compare.compare` gave.
        path: where to save the PNG; None saves nothing.

    Returns:
        The figure; a notebook shows it.
    """
    results, measures = comparison.results, comparison.measures
    styles = dict(zip([r.name for r in results], _styles(len(results), first=GREY), strict=True))
    bars_height = 1.0 + 0.42 * len(results)
    figure = Picture(figsize=(9, bars_height + 4.2), layout="constrained")
    rows = figure.add_gridspec(2, 1, height_ratios=[bars_height, 3.4])
    bar_panels = rows[0].subgridspec(1, len(measures)).subplots(sharey=True, squeeze=False)[0]
    for axes, measure in zip(bar_panels, measures, strict=True):
        _draw_bars(axes, measure, {r.name: r.interval(measure) for r in results}, styles)
    _draw_histogram(
        figure.add_subplot(rows[1]),
        measures[0],
        {r.name: r.scored(measures[0]) for r in results},
        styles,
    )
    n = len(comparison.prompts)
    figure.suptitle(f"{len(results)} models on the same {n} prompts: mean and 95 % interval")
    return save_figure(figure, path)


def moving_average(values: Sequence[float], window: int) -> np.ndarray:
    """Average each value with its neighbours, `window` in all, fewer at the ends; nan is left out.

    Args:
        values: shape (N,).
        window: how many values to average, centred.

    Returns:
        Shape (N,); nan where every value in the window is nan.

    >>> moving_average([1, 2, 6, 3], 3).tolist()
    [1.5, 3.0, 3.6666666666666665, 4.5]
    """
    values = np.asarray(values, dtype=float)
    finite = np.isfinite(values)
    places = np.arange(len(values))
    first = np.maximum(0, places - (window - 1) // 2)
    end = np.minimum(len(values), places + window // 2 + 1)
    sums, counts = (  # up to each place, so that a long run takes no longer for a wide window
        np.concatenate([[0], np.cumsum(column)]) for column in (np.where(finite, values, 0), finite)
    )
    kept = counts[end] - counts[first]
    return np.where(kept > 0, (sums[end] - sums[first]) / np.maximum(kept, 1), math.nan)


def _draw_runs(runs: Mapping[str, Any], kl_target: float | None) -> Picture:
    """The score wide on top, what explains it below."""
    chosen = _panels(runs)
    rows = [chosen[i : i + 3] for i in range(0, len(chosen), 3)]
    figure = Picture(figsize=(9, 3.8 + 2.6 * len(rows)), layout="constrained")
    grid = figure.add_gridspec(1 + len(rows), 6, height_ratios=[1.45] + [1] * len(rows))
    score = figure.add_subplot(grid[0, :])
    panels = {}
    for row, in_row in enumerate(rows, 1):
        width = 6 // len(in_row)
        for i, panel in enumerate(in_row):
            panels[panel] = figure.add_subplot(grid[row, width * i : width * (i + 1)])
    for all_stats, (color, line) in zip(runs.values(), _styles(len(runs)), strict=True):
        steps, look = steps_of(all_stats), {"color": color, "linestyle": line}
        _draw_points(score, steps, _score(all_stats), look)
        for panel, axes in panels.items():
            draw = _draw_points if panel.points else _draw_line
            draw(axes, steps, _values(all_stats, _key(all_stats, panel.keys)), look)
    if len(runs) == 1 and score.lines:
        score.legend(loc="best", frameon=False)
    if kl_target is not None and panels[KL].lines:
        _draw_target(panels[KL], kl_target)
    step = "PPO step" if chosen is PPO_PANELS else "step"
    _label(score, "Mean score of each step", "mean score", step)
    for panel, axes in panels.items():
        _label(axes, panel.title, panel.unit, step)
        if panel.share and axes.lines:
            axes.set_ylim(-0.04, 1.04)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def _panels(runs: Mapping[str, Any]) -> tuple[Panel, ...]:
    """The panels that fit the algorithms of all runs."""
    grouped = {any("groups/equal" in row for row in rows) for rows in runs.values()}
    if grouped == {True}:
        return GROUP_PANELS
    return SHARED_PANELS if True in grouped else PPO_PANELS


def _draw_points(axes: Axes, steps: list[int], values: np.ndarray, look: dict[str, Any]) -> None:
    """Every step as a faint point, the moving average as the line that the eye follows."""
    if not np.isfinite(values).any():
        return
    alone = len(values) == 1
    axes.plot(
        steps,
        values,
        "o",
        color=look["color"],
        markersize=6 if alone else 3.5,
        alpha=1 if alone else 0.3,
        markeredgewidth=0,
        label="one step",
    )
    if not alone:
        window = _window(len(values))
        average = moving_average(values, window)
        axes.plot(steps, average, linewidth=2.4, label=f"average of {window} steps", **look)


def _draw_line(axes: Axes, steps: list[int], values: np.ndarray, look: dict[str, Any]) -> None:
    if np.isfinite(values).any():
        marker = "o" if len(steps) == 1 else None  # a line through one point shows nothing
        axes.plot(steps, values, linewidth=1.6, marker=marker, **look)


def _draw_target(axes: Axes, target: float) -> None:
    """A dashed line with its name on the left, where the KL of a young run is still small."""
    axes.axhline(target, color=GREY, linestyle=(0, (4, 3)), linewidth=1.2)
    axes.margins(y=0.18)
    axes.annotate(
        f"target {target:g}",
        (0.02, target),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        color=GREY,
        fontsize=9,
    )


def _draw_bars(
    axes: Axes,
    measure: str,
    intervals: Mapping[str, tuple[float, float]],
    styles: Mapping[str, tuple[str, str]],
) -> None:
    """One horizontal bar a model, so that long names stay readable, with its value beside it."""
    for row, (name, (mean, half)) in enumerate(intervals.items()):
        if math.isnan(mean):
            continue
        half = 0.0 if math.isnan(half) else half
        axes.barh(
            row,
            mean,
            xerr=half,
            color=styles[name][0],
            height=0.62,
            ecolor="black",
            error_kw={"elinewidth": 1.2, "capsize": 3},
        )
        side = 1 if mean >= 0 else -1
        axes.annotate(
            f"{mean:.2f}".replace("-", "\N{MINUS SIGN}"),
            (mean + side * half, row),
            xytext=(side * 5, 0),
            fontsize=9,
            textcoords="offset points",
            va="center",
            ha="left" if side > 0 else "right",
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(intervals)), [_label_text(name) for name in intervals])
    axes.set_ylim(len(intervals) - 0.5, -0.5)
    axes.margins(x=0.34)  # room for the values beside the bars
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    style_axes(axes, _label_text(measure), grid="x")
    axes.tick_params(axis="y", length=0)


def _draw_histogram(
    axes: Axes,
    measure: str,
    scores: Mapping[str, Sequence[float]],
    styles: Mapping[str, tuple[str, str]],
) -> None:
    """The share of responses at each score: a mean can hide two heaps."""
    pooled = [value for values in scores.values() for value in values]
    bins = np.histogram_bin_edges(pooled, bins=30) if pooled else 30
    for name, values in scores.items():
        color, line = styles[name]
        weights = np.full(len(values), 1 / max(1, len(values)))
        axes.hist(values, bins, weights=weights, color=color, alpha=0.22)
        axes.hist(
            values,
            bins,
            weights=weights,
            histtype="step",
            color=color,
            linestyle=line,
            linewidth=1.8,
            label=_label_text(name),
        )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(_label_text(measure))
    axes.set_ylabel("share of responses")
    axes.legend(loc="best", frameon=False)
    style_axes(axes, f"Distribution over the responses: {_label_text(measure)}", grid="y")


def _label(axes: Axes, title: str, unit: str, step: str) -> None:
    style_axes(axes, title, grid="y")
    axes.set_xlabel(step)
    axes.set_ylabel(unit)
    if axes.lines:
        last = max(max(line.get_xdata()) for line in axes.lines)
        axes.set_xlim(0, max(2, 1.02 * last))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
    else:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=GREY)


def style_axes(axes: Axes, title: str, grid: str) -> None:
    """Give a panel the look of all our pictures.

    Args:
        axes: the panel.
        title: stands at its top left.
        grid: axis whose lines are drawn, x or y.
    """
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    axes.grid(axis=grid, color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def _styles(count: int, first: str | None = None) -> Iterator[tuple[str, str]]:
    """Give a colour and a line style for each of `count` runs, no two alike before 21."""
    colors = ([first] if first else []) + [COLORS[i % len(COLORS)] for i in range(count)]
    return ((colors[i], LINES[i // len(COLORS) % len(LINES)]) for i in range(count))


def _label_text(name: str) -> str:
    """Keep matplotlib from reading a name as mathematics ($) or as one to hide (_ in front)."""
    return (" " if name.startswith("_") else "") + printable(name).replace("$", r"\$")


def _values(all_stats: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([float(row.get(key, math.nan)) for row in all_stats])


def _score(all_stats: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return _values(all_stats, _key(all_stats, SCORE_KEYS))


def _key(all_stats: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """The first of the keys that a run has."""
    return next((key for key in keys if any(key in row for row in all_stats)), keys[-1])


def _window(count: int) -> int:
    return max(1, min(count, 3), count // 10)


def _score_change(all_stats: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the score did: the averages of the first and of the last tenth."""
    score, window = _score(all_stats), _window(len(all_stats))
    steps = f"{len(all_stats)} step{'s' if len(all_stats) != 1 else ''}"
    first, last = _mean(score[:window]), _mean(score[-window:])
    if math.isnan(first) or math.isnan(last):
        return f"{steps}, score not recorded"
    if len(all_stats) == 1:
        return f"mean score {last:.3g} after {steps}"
    before, after = f"{first:.3g}", f"{last:.3g}"
    if before == after:
        return f"mean score stayed at {after} for {steps}"
    return f"mean score {'rose' if last > first else 'fell'} from {before} to {after} in {steps}"


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def save_figure(figure: Figure, path: str | Path | None) -> Figure:
    """Save a figure as PNG, and give it back.

    Args:
        figure: any.
        path: its folder is made; None saves nothing.

    Raises:
        RecipeError: the name is of no PNG file, or the file cannot be written.
    """
    if path is None:
        return figure
    if Path(path).suffix.lower() != ".png":
        raise RecipeError(f"`{path}`: pictures are PNG files. Give a name that ends in .png.")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI)
    except OSError as error:
        raise RecipeError(
            f"The picture `{path}` could not be written ({error.strerror}). Choose another place."
        ) from error
    return figure
