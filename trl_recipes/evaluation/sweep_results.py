"""What a sweep found: a table over the seeds, and a picture."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from trl_recipes.describe import markdown_table
from trl_recipes.evaluation.sweep import ALGORITHMS, CURVE_FILE, Run
from trl_recipes.report.plots import COLORS, GREY, Picture, save_figure, style_axes
from trl_recipes.stats import load_stats

# Figures of the table, with decimals.
FIGURES = {
    "kl": ("KL, nats per response", 2),
    "perplexity": ("perplexity", 2),
    "distinct_2": ("distinct-2", 3),
    "length": ("length, tokens", 1),
    "clipfrac": ("clipped, fraction of tokens", 3),
    "var_explained": ("variance explained", 3),
    "responses": ("responses", 0),
    "tokens": ("tokens generated", 0),
    "step": ("steps", 0),
    "seconds": ("seconds", 1),
}
INK = dict(zip(ALGORITHMS, COLORS, strict=False))
POINTS = 50  # of the shared grid on which the seeds' curves are averaged
# Panels of the picture: column of the curves, title, axis, and how a legend says where it ends.
PANELS = (
    ("tokens", "How high with the same tokens?", "tokens generated", "{reward:.2f}"),
    ("seconds", "How fast?", "seconds of training", "{seconds:.0f} s"),
    ("kl", "How far from the start?", "KL from the start, nats per response", "{kl:.1f} nats"),
)


@dataclass(frozen=True)
class Results:
    """The finished runs of a sweep by algorithm, with the result and the measured rows of each."""

    runs: list[Run]
    found: list[dict[str, Any]]
    curves: list[list[dict[str, float]]]

    def over_seeds(self) -> dict[str, pd.DataFrame]:
        """Give mean, least and most of each figure over the seeds, a row each, by algorithm."""
        rows = [
            {n: v for n, v in row.items() if n in FIGURES} | row["policy"] for row in self.found
        ]
        algorithms = [run.algorithm for run in self.runs]
        groups = pd.DataFrame(rows).groupby(algorithms, sort=False)
        return {name: group.agg(["mean", "min", "max"]) for name, group in groups}

    @property
    def scores(self) -> list[str]:
        """Names of what the runs are scored by, the reward first."""
        known = self.found[0]["reference"]  # the start model, the same for all
        return [name for name in known if name not in FIGURES and name != "reward"]

    def table(self) -> str:
        """Format the figures as Markdown: a row each, mean (least to most) over the seeds."""
        before, after = self.found[0]["reference"], self.over_seeds()
        known = {name for figures in after.values() for name in figures}
        rows = [["", "before", *map(str.upper, after)]]
        for name in [*self.scores, *(name for name in FIGURES if name in known)]:
            title, digits = FIGURES.get(name, (name, 3))
            cells = [_shown(before.get(name), digits)]
            for figures in after.values():
                mean, least, most = (_shown(v, digits) for v in figures.get(name, [np.nan] * 3))
                cells.append(mean if least == most else f"{mean} ({least} to {most})")
            rows.append([title, *cells])
        return markdown_table(rows)

    def conditions(self) -> str:
        """Say what was the same for all runs, and what each algorithm had of its own."""
        task, seeds = self.runs[0].task, dict.fromkeys(str(run.seed) for run in self.runs)
        own = json.dumps({run.algorithm: run.settings for run in self.runs})
        return (
            f"Mean (least to most) of the seeds {', '.join(seeds)}; {task.tokens} tokens in steps "
            f"of {task.batch} responses; {task.eval_prompts} held-out prompts; settings: {own}"
        )


def load_results(runs: Sequence[Run]) -> Results | None:
    """Read the results of the runs that have finished; None where none has."""
    order = list(dict.fromkeys(run.algorithm for run in runs))
    runs = sorted(runs, key=lambda run: order.index(run.algorithm))
    done = [(run, found) for run in runs if (found := run.stage().result) is not None]
    if not done:
        return None
    runs, found = map(list, zip(*done, strict=True))
    curves = ([row for row in load_stats(r.folder / CURVE_FILE) if "reward" in row] for r in runs)
    return Results(runs, found, list(curves))


def plot_results(results: Results, path: str | Path | None = None) -> Figure:
    """Draw the held-out reward against tokens, seconds and KL, at equal tokens over the seeds.

    Each seed is a faint line, their mean a strong one.
    """
    figure = Picture(figsize=(12, 5.2), layout="constrained")
    ends = {name: after.loc["mean"] for name, after in results.over_seeds().items()}
    curves = {name: _on_one_grid(results, name) for name in ends}
    before = results.found[0]["reference"]["reward"]
    for axes, (along, title, below, ending) in zip(
        figure.subplots(1, 3, sharey=True), PANELS, strict=True
    ):
        for name, columns in curves.items():
            x, y, color = columns[along], columns["reward"], INK[name]
            axes.plot(x.T, y.T, color=color, linewidth=1, alpha=0.35)
            style = {"marker": "o", "markevery": [-1], "color": color, "linewidth": 2.8}
            label = f"{name.upper()} {ending.format(**ends[name] + 0.0)}"
            axes.plot(x.mean(0), y.mean(0), label=label, **style)
        style_axes(axes, title, grid="y")
        axes.title.set_fontsize(14)
        axes.tick_params(labelsize=12)
        axes.set_xlabel(below, fontsize=13)
        axes.axhline(before, color=GREY, linestyle=(0, (4, 3)), label=f"before {before:.2f}")
        axes.legend(loc="best", frameon=False, fontsize=12)
    figure.axes[0].set_ylabel(f"{results.scores[0]}, held-out prompts", fontsize=13)
    words = f"{', '.join(map(str.upper, ends))} with {results.runs[0].task.tokens:,} tokens each"
    figure.suptitle(words, fontsize=15, fontweight="bold")
    return save_figure(figure, path)


def _on_one_grid(results: Results, algorithm: str) -> dict[str, np.ndarray]:
    """The columns of an algorithm's curves at the same tokens, each of shape (seeds, POINTS)."""
    runs = zip(results.runs, results.curves, strict=True)
    curves = [pd.DataFrame(curve) for run, curve in runs if run.algorithm == algorithm]
    grid = np.linspace(0, min(curve["tokens"].max() for curve in curves), POINTS)
    return {
        name: np.array([np.interp(grid, curve["tokens"], curve[name]) for curve in curves])
        for name in ("tokens", "seconds", "kl", "reward")
    }


def _shown(value: float | None, digits: int) -> str:
    if value is None or np.isnan(value):
        return ""
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0 makes -0.0 read 0.0
