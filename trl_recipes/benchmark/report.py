"""What a benchmark found: medians and ranges, as a table, as JSON and as a chart."""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from trl_recipes.benchmark.bound import Needs, Rates, bound
from trl_recipes.benchmark.models import PHASES, Workload
from trl_recipes.benchmark.worker import Result
from trl_recipes.describe import markdown_table
from trl_recipes.report.plots import COLORS, GREY, Picture, save_figure, style_axes
from trl_recipes.run_folder import versions

NAMES = {"ours": "trl_recipes", "classic": "trl_recipes, generate and step"}
NAMES["trl"] = f"TRL {importlib.metadata.version('trl')}"
ROWS = dict(zip(PHASES, ("generation", "scoring", "forward passes", "update"), strict=True))
PHASE_COLORS = dict(zip(PHASES, (COLORS[1], COLORS[3], COLORS[2], COLORS[0]), strict=True))
BESIDE = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontweight": "bold"}


@dataclass(frozen=True)
class Report:
    """Trainers on the same work, one result per repeat each, and the bound."""

    work: Workload
    results: Mapping[str, Sequence[Result]]
    needs: Needs
    rates: Rates

    def seconds(self, name: str) -> pd.DataFrame:
        """Give median, least and most of the seconds of a step and its phases, a column each."""
        steps = [step for run in self.results[name] for step in run.steps]
        return pd.DataFrame(steps).agg(["median", "min", "max"])

    def _gigabytes(self, name: str) -> float:
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

    def _beside_trl(self) -> str:
        return ", ".join(f"{ratio:.2f} of TRL's {what}" for what, ratio in self.ratios().items())

    def table(self) -> str:
        """Format the figures as Markdown: median (least to most)."""
        found = {name: self.seconds(name) for name in self.results}
        least = bound(self.needs, self.rates)
        rows = [["Seconds a step", *(NAMES[name] for name in found), "bound"]]
        for phase in (*PHASES, "step"):
            cells = ["{:.3g} ({:.3g} to {:.3g})".format(*each[phase]) for each in found.values()]
            rows.append([ROWS.get(phase, "**step**"), *cells, f"{least.get(phase, 0):.3g}"])
        steps = [each["step"]["median"] for each in found.values()]
        tokens = self.work.batch * next(iter(self.results.values()))[0].response_tokens
        rows.append(["step over bound", *(f"{step / least['step']:.2f}" for step in steps), "1"])
        rows.append(["response tokens a second", *(f"{tokens / step:.0f}" for step in steps), ""])
        rows.append(["peak memory", *(f"{self._gigabytes(name):.2f} GB" for name in found), ""])
        return markdown_table(rows)

    def conditions(self) -> str:
        """Say in a few lines what was measured on what, and the ratios."""
        runs, work, needs = next(iter(self.results.values())), self.work, self.needs
        operations = needs.generation_operations + needs.forward_operations
        operations += needs.update_operations
        lines = [
            self._beside_trl(),
            f"{work}: {len(runs)} repeats of {work.steps} steps; median (least to most).",
            f"{runs[0].device}, {versions()}.",
            f"A step needs {operations / 1e12:.3g} TFLOP; measured: "
            f"{self.rates.operations / 1e9:.4g} GFLOP/s in a matrix product, "
            f"{self.rates.bytes / 1e9:.3g} GB/s in a copy.",
        ]
        return "\n".join(filter(None, lines))

    def save(self, folder: Path) -> list[Path]:
        """Write table.md, results.json (every number) and chart.png."""
        numbers = {
            "work": asdict(self.work),
            "versions": versions(),
            "needs": self.needs._asdict(),
            "rates": self.rates._asdict(),
            "bound": bound(self.needs, self.rates),
            "ratios": self.ratios(),
            "runs": {name: [asdict(run) for run in runs] for name, runs in self.results.items()},
        }
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / name for name in ("table.md", "results.json", "chart.png")]
        files[0].write_text(f"{self.table()}\n\n{self.conditions()}\n", encoding="utf-8")
        files[1].write_text(json.dumps(numbers, indent=2) + "\n")
        self.chart(files[2])
        return files

    def chart(self, path: Path | None = None) -> Figure:
        """Draw a bar for each trainer: seconds by phase with the bound as a line, and memory."""
        figure = Picture(figsize=(9, 2.0 + 0.62 * len(self.results)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[2.6, 1], sharey=True)
        found = {name: self.seconds(name) for name in self.results}
        for row, (name, seconds) in enumerate(found.items()):
            ends = seconds.loc["median", [*PHASES]].cumsum()
            for phase, end in ends[::-1].items():  # each over the longer ones
                left.barh(row, end, color=PHASE_COLORS[phase], height=0.6)
            middle, least, most = seconds["step"]
            span = [[middle - least], [most - middle]]
            left.errorbar(middle, row, xerr=span, color="black", capsize=3, linewidth=1.2)
            left.annotate(f"{middle:.3g} s", (most, row), **BESIDE)
            memory = self._gigabytes(name)
            right.barh(row, memory, color=GREY, height=0.6)
            right.annotate(f"{memory:.3g} GB", (memory, row), **BESIDE)
        least = bound(self.needs, self.rates)["step"]
        left.axvline(least, color="black", linestyle=(0, (4, 3)), linewidth=1.2)
        at_top = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "top"}
        left.annotate(f"bound {least:.3g} s", (least, 1), (4, -2), fontsize=9, **at_top)
        left.set_ylim(len(found) - 0.5, -0.85)  # room for the bound's name above
        left.set_yticks(range(len(found)), [NAMES[name] for name in found])
        for axes, title, room in ((left, "Seconds a step", 0.2), (right, "Peak memory, GB", 0.5)):
            axes.margins(x=room)  # for the value beside the bar
            style_axes(axes, title, grid="x")
            axes.tick_params(axis="y", length=0, labelsize=10)
        title = ": ".join(filter(None, ["One PPO step", self._beside_trl()]))
        figure.suptitle(f"{title}\n{self.work}")
        handles = [Patch(color=PHASE_COLORS[phase], label=ROWS[phase]) for phase in PHASES]
        figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False)
        return save_figure(figure, path)
