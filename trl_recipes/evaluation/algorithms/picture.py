"""One picture of a comparison of algorithms: reward against tokens, time and KL."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trl_recipes.evaluation.algorithms.results import Finished, Results
from trl_recipes.evaluation.algorithms.work import ALGORITHMS, NAMES, Algorithm
from trl_recipes.report.plots import COLORS, GREY, Picture, save_figure, style_axes

INK = dict(zip(ALGORITHMS, (COLORS[0], COLORS[1], COLORS[2]), strict=True))
POINTS = 50  # of the shared grid on which the seeds' curves are averaged
LABEL_GAP = 0.075  # between two labels, as a share of the panel's height
LABEL = {"fontsize": 13, "fontweight": "bold", "va": "center"}


def plot_algorithms(results: Results, path: str | Path | None = None) -> Figure:
    """Draw the held-out reward against tokens, seconds and KL, each algorithm over its seeds.

    Args:
        results: of the finished runs.
        path: where to save the PNG; None saves nothing.

    Returns:
        The figure; the title says what was found.
    """
    figure = Picture(figsize=(12, 5.2), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    unit, scale = ("thousand tokens", 1e-3) if results.work.tokens >= 10_000 else ("tokens", 1)
    ends: list[dict[Algorithm, tuple[float, float, str]]] = [{}, {}, {}]
    for name, runs in results.runs.items():
        reward, seconds, kl = (results.spread(name, f).mean for f in ("reward", "seconds", "kl"))
        own = f"{NAMES[name]} "
        end = _draw_band(axes[0], runs, "tokens", INK[name], scale)
        ends[0][name] = (*end, f"{own}{reward:.2f}")
        end = _draw_band(axes[1], runs, "seconds", INK[name])
        ends[1][name] = (*end, f"{own}{seconds:.0f} s")
        end = _draw_paths(axes[2], runs, INK[name])
        ends[2][name] = (*end, f"{own}{round(kl, 1) + 0.0:.1f} nats")
    for panel, title, below in zip(
        axes,
        ("How high with the same tokens?", "How fast?", "How far from the start?"),
        (f"{unit} generated", "seconds of training", "KL from the start, nats per response"),
        strict=True,
    ):
        style_axes(panel, title, grid="y")
        panel.title.set_fontsize(14)
        panel.tick_params(labelsize=12)
        panel.set_xlabel(below, fontsize=13)
        panel.axhline(results.before["reward"], color=GREY, linestyle=(0, (4, 3)), linewidth=1.2)
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low - 0.04 * (high - low), high + 0.12 * (high - low))  # room for labels
    for panel, labels in zip(axes[:2], ends, strict=False):
        right = max(max(end for end, _, _ in labels.values()), 1e-3)
        locator = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
        panel.set_xticks([tick for tick in locator.tick_values(0, right) if tick <= right])
        panel.set_xlim(0, 1.5 * right)  # room for the labels
        _label_right(panel, labels)
    axes[2].set_xlim(left=min(0, axes[2].get_xlim()[0] / 9))
    _label_above_left(axes[2], ends[2])
    axes[0].set_ylabel(f"{results.measures[0]}, held-out prompts", fontsize=13)
    axes[2].annotate(
        "before training",
        (1, results.before["reward"]),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 5),
        textcoords="offset points",
        ha="right",
        color=GREY,
        fontsize=12,
    )
    figure.suptitle(results.finding(), fontsize=15, fontweight="bold")
    return save_figure(figure, path)


def spread_labels(values: Sequence[float], gap: float) -> list[float]:
    """Move values apart until neighbours are `gap` apart, each as little as needed.

    Args:
        values: where labels want to be.
        gap: least distance between two.

    Returns:
        Where they are put, in the order of `values`.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups: list[list[int]] = []
    for index in order:
        groups.append([index])
        while len(groups) > 1 and _top(groups[-2], values, gap) + gap > _bottom(
            groups[-1], values, gap
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
    places = dict.fromkeys(range(len(values)), 0.0)
    for group in groups:
        bottom = _bottom(group, values, gap)
        places |= {index: bottom + gap * rank for rank, index in enumerate(group)}
    return [places[index] for index in range(len(values))]


def _bottom(group: list[int], values: Sequence[float], gap: float) -> float:
    return sum(values[i] for i in group) / len(group) - gap * (len(group) - 1) / 2


def _top(group: list[int], values: Sequence[float], gap: float) -> float:
    return _bottom(group, values, gap) + gap * (len(group) - 1)


def _draw_band(
    axes: Axes, runs: Sequence[Finished], along: str, color: str, scale: float = 1.0
) -> tuple[float, float]:
    """The seeds' mean as a line, from their least to their most as a band; where it ends."""
    last = min(run.curve[-1][along] for run in runs)
    grid = np.linspace(0, last, POINTS)
    rewards = np.array([_interpolated(run, along, "reward", grid) for run in runs])
    mean = rewards.mean(0)
    axes.fill_between(
        grid * scale, rewards.min(0), rewards.max(0), color=color, alpha=0.18, linewidth=0
    )
    axes.plot(grid * scale, mean, color=color, linewidth=2.8)
    axes.plot(last * scale, mean[-1], "o", color=color, markersize=8)
    return last * scale, float(mean[-1])


def _draw_paths(axes: Axes, runs: Sequence[Finished], color: str) -> tuple[float, float]:
    """Each seed's way from the start, faint, and their mean at equal tokens; where it ends."""
    grid = np.linspace(0, min(run.curve[-1]["tokens"] for run in runs), POINTS)
    kl = np.array([_interpolated(run, "tokens", "kl", grid) for run in runs])
    rewards = np.array([_interpolated(run, "tokens", "reward", grid) for run in runs])
    for one_kl, one_reward in zip(kl, rewards, strict=True):
        axes.plot(one_kl, one_reward, color=color, linewidth=1, alpha=0.35)
    axes.plot(kl.mean(0), rewards.mean(0), color=color, linewidth=2.8)
    end = float(kl[:, -1].mean()), float(rewards[:, -1].mean())
    axes.plot(*end, "o", color=color, markersize=8)
    return end


def _interpolated(run: Finished, along: str, name: str, grid: np.ndarray) -> np.ndarray:
    return np.interp(grid, [row[along] for row in run.curve], [row[name] for row in run.curve])


def _label_right(axes: Axes, ends: Mapping[Algorithm, tuple[float, float, str]]) -> None:
    """Name each line to the right of its end; names that would overlap are moved apart."""
    low, high = axes.get_ylim()
    heights = spread_labels([y for _, y, _ in ends.values()], LABEL_GAP * (high - low))
    for (name, (x, _, text)), height in zip(ends.items(), heights, strict=True):
        axes.text(x + 0.035 * axes.get_xlim()[1], height, text, color=INK[name], **LABEL)


def _label_above_left(axes: Axes, ends: Mapping[Algorithm, tuple[float, float, str]]) -> None:
    """Name each line to the left of its end, and none lower than it: no line comes from there."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    values = [y for _, y, _ in ends.values()]
    heights = spread_labels(values, LABEL_GAP * (high - low))
    lift = max(value - height for value, height in zip(values, heights, strict=True))
    for (name, (x, _, text)), height in zip(ends.items(), heights, strict=True):
        place, side = (x - 0.03 * (right - left), "right")
        if place < left + 0.35 * (right - left):  # an end near the start has no room there
            place, side = (x + 0.03 * (right - left), "left")
        axes.text(place, height + lift, text, color=INK[name], ha=side, **LABEL)
