"""What a comparison of algorithms found, over the seeds: a table, JSON and a sentence."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from trl_recipes.evaluation.algorithms.curve import CURVE_FILE
from trl_recipes.evaluation.algorithms.runner import RESULT_FILE, read_json, write_json
from trl_recipes.evaluation.algorithms.work import NAMES, Algorithm, Run, Work
from trl_recipes.stats import load_stats

# Rows of the table: figure, what it is called, decimals.
FIGURES = (
    ("kl", "KL, nats a response", 2),
    ("perplexity", "perplexity", 2),
    ("distinct_2", "distinct-2", 3),
    ("length", "length, tokens", 1),
)
SPENT = (("tokens", "tokens generated", 0), ("step", "steps", 0), ("seconds", "seconds", 1))


@dataclass(frozen=True)
class Spread:
    """Mean, least and most of one figure over the seeds.

    Attributes:
        mean: over the seeds.
        least: of any seed.
        most: of any seed.
    """

    mean: float
    least: float
    most: float

    def overlaps(self, other: "Spread") -> bool:
        """Whether some seed of one is level with some seed of the other.

        Args:
            other: figures of another algorithm, over the same seeds.
        """
        return self.least <= other.most and other.least <= self.most


@dataclass(frozen=True)
class Finished:
    """One finished run: its figures, and the rows of its curve at which it was measured.

    Attributes:
        run: what was trained.
        result: of result.json.
        curve: rows with `reward`, `kl` and where the run stood.
    """

    run: Run
    result: dict[str, Any]
    curve: list[dict[str, float]]

    def figure(self, name: str) -> float:
        """A figure of the trained policy, or of what it took.

        Args:
            name: a figure of the policy, or `step`, `tokens` or `seconds`.
        """
        return self.result["policy"].get(name, self.result.get(name))


@dataclass(frozen=True)
class Results:
    """All finished runs of a comparison, by algorithm.

    Attributes:
        work: what all runs share.
        runs: those of each algorithm, by seed.
    """

    work: Work
    runs: dict[Algorithm, list[Finished]]

    def spread(self, algorithm: Algorithm, name: str) -> Spread:
        """A figure of an algorithm over its seeds.

        Args:
            algorithm: whose runs.
            name: of the figure, as for `Finished.figure`.
        """
        values = [run.figure(name) for run in self.runs[algorithm]]
        return Spread(fmean(values), min(values), max(values))

    @property
    def before(self) -> dict[str, float]:
        """Figures of the start model, which is the same for all."""
        return next(iter(self.runs.values()))[0].result["reference"]

    @property
    def measures(self) -> list[str]:
        """Names of what scores an answer, the reward first."""
        own = {name for name, _, _ in FIGURES} | {"reward"}
        return [name for name in self.before if name not in own]

    def table(self) -> str:
        """Lay the figures out as Markdown: a line a figure, mean (least to most) over the seeds."""
        scores = [(name, name, 3) for name in self.measures]
        rows = [["", "before", *(NAMES[name] for name in self.runs)]]
        for name, title, digits in (*scores, *FIGURES, *SPENT):
            known = self.before.get(name)
            cells = [_cell(self.spread(algorithm, name), digits) for algorithm in self.runs]
            rows.append([title, "" if known is None else f"{known:.{digits}f}", *cells])
        return _markdown(rows)

    def per_seed(self) -> str:
        """Lay out the main figures of every run as Markdown."""
        rows = [["run", self.measures[0], "KL", "perplexity", "distinct-2", "tokens", "seconds"]]
        for run in (run for runs in self.runs.values() for run in runs):
            cells = [f"{run.figure('reward'):.3f}", f"{run.figure('kl'):.2f}"]
            cells += [f"{run.figure('perplexity'):.2f}", f"{run.figure('distinct_2'):.3f}"]
            rows.append([str(run.run), *cells, str(run.figure("tokens"))])
            rows[-1].append(f"{run.figure('seconds'):.1f}")
        return _markdown(rows)

    def conditions(self) -> str:
        """Say in a few lines what is the same for all, and what is not."""
        seeds = {name: [run.run.seed for run in runs] for name, runs in self.runs.items()}
        several = ", ".join(f"{NAMES[name]} {_numbers(found)}" for name, found in seeds.items())
        one = set(map(tuple, seeds.values()))
        shown = f"seeds {_numbers(next(iter(seeds.values())))}" if len(one) == 1 else several
        lines = [
            f"Same for all: {self.work}; model, prompts, reward and temperature 1; measured on "
            f"{self.work.eval_prompts} held-out prompts, {shown}; mean (least to most).",
            "Not the same: PPO trains a value head too; GRPO and RLOO answer each prompt several "
            "times, so they see fewer prompts; GRPO's KL weight is in units of the rewards' spread "
            "in a group. Each has its own settings:",
        ]
        for name, runs in self.runs.items():
            lines.append(f"  {NAMES[name]}: {_settings(runs[0].run.settings)}")
        return "\n".join(lines)

    def finding(self) -> str:
        """Say in two lines how they compare; what overlaps over the seeds counts as level."""
        reward = {name: self.spread(name, "reward") for name in self.runs}
        what, tokens = self.measures[0], _thousands(self.work.tokens)
        best, level = _leaders(reward, highest=True)
        if len(self.runs) == 1:
            return f"{NAMES[best]}, {tokens} tokens: {what} {reward[best].mean:.2f}"
        means = [f"{reward[name].mean:.2f}" for name in level]
        first = (
            f"With {tokens} tokens each, {_listed(level)} "
            f"{'end level' if len(level) == len(reward) else _verb(level, 'end') + ' highest'}: "
            f"{what} {means[0] if len(set(means)) == 1 else _joined(means)}"
        )
        seconds = {name: self.spread(name, "seconds") for name in self.runs}
        kl = {name: self.spread(name, "kl") for name in self.runs}
        fastest, fast = _leaders(seconds, highest=False)
        nearest, near = _leaders(kl, highest=False)
        least, way = f"{seconds[fastest].mean:.0f} s", f"{_shown(kl[nearest].mean, 1)} nats"
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
        return {
            "work": self.work.__dict__,
            "before": self.before,
            "summary": {
                algorithm: {name: self.spread(algorithm, name).__dict__ for name in names}
                for algorithm in self.runs
            },
            "runs": [
                {**finished.result, "curve": finished.curve}
                for runs in self.runs.values()
                for finished in runs
            ],
        }

    def save(self, folder: Path) -> list[Path]:
        """Write table.md and results.json.

        Args:
            folder: of the comparison.
        """
        table, numbers = folder / "table.md", folder / "results.json"
        parts = (self.finding(), self.table(), self.per_seed(), self.conditions())
        table.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        write_json(numbers, self.to_dict())
        return [table, numbers]


def load_results(runs: Sequence[Run], folder: Path) -> Results | None:
    """Read what the runs left.

    Args:
        runs: those wanted; one without a result is left out.
        folder: of the comparison.

    Returns:
        None where no run is finished.

    Raises:
        RecipeError: a file is damaged.
    """
    found: dict[Algorithm, list[Finished]] = {}
    for run in runs:
        path = folder / run.folder_name
        if (path / RESULT_FILE).is_file():
            curve = [row for row in load_stats(path / CURVE_FILE) if "reward" in row]
            finished = Finished(run, read_json(path / RESULT_FILE), curve)
            found.setdefault(run.algorithm, []).append(finished)
    return Results(runs[0].work, found) if found else None


def _leaders(spreads: dict[Algorithm, Spread], highest: bool) -> tuple[Algorithm, list[Algorithm]]:
    """The best of them by its mean, and all that overlap with it."""
    best = (max if highest else min)(spreads, key=lambda name: spreads[name].mean)
    return best, [name for name, spread in spreads.items() if spread.overlaps(spreads[best])]


def _listed(names: list[Algorithm]) -> str:
    return _joined([NAMES[name] for name in names])


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _verb(names: list[Algorithm], verb: str) -> str:
    return verb + "s" * (len(names) == 1)


def _thousands(number: int) -> str:
    return f"{number // 1000}k" if number >= 1000 and number % 1000 == 0 else str(number)


def _numbers(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _settings(settings: dict[str, Any]) -> str:
    return json.dumps(settings).strip("{}").replace('"', "") or "the defaults"


def _cell(spread: Spread, digits: int) -> str:
    values = (spread.mean, spread.least, spread.most)
    mean, least, most = (_shown(value, digits) for value in values)
    return mean if least == most else f"{mean} ({least} to {most})"


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
