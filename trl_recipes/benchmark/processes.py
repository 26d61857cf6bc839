"""The same global batch by one process and by several: samples a second, and what is waiting."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from trl_recipes.benchmark.report import ROWS, Spread, cell, spread, versions
from trl_recipes.benchmark.work import PHASES, Work
from trl_recipes.benchmark.worker import Result

PARTS = ("imbalance", "transfer")
KINDS = ("gradients", "sums")


def process_works(work: Work) -> dict[str, Work]:
    """Name the two ways of doing the same step; on a CPU several processes divide the threads.

    Args:
        work: a step, with the number of processes to compare with one.

    Returns:
        By name.
    """
    threads = torch.get_num_threads()
    share = max(1, threads // work.processes)
    return {
        "1 process": replace(work, processes=1, threads=threads),
        f"{work.processes} processes": replace(work, threads=share),
    }


@dataclass(frozen=True)
class Processes:
    """One step by one process and by several.

    Attributes:
        work: what several do.
        results: for each name of `process_works`, one result a repeat.
    """

    work: Work
    results: Mapping[str, Sequence[Result]]

    def samples_per_second(self, name: str) -> Spread:
        """Responses sampled and trained on in a second, over all timed steps of all repeats.

        Args:
            name: a key of `results`.
        """
        return spread(self.work.batch / step["step"] for _, step in self._steps(name))

    def ratio(self) -> Spread:
        """Samples a second of several processes over those of one: repeats paired as they ran."""
        pairs = zip(*self.results.values(), strict=True)
        return spread(_seconds(one) / _seconds(several) for one, several in pairs)

    def waiting(self, kind: str, part: str, of: Callable[[list[float]], float] = mean) -> Spread:
        """Seconds of a step that processes wait, over all timed steps of all repeats.

        Args:
            kind: gradients, sums, or all.
            part: imbalance, transfer, or all.
            of: what to take of the processes' seconds: their mean, or max.
        """
        keys = [
            f"{k}/{p}"
            for k in (KINDS if kind == "all" else (kind,))
            for p in (PARTS if part == "all" else (part,))
        ]
        return spread(
            of([sum(process.get(key, 0.0) for key in keys) for process in waited])
            for waited, _ in self._steps(self._several)
        )

    def waiting_share(self) -> Spread:
        """Share of a step that processes wait, in the mean over them."""
        return spread(
            mean(
                sum(process.get(f"{k}/{p}", 0.0) for k in KINDS for p in PARTS)
                for process in waited
            )
            / step["step"]
            for waited, step in self._steps(self._several)
        )

    def sums_per_step(self) -> int:
        """Number of statistics that are added up over all processes, one after the other."""
        waited, _ = self._steps(self._several)[0]
        return round(waited[0]["sums/number"])

    def table(self) -> str:
        """Lay the figures out as Markdown: median (least to most)."""
        one, several = self.results
        rows = [["", one, several, "ratio"], ["---", "---:", "---:", "---:"]]
        samples = [self.samples_per_second(name) for name in self.results]
        rows.append(["**samples a second**", *map(cell, samples), cell(self.ratio())])
        for phase in (*PHASES, "step"):
            spreads = [spread(s[phase] for _, s in self._steps(n)) for n in self.results]
            ratio = spreads[1].median / spreads[0].median
            rows.append([f"{ROWS[phase]}, s", *map(cell, spreads), f"{ratio:.2f}"])
        if self._waits:
            share = self.waiting_share()
            rows.append(
                [
                    "waiting, s",
                    "",
                    cell(self.waiting("all", "all")),
                    f"{share.median:.0%} of a step",
                ]
            )
            for kind, name in (
                ("gradients", "for gradients"),
                ("sums", f"for {self.sums_per_step()} sums of statistics"),
            ):
                for part in PARTS:
                    rows.append([f"{name}: {part}, s", "", cell(self.waiting(kind, part)), ""])
            longest = cell(self.waiting("all", "all", max))
            rows.append(["waiting of the process that waits longest, s", "", longest, ""])
        memory = [median(run.memory for run in runs) / 1e9 for runs in self.results.values()]
        cells = [f"{value:.2f} GB" for value in memory]
        rows.append(["peak memory, all processes", *cells, f"{memory[1] / memory[0]:.2f}"])
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def conditions(self) -> str:
        """Say what was measured on what, and what counts as waiting."""
        runs, work = self.results[self._several], self.work
        said = (
            "Waiting is from the moment at which a process has nothing left to compute until it "
            "has what\nthe others know, in the mean over the processes: until the last of them has "
            "come as far (imbalance),\nand from then on (transfer)."
        )
        if not self._waits:
            said = "Waiting is measured on a CPU alone, where a call ends when its work is done."
        first = self.results["1 process"][0].device
        return (
            f"{work}: {len(runs)} repeats of {work.steps} steps; median (least to most).\n"
            f"One process: {first}; each of {work.processes}: {runs[0].device}. {versions()}.\n"
            f"{said}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Every number, raw and summed up, for JSON."""
        summary: dict[str, Any] = {
            "samples_per_second": {n: asdict(self.samples_per_second(n)) for n in self.results},
            "ratio": asdict(self.ratio()),
        }
        if self._waits:
            summary["waiting"] = {
                f"{kind}/{part}": asdict(self.waiting(kind, part))
                for kind in (*KINDS, "all")
                for part in (*PARTS, "all")
            }
            summary["waiting_longest"] = asdict(self.waiting("all", "all", max))
            summary["waiting_share"] = asdict(self.waiting_share())
        runs = {name: [asdict(run) for run in runs] for name, runs in self.results.items()}
        return {"work": asdict(self.work), "summary": summary, "runs": runs}

    def save(self, folder: Path) -> list[Path]:
        """Write processes.md and processes.json.

        Args:
            folder: made if it is not there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        table, numbers = folder / "processes.md", folder / "processes.json"
        table.write_text(f"{self.table()}\n\n{self.conditions()}\n")
        numbers.write_text(json.dumps(self.as_dict(), indent=2) + "\n")
        return [table, numbers]

    @property
    def _several(self) -> str:
        return list(self.results)[1]

    @property
    def _waits(self) -> bool:
        """Whether waiting was measured."""
        return all(run.waiting for run in self.results[self._several])

    def _steps(self, name: str) -> list[tuple[list[dict[str, float]], dict[str, float]]]:
        """Waits of each process, and phases, of each timed step."""
        return [
            (waited, step)
            for run in self.results[name]
            for waited, step in zip(run.waiting or [[]] * len(run.steps), run.steps, strict=True)
        ]


def _seconds(run: Result) -> float:
    return median(step["step"] for step in run.steps)
