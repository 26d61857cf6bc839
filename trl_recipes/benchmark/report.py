"""What a benchmark found: medians and ranges, as a table, as JSON and as a chart."""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from trl_recipes.benchmark.bound import Needs, Rates, bound
from trl_recipes.benchmark.models import PHASES, Workload
from trl_recipes.benchmark.worker import Result
from trl_recipes.describe import markdown_table
from trl_recipes.report.plots import COLORS, GREY, Picture, save_figure, style_axes

NAMES = {"ours": "trl_recipes", "classic": "trl_recipes, generate and step"}
NAMES["trl"] = f"TRL {importlib.metadata.version('trl')}"
ROWS = dict(zip(PHASES, ("generation", "scoring", "forward passes", "update"), strict=True))
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft")
PHASE_COLORS = dict(zip(PHASES, (COLORS[1], COLORS[3], COLORS[2], COLORS[0]), strict=True))
INSIDE = {"color": "white", "fontsize": 9, "ha": "center", "va": "center"}
CHARACTER = 0.014  # fraction of the longest bar that a character in it needs


@dataclass(frozen=True)
class Report:
    """Trainers on the same work, one result per repeat each, and the bound."""

    work: Workload
    results: Mapping[str, Sequence[Result]]
    needs: Needs
    rates: Rates

    @property
    def bound(self) -> dict[str, float]:
        """Seconds that a step and its phases take at least."""
        return bound(self.needs, self.rates)

    def seconds(self, name: str) -> pd.DataFrame:
        """Give median, least and most of the seconds of a step and its phases, a column each."""
        steps = [step for run in self.results[name] for step in run.steps]
        return pd.DataFrame(steps).agg(["median", "min", "max"])

    def memory(self, name: str) -> float:
        """Give the peak memory in GB, the median over the repeats."""
        return median(run.memory for run in self.results[name]) / 1e9

    def ratios(self) -> dict[str, float]:
        """Return ours over TRL's in time and memory: the median over repeats, in pairs."""
        if not {"ours", "trl"} <= set(self.results):
            return {}
        pairs = list(zip(self.results["ours"], self.results["trl"], strict=True))
        return {
            "time": median(ours.step / trls.step for ours, trls in pairs),
            "memory": median(ours.memory / trls.memory for ours, trls in pairs),
        }

    def beside_trl(self) -> str:
        """Say the ratios in words; nothing where one trainer was measured alone."""
        return ", ".join(f"{ratio:.2f} of TRL's {what}" for what, ratio in self.ratios().items())

    def table(self) -> str:
        """Format the figures as Markdown: median (least to most)."""
        least, found = self.bound, {name: self.seconds(name) for name in self.results}
        rows = [["Seconds a step", *(NAMES[name] for name in found), "bound"]]
        for phase in (*PHASES, "step"):
            cells = ["{:.3g} ({:.3g} to {:.3g})".format(*each[phase]) for each in found.values()]
            rows.append([ROWS.get(phase, "**step**"), *cells, f"{least.get(phase, 0):.3g}"])
        steps = [each["step"]["median"] for each in found.values()]
        tokens = self.work.batch * next(iter(self.results.values()))[0].response_tokens
        rows.append(["step over bound", *(f"{step / least['step']:.2f}" for step in steps), "1"])
        rows.append(["response tokens a second", *(f"{tokens / step:.0f}" for step in steps), ""])
        rows.append(["peak memory", *(f"{self.memory(name):.2f} GB" for name in found), ""])
        return markdown_table(rows)

    def conditions(self) -> str:
        """Say in a few lines what was measured on what, and the ratios."""
        runs, work = next(iter(self.results.values())), self.work
        versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
        lines = [
            self.beside_trl(),
            f"{work}: {len(runs)} repeats of {work.steps} steps; median (least to most).",
            f"{runs[0].device}, {versions}.",
            f"A step needs {self.needs.operations / 1e12:.3g} TFLOP; measured: "
            f"{self.rates.operations / 1e9:.4g} GFLOP/s in a matrix product, "
            f"{self.rates.bytes / 1e9:.3g} GB/s in a copy.",
        ]
        return "\n".join(filter(None, lines))

    def as_dict(self) -> dict[str, Any]:
        """Collect every number for JSON."""
        return {
            "work": asdict(self.work),
            "versions": _versions(),
            "needs": self.needs._asdict(),
            "rates": self.rates._asdict(),
            "bound": self.bound,
            "ratios": self.ratios(),
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
        title = ": ".join(filter(None, ["One PPO step", self.beside_trl()]))
        figure.suptitle(f"{title}\n{self.work}")
        handles = [Patch(color=PHASE_COLORS[phase], label=ROWS[phase]) for phase in PHASES]
        figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False)
        return save_figure(figure, path)

    def _draw_seconds(self, axes: Axes) -> None:
        found = {name: self.seconds(name) for name in self.results}
        longest = max(each["step"]["max"] for each in found.values())
        for row, each in enumerate(found.values()):
            left = 0.0
            for phase in PHASES:
                seconds = each[phase]["median"]
                axes.barh(row, seconds, left=left, color=PHASE_COLORS[phase], height=0.6)
                text = f"{seconds:.3g}"
                if seconds > CHARACTER * len(text) * longest:
                    axes.text(left + seconds / 2, row, text, **INSIDE)
                left += seconds
            middle, least, most = each["step"]
            span = [[middle - least], [most - middle]]
            axes.errorbar(middle, row, xerr=span, color="black", capsize=3, linewidth=1.2)
            _value(axes, row, most, f"{middle:.3g} s")
        least = self.bound["step"]
        axes.axvline(least, color="black", linestyle=(0, (4, 3)), linewidth=1.2)
        at_top = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "top"}
        axes.annotate(f"bound {least:.3g} s", (least, 1), (4, -2), fontsize=9, **at_top)
        axes.set_xlim(0, 1.16 * longest)
        axes.set_ylim(len(found) - 0.5, -0.85)  # room for the bound's name above
        axes.set_yticks(range(len(found)), [NAMES[name] for name in found])
        style_axes(axes, "Seconds a step", grid="x")
        axes.tick_params(axis="y", length=0, labelsize=10)

    def _draw_memory(self, axes: Axes) -> None:
        memory = [self.memory(name) for name in self.results]
        for row, gigabytes in enumerate(memory):
            axes.barh(row, gigabytes, color=GREY, height=0.6, linewidth=0)
            _value(axes, row, gigabytes, f"{gigabytes:.3g} GB")
        axes.set_xlim(0, 1.5 * max(memory))
        style_axes(axes, "Peak memory, GB", grid="x")
        axes.tick_params(axis="y", length=0)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _value(axes: Axes, row: int, end: float, text: str) -> None:
    """Write a value beside the end of its bar."""
    beside = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(text, (end, row), fontsize=10, fontweight="bold", **beside)
