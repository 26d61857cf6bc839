"""What a sweep found, over the seeds: a table, JSON, a sentence and a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trl_recipes.evaluation.sweep import CONFIGS, CURVE_FILE, NAMES, RESULT_FILE, Run, read_json
from trl_recipes.report.plots import COLORS, GREY, Picture, save_figure, style_axes
from trl_recipes.run_folder import write_whole
from trl_recipes.stats import load_stats

# Rows of the table: figure, what it is called, decimals.
FIGURES = (
    ("kl", "KL, nats per response", 2),
    ("perplexity", "perplexity", 2),
    ("distinct_2", "distinct-2", 3),
    ("length", "length, tokens", 1),
)
SPENT = (("tokens", "tokens generated", 0), ("step", "steps", 0), ("seconds", "seconds", 1))
INK = dict(zip(CONFIGS, COLORS, strict=False))
POINTS = 50  # of the shared grid on which the seeds' curves are averaged
ENDS = (("reward", 2), ("seconds", 0), ("kl", 1))  # what the picture's legends name, decimals


@dataclass(frozen=True)
class Results:
    """The finished runs of a sweep by algorithm, with result.json and measured rows of each."""

    runs: list[Run]
    found: list[dict[str, Any]]
    curves: list[list[dict[str, float]]]

    @property
    def figures(self) -> pd.DataFrame:
        """Figures of the trained policies and of what they took, a row a run."""
        rows = [
            {"algorithm": run.algorithm} | result["policy"] | {n: result[n] for n, *_ in SPENT}
            for run, result in zip(self.runs, self.found, strict=True)
        ]
        return pd.DataFrame(rows, index=map(str, self.runs))

    def over_seeds(self, name: str) -> pd.DataFrame:
        """Mean, least and most of a figure over the seeds, a row an algorithm."""
        groups = self.figures.groupby("algorithm", sort=False)[name]
        return groups.agg(mean=fmean, least="min", most="max")

    @property
    def before(self) -> dict[str, float]:
        """Figures of the start model, which is the same for all."""
        return self.found[0]["reference"]

    @property
    def measures(self) -> list[str]:
        """Names of what scores an answer, the reward first."""
        own = {name for name, _, _ in FIGURES} | {"reward"}
        return [name for name in self.before if name not in own]

    def table(self) -> str:
        """Lay the figures out as Markdown: a line a figure, mean (least to most) over the seeds."""
        scores = [(name, name, 3) for name in self.measures]
        rows = [["", "before", *map(NAMES.get, self.over_seeds("kl").index)]]
        for name, title, digits in (*scores, *FIGURES, *SPENT):
            known = self.before.get(name)
            cells = []
            for values in self.over_seeds(name).itertuples(index=False):
                mean, least, most = (_shown(value, digits) for value in values)
                cells.append(mean if least == most else f"{mean} ({least} to {most})")
            rows.append([title, "" if known is None else f"{known:.{digits}f}", *cells])
        return _markdown(rows)

    def per_seed(self) -> str:
        """Lay out the main figures of every run as Markdown."""
        rows = [["run", self.measures[0], "KL", "perplexity", "distinct-2", "tokens", "seconds"]]
        for run in self.figures.itertuples():
            cells = [f"{run.reward:.3f}", f"{run.kl:.2f}", f"{run.perplexity:.2f}"]
            cells += [f"{run.distinct_2:.3f}", f"{run.tokens}", f"{run.seconds:.1f}"]
            rows.append([run.Index, *cells])
        return _markdown(rows)

    def conditions(self) -> str:
        """Say in a few lines what is the same for all, and what is not."""
        runs = {name: list(own) for name, own in groupby(self.runs, lambda run: run.algorithm)}
        seeds = {name: ", ".join(str(run.seed) for run in own) for name, own in runs.items()}
        shown = ", ".join(f"{NAMES[name]} {numbers}" for name, numbers in seeds.items())
        if len(set(seeds.values())) == 1:
            shown = f"seeds {next(iter(seeds.values()))}"
        task = self.runs[0].task
        lines = [
            f"Same for all: {task.tokens} generated tokens, {task.batch} responses a step of at "
            f"most {task.response_length} tokens; model, prompts, reward and temperature 1; "
            f"measured on {task.eval_prompts} held-out prompts, {shown}; mean (least to most).",
            "Not the same: PPO trains a value head too; GRPO and RLOO answer each prompt several "
            "times, so they see fewer prompts; GRPO's KL weight is in units of the rewards' std "
            "in a group. Each has its own settings:",
        ]
        for name, (first, *_) in runs.items():
            settings = json.dumps(first.settings).strip("{}").replace('"', "") or "the defaults"
            lines.append(f"  {NAMES[name]}: {settings}")
        return "\n".join(lines)

    def finding(self) -> str:
        """Say in two lines how they compare; what overlaps over the seeds counts as level."""
        reward, seconds, kl = (self.over_seeds(name) for name in ("reward", "seconds", "kl"))
        what, tokens = self.measures[0], _thousands(self.runs[0].task.tokens)
        best, level = _leaders(reward, highest=True)
        if len(reward) == 1:
            return f"{NAMES[best]}, {tokens} tokens: {what} {reward['mean'][best]:.2f}"
        means = [f"{reward['mean'][name]:.2f}" for name in level]
        means = means[:1] if len(set(means)) == 1 else means
        ending = "end level" if len(level) == len(reward) else _verb(level, "end") + " highest"
        first = f"With {tokens} tokens each, {_listed(level)} {ending}: {what} {_joined(means)}"
        fastest, fast = _leaders(seconds, highest=False)
        nearest, near = _leaders(kl, highest=False)
        least, way = f"{seconds['mean'][fastest]:.0f} s", f"{_shown(kl['mean'][nearest], 1)} nats"
        quick = f"{_listed(fast)} {_verb(fast, 'need')} the least time ({least})"
        if len(fast) == len(seconds):
            quick = "All need about the same time"
        close = f", {_listed(near)} {_verb(near, 'stay')} nearest the start ({way})"
        if len(near) == len(kl):
            close = ", all move about as far from the start"
        elif near == fast:
            close = f" and {_verb(near, 'stay')} nearest the start ({way})"
        return f"{first}\n{quick}{close}"

    def to_dict(self) -> dict[str, Any]:
        """Give every number, summed up and by seed, ready for JSON."""
        names = [*self.before, *(name for name, _, _ in SPENT)]
        over_seeds = {name: self.over_seeds(name).to_dict("index") for name in names}
        return {
            "task": asdict(self.runs[0].task),
            "before": self.before,
            "summary": {
                algorithm: {name: over_seeds[name][algorithm] for name in names}
                for algorithm in over_seeds["kl"]
            },
            "runs": [
                result | {"curve": curve}
                for result, curve in zip(self.found, self.curves, strict=True)
            ],
        }

    def save(self, folder: Path) -> list[Path]:
        """Write table.md and results.json."""
        table, numbers = folder / "table.md", folder / "results.json"
        parts = (self.finding(), self.table(), self.per_seed(), self.conditions())
        write_whole(table, "\n\n".join(parts) + "\n")
        write_whole(numbers, json.dumps(self.to_dict(), indent=1) + "\n")
        return [table, numbers]


def load_results(runs: Sequence[Run], folder: Path) -> Results | None:
    """Read what the finished of the runs left; None where none is."""
    done = [run for run in runs if (folder / run.folder_name / RESULT_FILE).is_file()]
    order = list(dict.fromkeys(run.algorithm for run in runs))
    done.sort(key=lambda run: order.index(run.algorithm))
    found = [read_json(folder / run.folder_name / RESULT_FILE) for run in done]
    curves = [
        [row for row in load_stats(folder / run.folder_name / CURVE_FILE) if "reward" in row]
        for run in done
    ]
    return Results(done, found, curves) if done else None


def plot_results(results: Results, path: str | Path | None = None) -> Figure:
    """Draw the held-out reward against tokens, seconds and KL, each algorithm over its seeds."""
    figure = Picture(figsize=(12, 5.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    ends = {name: results.over_seeds(name)["mean"] for name in ("reward", "seconds", "kl")}
    thousands = results.runs[0].task.tokens >= 10_000
    for name, color in INK.items():
        runs = zip(results.runs, results.curves, strict=True)
        curves = [curve for run, curve in runs if run.algorithm == name]
        if curves:
            reward, seconds, kl = (f"{NAMES[name]} {_shown(ends[f][name], d)}" for f, d in ENDS)
            _draw_band(panels[0], curves, "tokens", color, reward, 1e-3 if thousands else 1)
            _draw_band(panels[1], curves, "seconds", color, f"{seconds} s")
            _draw_paths(panels[2], curves, color, f"{kl} nats")
    for axes, title, below in zip(
        panels,
        ("How high with the same tokens?", "How fast?", "How far from the start?"),
        (
            "thousand tokens generated" if thousands else "tokens generated",
            "seconds of training",
            "KL from the start, nats per response",
        ),
        strict=True,
    ):
        style_axes(axes, title, grid="y")
        axes.title.set_fontsize(14)
        axes.tick_params(labelsize=12)
        axes.set_xlabel(below, fontsize=13)
        before = results.before["reward"]
        axes.axhline(before, color=GREY, linestyle=(0, (4, 3)), label=f"before {before:.2f}")
        axes.legend(loc="best", frameon=False, fontsize=12)
    panels[0].set_ylabel(f"{results.measures[0]}, held-out prompts", fontsize=13)
    figure.suptitle(results.finding(), fontsize=15, fontweight="bold")
    return save_figure(figure, path)


def _draw_band(
    axes: Axes, curves: Sequence[Any], along: str, color: str, label: str, scale: float = 1.0
) -> None:
    """The seeds' mean as a line, from their least to their most as a band."""
    grid = np.linspace(0, min(curve[-1][along] for curve in curves), POINTS)
    rewards = _interpolated(curves, along, "reward", grid)
    x = grid * scale
    axes.fill_between(x, rewards.min(0), rewards.max(0), color=color, alpha=0.18, linewidth=0)
    axes.plot(x, rewards.mean(0), "-o", markevery=[-1], color=color, linewidth=2.8, label=label)


def _draw_paths(axes: Axes, curves: Sequence[Any], color: str, label: str) -> None:
    """Each seed's way from the start, faint, and their mean at equal tokens."""
    grid = np.linspace(0, min(curve[-1]["tokens"] for curve in curves), POINTS)
    kl, rewards = (_interpolated(curves, "tokens", name, grid) for name in ("kl", "reward"))
    axes.plot(kl.T, rewards.T, color=color, linewidth=1, alpha=0.35)
    mean = kl.mean(0), rewards.mean(0)
    axes.plot(*mean, "-o", markevery=[-1], color=color, linewidth=2.8, label=label)


def _interpolated(curves: Sequence[Any], along: str, name: str, grid: np.ndarray) -> np.ndarray:
    """A figure of each curve at the places of the grid, of shape (curves, POINTS)."""
    columns = [[[row[key] for row in curve] for key in (along, name)] for curve in curves]
    return np.array([np.interp(grid, x, y) for x, y in columns])


def _leaders(values: pd.DataFrame, highest: bool) -> tuple[str, list[str]]:
    """The best of them by its mean, and all of which some seed is level with one of its."""
    best = values["mean"].idxmax() if highest else values["mean"].idxmin()
    least, most = values.loc[best, ["least", "most"]]
    return best, list(values.index[(values["least"] <= most) & (least <= values["most"])])


def _listed(names: list[str]) -> str:
    return _joined([NAMES[name] for name in names])


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _verb(names: list[str], verb: str) -> str:
    return verb + "s" * (len(names) == 1)


def _thousands(number: int) -> str:
    return f"{number // 1000}k" if number >= 1000 and number % 1000 == 0 else str(number)


def _shown(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0 makes -0.0 read 0.0


def _markdown(rows: list[list[str]]) -> str:
    """A table that reads well as it stands: the first column to the left, the others right."""
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]

    def line(cells: list[str]) -> str:
        padded = [f"{cells[0]:{widths[0]}}"]
        padded += [f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])
