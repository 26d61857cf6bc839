"""How a step grows: twice the batch, twice the response, and lengths that differ."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from trl_recipes.benchmark.report import versions
from trl_recipes.benchmark.work import Work
from trl_recipes.benchmark.worker import Result

SHORTEST, LONGEST = 4, 64


def growth_works(work: Work) -> dict[str, Work]:
    """Name the steps to compare.

    Args:
        work: the step that batch and response are doubled of.

    Returns:
        By name; "uneven" spreads lengths from 4 to 64, "even" has 34 throughout, their mean.
    """
    return {
        "base": work,
        "batch": replace(work, batch=2 * work.batch),
        "response": replace(work, response=2 * work.response),
        "even": replace(work, response=(SHORTEST + LONGEST) // 2),
        "uneven": replace(work, response=LONGEST, shortest=SHORTEST),
    }


@dataclass(frozen=True)
class Growth:
    """Steps of different sizes, all of our trainer.

    Attributes:
        work: the step that the others are compared with.
        results: for each name of `growth_works`, one result a repeat.
    """

    work: Work
    results: Mapping[str, Sequence[Result]]

    def ratios(self) -> dict[str, float]:
        """How many times as long the larger step takes: the median over the repeats.

        Uneven lengths are compared by the seconds of a query or response token.
        """
        return {
            "twice the batch": self._over("batch", "base"),
            "twice the response": self._over("response", "base"),
            f"lengths {SHORTEST} to {LONGEST} over all equal, a token": self._over(
                "uneven", "even", per_token=True
            ),
        }

    def _over(self, name: str, other: str, per_token: bool = False) -> float:
        def seconds(run: Result) -> float:
            tokens = self.work.query + run.response_tokens if per_token else 1
            return median(step["step"] for step in run.steps) / tokens

        pairs = zip(self.results[name], self.results[other], strict=True)
        return median(seconds(larger) / seconds(smaller) for larger, smaller in pairs)

    def table(self) -> str:
        """Lay steps and ratios out as Markdown."""
        lines = [
            "| Batch | Response | Mean length | Seconds a step | Peak memory |",
            "| ---: | ---: | ---: | ---: | ---: |",
        ]
        for name, work in growth_works(self.work).items():
            lengths = f"{work.shortest} to {work.response}" if work.shortest else work.response
            runs = self.results[name]
            length = median(run.response_tokens for run in runs)
            seconds = median(step["step"] for run in runs for step in run.steps)
            memory = median(run.memory for run in runs) / 1e9
            lines.append(
                f"| {work.batch} | {lengths} | {length:.1f} | {seconds:.3g} | {memory:.2f} GB |"
            )
        lines += ["", "| Growth | times as long |", "| --- | ---: |"]
        lines += [f"| {name} | {ratio:.2f} |" for name, ratio in self.ratios().items()]
        return "\n".join(lines)

    def conditions(self) -> str:
        """Say what was measured on what."""
        runs = self.results["base"]
        return f"{self.work}: {len(runs)} repeats.\n{runs[0].device}, {versions()}."

    def save(self, folder: Path) -> list[Path]:
        """Write growth.md and growth.json.

        Args:
            folder: made if it is not there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        table, numbers = folder / "growth.md", folder / "growth.json"
        table.write_text(f"{self.table()}\n\n{self.conditions()}\n")
        runs = {name: [asdict(run) for run in runs] for name, runs in self.results.items()}
        values = {"work": asdict(self.work), "ratios": self.ratios(), "runs": runs}
        numbers.write_text(json.dumps(values, indent=2) + "\n")
        return [table, numbers]
