"""all_stats: what a row holds, and rows on disk as JSON lines.

A training run leaves one row (a dict of numbers) a step. statistics.csv explains every key once;
the table of docs/statistics.md is made from it. "Per sequence" means summed over the tokens of one
response and then averaged over the batch, "per token" averaged over all response tokens.
"""

import csv
import fnmatch
import importlib.resources
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trl_recipes.errors import RecipeError
from trl_recipes.run_folder import RunFolder, write_whole

Rows = Sequence[Mapping[str, Any]]  # of all_stats


class StatKey(NamedTuple):
    """Unit of one key of a stats row, and its meaning with what is healthy."""

    unit: str
    meaning: str


_TABLE = importlib.resources.files("trl_recipes").joinpath("statistics.csv").read_text("utf-8")
STATISTICS = list(csv.DictReader(_TABLE.splitlines()))
STAT_KEYS = {row["key"]: StatKey(row["unit"], row["meaning"]) for row in STATISTICS}


def stat_key(key: str) -> StatKey | None:
    """Look one key up in `STAT_KEYS`, where `<name>` stands for any name; None if unknown.

    >>> stat_key("rewards/length/mean").unit
    'score'
    """
    if key in STAT_KEYS:
        return STAT_KEYS[key]
    for pattern, explained in STAT_KEYS.items():
        if "<" in pattern and fnmatch.fnmatchcase(key, re.sub(r"<\w+>", "*", pattern)):
            return explained
    return None


def stat_table() -> str:
    """Make the table of keys for the docs: Markdown, one line a key."""
    rows = [f"| `{key}` | {unit} | {meaning} |" for key, (unit, meaning) in STAT_KEYS.items()]
    return "\n".join(["| Key | Unit | Meaning |", "| --- | --- | --- |", *rows])


def append_stats(path: str | Path, stats: dict[str, Any]) -> None:
    """Append a row's numbers (of Python, numpy or torch) to a JSON-lines file; nan as null."""
    scalars = {k: v for k, v in stats.items() if v is not None and getattr(v, "ndim", 0) == 0}
    row = {name: _plain(value) for name, value in scalars.items()}
    _append(path, [{name: v for name, v in row.items() if v is None or isinstance(v, int | float)}])


def append_samples(path: str | Path, step: int, columns: Mapping[str, Sequence[Any]]) -> None:
    """Append one row (step, query, response, score) for each sample to a JSON-lines file."""
    plain = [[_plain(value) for value in values] for values in columns.values()]
    rows = zip(*plain, strict=True)
    _append(path, [{"step": step} | dict(zip(columns, row, strict=True)) for row in rows])


def append_alarms(path: str | Path, step: int, sentences: Sequence[str]) -> None:
    """Append one row (step, alarm) for each alarm of a step; none writes nothing."""
    if sentences:
        _append(path, [{"step": step, "alarm": sentence} for sentence in sentences])


def load_stats(run_or_file: str | Path) -> list[dict[str, float]]:
    """Read all_stats back, a row a step, from a run folder or its file; null comes back as nan."""
    path = Path(run_or_file)
    path = RunFolder(path).all_stats if path.is_dir() else path
    if not path.is_file():
        raise RecipeError(
            f"No statistics at {path}. Give the folder of a run (it holds all_stats.jsonl) or the"
            " file itself; a run writes its first row after its first step."
        )
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        for key, value in row.items():
            if not isinstance(value, int | float | None) or (key == "step" and value is None):
                raise RecipeError(
                    f"{path}, row {number}: `{key}` is {value!r}, which is no number. Fix the row."
                )
    if not rows:
        raise RecipeError(f"{path} holds no rows yet. A run writes one after each step.")
    return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file of a run, which need not be there, without a line cut short."""
    path = Path(path)
    if not path.is_file():
        return []
    *lines, cut = path.read_text(encoding="utf-8", errors="replace").split("\n")
    if cut.endswith("}"):  # a file edited by hand may lack the last newline
        lines.append(cut)
    return [_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def keep_steps(path: str | Path, last: int) -> list[dict[str, Any]]:
    """Drop the rows of steps after `last` from a JSON-lines file, and return the others."""
    path = Path(path)
    rows = [row for row in read_rows(path) if row["step"] <= last]
    if path.is_file():
        write_whole(path, _json_lines(rows))
    return rows


def steps_of(all_stats: Rows) -> list[int]:
    """Give the step of each row; rows of a hand-written loop that name none are counted from 1."""
    return [int(row.get("step", number)) for number, row in enumerate(all_stats, 1)]


def tenth(count: int) -> int:
    """Count a tenth of so many rows, but at least 3 where they are there."""
    return max(1, min(count, 3), count // 10)


def is_number(value: object) -> bool:
    """Whether a value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def run_names(runs: Sequence[str | Path], taken: Sequence[str] = ()) -> list[str]:
    """Name runs for tables and legends: by folder, or by the whole path where that is unclear.

    `taken` are names that mean something else.
    """
    paths = [Path(run).resolve() for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if paths.count(path) > 1:
            raise RecipeError(f"The run {run} is given {paths.count(path)} times. Give it once.")
    names = [path.name for path in paths]
    clear = len({*names, *taken}) == len(names) + len(taken)
    return names if clear else [str(path) for path in paths]


def distinct_n(sequences: Sequence[str | Sequence[Any]], n: int = 2) -> float:
    """Compute the fraction of distinct n-grams among all of the sequences (Li et al. 2016).

    Texts are cut into words at white space, lists are of tokens. nan where none is n long.
    """
    ngrams = []
    for sequence in sequences:
        tokens = sequence.split() if isinstance(sequence, str) else list(sequence)
        ngrams += [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else math.nan


def _plain(value: Any) -> Any:
    """A value as JSON has it; None where it is a number that is not finite."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, int | float):
        return (int(value) if isinstance(value, bool) else value) if math.isfinite(value) else None
    return value if isinstance(value, str | list | dict | None) else str(value)


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{path}, line {number}: not JSON ({error}). Fix the line.") from None
    if not isinstance(row, dict):
        raise RecipeError(f"{path}, line {number}: expected an object with keys, got {line[:60]}.")
    return row


def _append(path: str | Path, rows: list[dict[str, Any]]) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(max(0, file.tell() - 1))
        if file.read(1) not in (b"\n", b""):  # a line that a killed run left without its end
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(_json_lines(rows).encode("utf-8", errors="replace"))


def _json_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
