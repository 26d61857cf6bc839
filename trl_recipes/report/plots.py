"""Charts of runs and of models side by side: PNG files for a folder, SVG inside a page.

Figures are made with matplotlib's object interface alone, so drawing works without a display, in
threads and in notebooks, and leaves no state behind.
"""

import importlib.resources
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import yaml
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from trl_recipes.describe import printable
from trl_recipes.errors import RecipeError
from trl_recipes.stats import Rows, is_number, steps_of, tenth

# After Okabe and Ito, so that color-blind readers tell them apart; each stands out from white paper
# and from a page's dark paper (contrast above 3).
COLORS = ("#1E85C8", "#D55E00", "#009E73", "#C0609A", "#A87400", "#7F67D0", "#3F8CA8")
LINES = ("-", "--", ":")  # once the colors are used up
GREY = "#737D87"
DASHED = {"color": GREY, "linestyle": (0, (4, 3)), "linewidth": 1.2}
# Words beside a line: of one at a place of the y axis, of one at a place of the x axis.
_BESIDE = {"textcoords": "offset points", "color": GREY, "fontsize": 9}
BESIDE_Y = {"xycoords": ("axes fraction", "data"), **_BESIDE}
BESIDE_X = {"xycoords": ("data", "axes fraction"), **_BESIDE}
DPI = 150
# Inches of a chart in a page: as wide as a phone, its letters as large as text.
PAGE_SIZE = (5, 2.8)
MARKS = 400  # about as many single steps and points of a line find room


class Panel(NamedTuple):
    """What one chart shows, as panels.yaml explains it."""

    title: str
    unit: str
    lines: Mapping[str, Sequence[str]]
    points: bool = False
    share: bool = False
    note: str = ""


_TABLE = importlib.resources.files("trl_recipes.report").joinpath("panels.yaml").read_text("utf-8")
PANELS = {name: Panel(**panel) for name, panel in yaml.safe_load(_TABLE).items()}
PPO = ("kl", "kl_coef", "ppo_loss", "clipped", "var_explained")
GROUPS = ("group_std", "group_equal", "kl", "length", "entropy")  # of GRPO and RLOO
SHARED = ("kl", "length", "entropy")  # what every algorithm logs
# What a run is told by in one sentence: the first of them that it has.
HEADLINES = {
    "mean score": PANELS["score"].lines["score"],
    "held-out loss": ("loss/heldout",),
    "training loss": ("loss/train",),
}


class Picture(Figure):
    """A matplotlib Figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)  # as wide as a notebook's column
        return buffer.getvalue()


class Chart(NamedTuple):
    """A chart for a page, as an `svg` element."""

    title: str
    unit: str
    svg: Markup
    note: str = ""


def plot_stats(
    all_stats: Rows,
    path: str | Path | None = None,
    title: str | None = None,
    kl_target: float | None = None,
) -> Figure:
    """Draw one run: mean score with its moving average, and what explains it; or its losses."""
    figure = _draw_runs({"": all_stats}, kl_target)
    steps = f"{len(all_stats)} step{'s' if len(all_stats) != 1 else ''}"
    told = f"{headline(all_stats) or 'score not recorded'} over {steps}"
    figure.suptitle(f"{as_label(title)}: {told}" if title else told.capitalize())
    return save_figure(figure, path)


def plot_runs(
    runs: Mapping[str, Rows], path: str | Path | None = None, kl_target: float | None = None
) -> Figure:
    """Draw several runs over each other, by name: a color each, the panels that all have."""
    figure = _draw_runs(runs, kl_target)
    figure.legend(
        [Line2D([], [], linewidth=2.4, **look) for look in looks_of(len(runs))],
        [as_label(name) for name in runs],
        title=f"{len(runs)} runs (points: single steps, lines: moving average)",
        title_fontsize=12,
        loc="outside upper center",
        ncols=max(1, min(len(runs), 90 // (max(map(len, runs)) + 6))),
        frameon=False,
    )
    return save_figure(figure, path)


def plot_comparison(comparison: Any, path: str | Path | None = None) -> Figure:
    """Draw a `Comparison`: means with 95 percent intervals as bars, and the scores' histogram."""
    models, measures = comparison.to_dict()["models"], comparison.measures
    height = 0.8 + 0.5 * len(models)
    figure = Picture(figsize=(9, height + 4.2), layout="constrained")
    rows = figure.add_gridspec(2, 1, height_ratios=[height, 3.4])
    bars = rows[0].subgridspec(1, len(measures)).subplots(squeeze=False)[0]
    for axes, measure in zip(bars, measures, strict=True):
        _draw_bars(axes, models, measure, as_label(measure))
    axes, title = figure.add_subplot(rows[1]), "Distribution over the responses: "
    _draw_histogram(axes, models, measures[0], title + as_label(measures[0]))
    axes.set(xlabel=as_label(measures[0]), ylabel="share of responses")
    axes.legend(loc="best", frameon=False)
    n = len(comparison.prompts)
    figure.suptitle(f"{len(models)} models on the same {n} prompts: mean and 95 % interval")
    return save_figure(figure, path)


def panel_charts(
    panels: Sequence[Panel], runs: Mapping[str, Rows], kl_target: float | None = None
) -> list[Chart]:
    """Draw each panel that a run has statistics for, as a chart of a page."""
    charts = []
    for panel in panels:
        target = kl_target if panel.title == PANELS["kl"].title else None
        draw = partial(_draw_panel, panel=panel, runs=runs, kl_target=target)
        charts += _chart(panel.title, panel.unit, draw, note=panel.note)
    return charts


def comparison_charts(models: Mapping[str, Any], measures: Sequence[str]) -> list[Chart]:
    """Draw the models of a comparison.json: each measure's means and KL, and the score's spread."""
    charts = []
    for key, title in ({m: m for m in measures} | {"kl": "KL, nats per response"}).items():
        draw = partial(_draw_bars, models=models, key=key)
        charts += _chart(title, "", draw, height=0.4 + 0.5 * len(models))
    for score in measures[:1]:
        draw = partial(_draw_histogram, models=models, key=score)
        charts += _chart(f"Spread of {score}", "share of responses", draw)
    return charts


def _chart(
    title: str, unit: str, draw: Callable[[Axes], str], height: float = PAGE_SIZE[1], note: str = ""
) -> list[Chart]:
    """A chart of what `draw` puts into axes and says of it; none where it says nothing."""
    figure = Figure(figsize=(PAGE_SIZE[0], height), layout="constrained")
    told = draw(figure.add_subplot())
    return [Chart(title, unit, svg_of(figure, f"{title}: {told}"), note)] if told else []


def moving_average(values: Sequence[float], window: int) -> np.ndarray:
    """Average each value with its neighbors, `window` in all, without nan; shape (N,)."""
    ahead = pd.Series(values, dtype=float)[::-1]  # an even window looks one further ahead
    return ahead.rolling(window, center=True, min_periods=1).mean()[::-1].to_numpy()


def ends(all_stats: Rows, keys: Sequence[str]) -> tuple[float, float] | None:
    """Average the first and the last tenth of the rows that have one of the keys, 3 at least."""
    values = _values(all_stats, keys)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    window = tenth(len(values))
    return math.fsum(values[:window]) / window, math.fsum(values[-window:]) / window


def headline(all_stats: Rows) -> str:
    """Say how the score of a run changed, or its loss, such as `mean score rose from 1 to 2`."""
    for name, keys in HEADLINES.items():
        found = ends(all_stats, keys)
        if found is not None:
            before, after = (f"{value:.3g}" for value in found)
            if before == after:
                return f"{name} stayed at {after}"
            return f"{name} {'rose' if found[1] > found[0] else 'fell'} from {before} to {after}"
    return ""


def number(value: object) -> str:
    """Show a number in few digits, such as 0.123, 1,234 or -1e-05; a dash where there is none."""
    if not is_number(value):
        return "-"
    if abs(value) >= 1000 or value == int(value):
        return f"{value + 0.0:,.0f}"  # + 0.0 makes -0.0 read 0
    return f"{value:.3f}" if 0.01 <= abs(value) < 10 else f"{value:.3g}"


def plus_minus(mean: object, half: object) -> str:
    """Show a mean with half the width of its interval; a dash where there is none."""
    if not is_number(mean):
        return "-"
    digits = 3 if abs(mean) < 100 else 1
    shown = f"{round(mean, digits) + 0.0:.{digits}f}"  # + 0.0 makes -0.000 read 0.000
    return shown + (f" ± {half:.{digits}f}" if is_number(half) else "")


def figure_cells(model: Mapping[str, Any], measures: Sequence[str]) -> dict[str, str]:
    """Show the figures of one model of a comparison.json by name, with n where it is less."""
    names = {measure: measure for measure in measures} | {"kl": "KL (nats/response)"}
    names |= {"perplexity": "perplexity", "distinct_2": "distinct-2", "length": "length (tokens)"}
    cells, all_of_it = {}, len(model.get("responses") or [])
    for key, name in names.items():
        found = model.get(key)
        found = found if isinstance(found, Mapping) else {"mean": found}
        left_out = f" (n {found['n']})" if found.get("n", all_of_it) < all_of_it else ""
        cells[name] = plus_minus(found.get("mean"), found.get("half_width_95")) + left_out
    return cells


def looks_of(count: int) -> Iterator[dict[str, str]]:
    """Give a color and a line style for each of `count` runs, no two alike before 22."""
    for i in range(count):
        line = LINES[i // len(COLORS) % len(LINES)]
        yield {"color": COLORS[i % len(COLORS)], "linestyle": line}


def as_label(name: str) -> str:
    """Keep matplotlib from reading a name as mathematics ($) or as one to hide (_ in front)."""
    return (" " if name.startswith("_") else "") + printable(name).replace("$", r"\$")


def style_axes(axes: Axes, title: str, grid: str | None) -> None:
    """Give a panel the look of all our pictures; `grid` names the axis whose lines are drawn."""
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    if grid is not None:
        axes.grid(axis=grid, color=GREY, alpha=0.22, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(GREY)
    axes.tick_params(labelsize=9, color=GREY)


def save_figure(figure: Figure, path: str | Path | None) -> Figure:
    """Save a figure as PNG where there is a path, making its folder, and give it back."""
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


def svg_of(figure: Figure, label: str) -> Markup:
    """Give a figure as an element of a page; `label` tells what it shows."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    inside = svg[svg.index(">", svg.index("<svg")) + 1 :]
    # what nothing refers to goes, and numbers keep two digits
    inside = re.sub(r"<(metadata|style|clipPath).*?</\1>", "", inside, flags=re.DOTALL)
    inside = re.sub(r' id="[\w.]+_\d+"| clip-path="[^"]*"|(?<= )xlink:|\n *(?=<)', "", inside)
    inside = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), inside)
    width, height = figure.get_size_inches() * 72
    opening = Markup('<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">')
    return opening.format(width, height, printable(label)) + Markup(inside)


def _draw_runs(runs: Mapping[str, Rows], kl_target: float | None) -> Picture:
    """The score wide on top, what explains it below, three in a row."""
    keys = {key for rows in runs.values() for row in rows for key in row}
    grouped = {any("groups/equal" in row for row in rows) for rows in runs.values()}
    chosen = GROUPS if grouped == {True} else SHARED if True in grouped else PPO
    rows = [["score"], *(chosen[i : i + 3] for i in range(0, len(chosen), 3))]
    if "loss/train" in keys and keys.isdisjoint(PANELS["score"].lines["score"]):
        rows = [["text_loss"]]
    mosaic = [[name for name in row for _ in range(6 // len(row))] for row in rows]
    figure = Picture(figsize=(9, 1.2 + 2.6 * max(len(rows), 1.2)), layout="constrained")
    panels = figure.subplot_mosaic(mosaic, height_ratios=[1.45] + [1] * (len(rows) - 1))
    for name, axes in panels.items():
        _draw_panel(axes, PANELS[name], runs, kl_target if name == "kl" else None, titled=True)
    if len(runs) == 1 and figure.axes[0].lines:
        figure.axes[0].legend(loc="best", frameon=False)
    return figure


def _draw_panel(
    axes: Axes,
    panel: Panel,
    runs: Mapping[str, Rows],
    kl_target: float | None = None,
    titled: bool = False,
) -> str:
    """Draw a panel, of several runs the first line of each, and say what it shows."""
    lines, told = panel.lines.items(), []
    drawn = [(line, rows, keys) for rows in runs.values() for line, keys in lines]
    if len(runs) > 1:
        drawn = [(name, rows, next(iter(lines))[1]) for name, rows in runs.items()]
    for (name, rows, keys), look in zip(drawn, looks_of(len(drawn)), strict=True):
        values, steps = _values(rows, keys), np.array(steps_of(rows))
        known = np.isfinite(values)
        if known.any():
            _draw_steps(axes, steps, values, look | {"label": as_label(name)}, panel.points)
            first_last = np.flatnonzero(known)[[0, -1]]
            shown = (f"{number(float(values[i]))} at step {steps[i]}" for i in first_last)
            told.append(f"{name}: " * (len(drawn) > 1) + ", ".join(shown))
    if len(runs) == 1 and len(axes.lines) > 1 and not panel.points:
        axes.legend(loc="best", frameon=False, fontsize=9)
    if kl_target is not None and axes.lines:
        axes.margins(y=0.18)
        axes.axhline(kl_target, **DASHED)
        axes.annotate(f"target {kl_target:g}", (0.02, kl_target), xytext=(0, 3), **BESIDE_Y)
    if titled:
        axes.set_ylabel(panel.unit)
    style_axes(axes, panel.title if titled else "", grid="y")
    _label_steps(axes)
    if panel.share and axes.lines:
        axes.set_ylim(-0.04, 1.04)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return "; ".join(told)


def _draw_steps(
    axes: Axes, steps: np.ndarray, values: np.ndarray, look: dict[str, Any], points: bool
) -> None:
    """A line; with `points` of the moving average, and every step as a faint point."""
    if points:
        window, every = tenth(len(values)), -(-len(values) // MARKS)
        dots = {"markersize": 4, "alpha": 0.4, "markeredgewidth": 0, "color": look["color"]}
        axes.plot(steps[::every], values[::every], "o", label="one step", **dots)
        values = moving_average(values, window)
        look = look | {"label": f"average of {window} steps", "linewidth": 2.4}
    else:
        known = np.isfinite(values)
        steps, values = steps[known], values[known]
        every = -(-len(steps) // MARKS)
        look = look | {"linewidth": 1.6, "marker": "o" if len(steps) <= 20 else None}
    axes.plot(steps[::every], values[::every], **look)


def _label_steps(axes: Axes) -> None:
    axes.set_xlabel("step")
    if axes.lines:
        last = max(max(line.get_xdata()) for line in axes.lines if len(line.get_xdata()))
        axes.set_xlim(0, max(2, 1.02 * last))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
    else:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=GREY)


def _draw_bars(axes: Axes, models: Mapping[str, Any], key: str, title: str = "") -> str:
    """A bar a model with its interval; name and value stand above it, however long they are."""
    told = []
    looks = looks_of(len(models))
    for row, ((name, model), look) in enumerate(zip(models.items(), looks, strict=True)):
        found = model.get(key) or {}
        mean, half = found.get("mean"), found.get("half_width_95")
        if is_number(mean):
            error = half if is_number(half) else None
            style = {"ecolor": GREY, "error_kw": {"elinewidth": 1.6, "capsize": 3}}
            axes.barh(row, mean, xerr=error, color=look["color"], alpha=0.6, height=0.4, **style)
            told.append(f"{name}: {plus_minus(mean, half)}")
        above = {"transform": axes.get_yaxis_transform(), "va": "bottom", "fontsize": 9}
        axes.text(0.01, row - 0.22, as_label(name), clip_on=True, **above)
        axes.text(1, row - 0.22, plus_minus(mean, half), ha="right", **above)
        axes.vlines(0, row - 0.25, row + 0.25, color=GREY, linewidth=0.8)
    axes.set_yticks([])
    axes.set_ylim(len(models) - 0.7, -0.75)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    style_axes(axes, title, grid=None)
    axes.spines["left"].set_visible(False)
    return "; ".join(told)


def _draw_histogram(axes: Axes, models: Mapping[str, Any], key: str, title: str = "") -> str:
    """The share of responses at each score: a mean can hide two heaps."""
    scores = {
        name: [row[key] for row in model["responses"] if is_number(row.get(key))]
        for name, model in models.items()
    }
    pooled = [value for values in scores.values() for value in values]
    bins = np.histogram_bin_edges(pooled, bins=30) if pooled else 30
    for (name, values), look in zip(scores.items(), looks_of(len(scores)), strict=True):
        weights = np.full(len(values), 1 / max(1, len(values)))
        axes.hist(values, bins, weights=weights, color=look["color"], alpha=0.22)
        line = {"histtype": "step", "linewidth": 1.8, "label": as_label(name), **look}
        axes.hist(values, bins, weights=weights, **line)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    style_axes(axes, title, grid="y")
    told = "; ".join(f"{name}: {len(values)} values" for name, values in scores.items())
    return told if pooled else ""


def _values(all_stats: Rows, keys: Sequence[str]) -> np.ndarray:
    """The first of the statistics that a run has, of shape (N,); nan where a row lacks it."""
    values = np.full(len(all_stats), math.nan)
    for key in keys:
        values = np.array([float(row.get(key, math.nan)) for row in all_stats])
        if np.isfinite(values).any():
            break
    return values
