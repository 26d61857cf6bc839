"""What a benchmark found: medians and ranges, as a table, as JSON and as a chart."""

import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from trl_recipes.benchmark.bound import Bound, Needs, Rates, bound
from trl_recipes.benchmark.models import PHASES, Workload
from trl_recipes.benchmark.worker import Result
from trl_recipes.report.plots import COLORS, GREY, Picture, save_figure, style_axes

NAMES = {"ours": "trl_recipes", "classic": "trl_recipes, generate and step"}
NAMES |= {"trl": f"TRL {importlib.metadata.version('trl')}"}
ROWS = {
    "generation": "generation",
    "scoring": "scoring",
    "forward": "forward passes",
    "update": "update",
    "step": "**step**",
}
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft")
PHASE_COLORS = dict(zip(PHASES, (COLORS[1], COLORS[3], COLORS[2], COLORS[0]), strict=True))
INSIDE = {"color": "white", "fontsize": 9, "ha": "center", "va": "center"}
CHARACTER = 0.014  # share of the longest bar that a character in it needs


class Spread(NamedTuple):
    """Median, least and most of several measurements."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g} to {self.most:.3g})"


@dataclass(frozen=True)
class Report:
    """Trainers on the same work, one result per repeat each, and the bound."""

    work: Workload
    results: Mapping[str, Sequence[Result]]
    needs: Needs
    rates: Rates

    @property
    def bound(self) -> Bound:
        """Seconds that a step takes at least."""
        return bound(self.needs, self.rates)

    def seconds(self, name: str, phase: str = "step") -> Spread:
        """Summarize seconds of a step or of a phase, over all timed steps of all repeats."""
        return _spread(step[phase] for run in self.results[name] for step in run.steps)

    def memory(self, name: str) -> Spread:
        """Summarize peak memory in bytes, over the repeats."""
        return _spread(run.memory for run in self.results[name])

    def generation_share(self, name: str) -> float:
        """Return the fraction of a step's seconds that go into generation."""
        steps = [step for run in self.results[name] for step in run.steps]
        return median(step["generation"] / step["step"] for step in steps)

    def tokens_a_second(self, name: str) -> float:
        """Return the response tokens of a batch over the seconds of a step."""
        tokens = median(run.response_tokens for run in self.results[name])
        return self.work.batch * tokens / self.seconds(name).median

    def over_bound(self, name: str) -> float:
        """Return the seconds of a step over those of the bound."""
        return self.seconds(name).median / self.bound.step

    def ratios(self) -> dict[str, float]:
        """Return the first over the last, in time and memory: the median over repeats, in pairs."""
        if len(self.results) < 2:
            return {}
        first, *_, last = self.results.values()
        pairs = list(zip(first, last, strict=True))
        return {
            "time": median(ours.step / theirs.step for ours, theirs in pairs),
            "memory": median(ours.memory / theirs.memory for ours, theirs in pairs),
        }

    def table(self) -> str:
        """Lay the figures out as Markdown: median (least to most)."""
        ratios = self.ratios()
        both = bool(ratios)
        bounds = asdict(self.bound) | {"step": self.bound.step}
        rows = [["Seconds a step", *(NAMES[name] for name in self.results), "ratio", "bound"]]
        for phase in (*PHASES, "step"):
            spreads = [self.seconds(name, phase) for name in self.results]
            ratio = spreads[0].median / spreads[-1].median
            if both and phase == "step":
                ratio = ratios["time"]
            least = f"{bounds[phase]:.3g}" if phase in bounds else ""
            rows.append([ROWS[phase], *map(str, spreads), f"{ratio:.2f}", least])
        over = [f"{self.over_bound(name):.2f}" for name in self.results]
        share = [f"{self.generation_share(name):.0%}" for name in self.results]
        memory = [f"{self.memory(name).median / 1e9:.2f} GB" for name in self.results]
        tokens = [f"{self.tokens_a_second(name):.0f}" for name in self.results]
        rows.append(["step over bound", *over, "", "1"])
        rows.append(["response tokens a second", *tokens, "", ""])
        rows.append(["share of generation", *share, "", ""])
        rows.append(["peak memory", *memory, f"{ratios['memory']:.2f}" if both else "", ""])
        if not both:
            rows = [[*row[:-2], row[-1]] for row in rows]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        lines.insert(1, "| --- |" + " ---: |" * (len(rows[0]) - 1))
        return "\n".join(lines)

    def conditions(self) -> str:
        """Say in a few lines what was measured on what."""
        runs, work = next(iter(self.results.values())), self.work
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
        return (
            f"{work}: {len(runs)} repeats of {work.steps} steps; median (least to most).\n"
            f"{runs[0].device}, {versions}.\n"
            f"A step needs {self.needs.operations / 1e12:.3g} TFLOP; measured: "
            f"{self.rates.operations / 1e9:.4g} GFLOP/s in a matrix product, "
            f"{self.rates.bytes / 1e9:.3g} GB/s in a copy."
        )

    def as_dict(self) -> dict[str, Any]:
        """Collect every number, raw and summed up, for JSON."""
        return {
            "work": asdict(self.work),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "device": next(iter(self.results.values()))[0].device,
            "needs": self.needs._asdict(),
            "rates": self.rates._asdict(),
            "bound": asdict(self.bound) | {"step": self.bound.step},
            "ratios": self.ratios(),
            "summary": {
                name: {
                    "seconds": {p: self.seconds(name, p)._asdict() for p in (*PHASES, "step")},
                    "memory": self.memory(name)._asdict(),
                    "generation_share": self.generation_share(name),
                    "over_bound": self.over_bound(name),
                    "tokens_a_second": self.tokens_a_second(name),
                }
                for name in self.results
            },
            "runs": {name: [asdict(run) for run in runs] for name, runs in self.results.items()},
        }

    def save(self, folder: Path) -> list[Path]:
        """Write table.md, results.json and chart.png."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / name for name in ("table.md", "results.json", "chart.png")]
        files[0].write_text(f"{self.table()}\n\n{self.conditions()}\n", encoding="utf-8")
        files[1].write_text(json.dumps(self.as_dict(), indent=2) + "\n")
        self.chart(files[2])
        return files

    def chart(self, path: Path | None = None) -> Figure:
        """Draw a bar for each trainer: seconds by phase with the bound as a line, and memory."""
        figure = Picture(figsize=(9, 2.0 + 0.62 * len(self.results)), layout="constrained")
        time_axes, memory_axes = figure.subplots(1, 2, width_ratios=[2.6, 1], sharey=True)
        self._draw_seconds(time_axes)
        self._draw_memory(memory_axes)
        title = "One PPO step"
        if ratios := self.ratios():
            whose = "TRL" if "trl" in self.results else "train()"
            title += f": {ratios['time']:.2f} of {whose}'s time"
            title += f", {ratios['memory']:.2f} of its memory"
        figure.suptitle(f"{title}\n{self.work}")
        handles = [Patch(color=PHASE_COLORS[p], label=ROWS[p]) for p in PHASES]
        figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False)
        return save_figure(figure, path)

    def _draw_seconds(self, axes: Axes) -> None:
        longest = max(self.seconds(name).most for name in self.results)
        for row, name in enumerate(self.results):
            left = 0.0
            for phase in PHASES:
                seconds = self.seconds(name, phase).median
                axes.barh(row, seconds, left=left, color=PHASE_COLORS[phase], height=0.6)
                text = f"{seconds:.3g}"
                if seconds > CHARACTER * len(text) * longest:
                    axes.text(left + seconds / 2, row, text, **INSIDE)
                left += seconds
            step = self.seconds(name)
            span = [[step.median - step.least], [step.most - step.median]]
            axes.errorbar(step.median, row, xerr=span, color="black", capsize=3, linewidth=1.2)
            _value(axes, row, step.most, f"{step.median:.3g} s")
        axes.axvline(self.bound.step, color="black", linestyle=(0, (4, 3)), linewidth=1.2)
        at_top = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "top"}
        axes.annotate(
            f"bound {self.bound.step:.3g} s", (self.bound.step, 1), (4, -2), fontsize=9, **at_top
        )
        axes.set_xlim(0, 1.16 * longest)
        axes.set_ylim(len(self.results) - 0.5, -0.85)  # room for the bound's name above
        axes.set_yticks(range(len(self.results)), [NAMES[name] for name in self.results])
        style_axes(axes, "Seconds a step", grid="x")
        axes.tick_params(axis="y", length=0, labelsize=10)

    def _draw_memory(self, axes: Axes) -> None:
        for row, name in enumerate(self.results):
            memory = self.memory(name).median / 1e9
            axes.barh(row, memory, color=GREY, height=0.6, linewidth=0)
            _value(axes, row, memory, f"{memory:.3g} GB")
        axes.set_xlim(0, 1.5 * max(self.memory(name).median for name in self.results) / 1e9)
        style_axes(axes, "Peak memory, GB", grid="x")
        axes.tick_params(axis="y", length=0)


def _value(axes: Axes, row: int, end: float, text: str) -> None:
    """Write a value beside the end of its bar."""
    beside = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(text, (end, row), fontsize=10, fontweight="bold", **beside)


def _spread(values: Iterable[float]) -> Spread:
    values = list(values)
    return Spread(median(values), min(values), max(values))
