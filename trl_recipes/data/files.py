"""Data sets and their splits: a file, a folder, a name on the hub or the embedded reviews."""

import csv
import io
import json
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from pandas.errors import ParserWarning
from transformers.utils import logging

from trl_recipes import embedded
from trl_recipes.data.conversations import is_conversation
from trl_recipes.errors import RecipeError
from trl_recipes.models import hub

logger = logging.get_logger(__name__)

SOURCE = "--dataset_name"  # where a data set is named
_TEST_SPLITS = ("test", "heldout", "validation", "valid", "val", "dev", "eval", "evaluation")
_HELD_OUT_FRACTION = 0.1
_HELD_OUT_SEED = 0
# The reader of `datasets` for each kind of file.
_READERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
# What only a program that writes csv leaves: a field in quotes, with quotes doubled in it.
_QUOTED = re.compile(r'(?:^|\t)"(?:[^"\t\n]|"")*""(?:[^"\t\n]|"")*"(?:\t|$)', re.MULTILINE)
# What may stand for half a character or a number of more than 64 bits in JSON.
_SUSPECT = re.compile(r"\\u[dD][89a-fA-F]|\d{19}")
_SURROGATE = re.compile("[\ud800-\udfff]")


def load_rows(dataset_name: str | None, *, split: str = "train") -> Dataset:
    """Load one split of a data set, with all its columns; at least one row.

    `dataset_name`: None for the embedded reviews (columns text and label; splits train, prompts and
    test); a csv, tsv, json, jsonl, parquet or txt file; a folder of such files as on the hub, or
    written by save_to_disk; or a name on the hub. A column `split` divides what has no splits.
    `split`: "test" may go by any usual name. Where there is none, a tenth of the rows (drawn with
    a fixed seed) is held out of train.
    """
    if dataset_name is None:
        return Dataset.from_list(embedded.reviews("heldout" if split in _TEST_SPLITS else split))
    parts = _read(hub.resolve(dataset_name, "dataset"))
    if len(parts) == 1:
        (only,) = parts.values()
        if "split" in only.column_names:
            parts = _divide(only)
    rows = _choose_split(parts, split.lower(), dataset_name)
    if len(rows) == 0:
        raise RecipeError(f"{SOURCE}: the split `{split}` of `{dataset_name}` holds no rows.")
    return rows


def read_text(path: str | Path, source: str) -> str:
    """Read a UTF-8 text file without changing a character, line ends included."""
    file = Path(path).expanduser()
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{source}: `{file}` could not be read as text ({error}). Give a UTF-8 text file."
        ) from error


def _read(location: str) -> dict[str, Dataset]:
    """The splits of a file, a folder, or a data set on the hub."""
    path = Path(location)
    try:
        with warnings.catch_warnings(), hub.loading(location, "dataset"):
            warnings.simplefilter("error", ParserWarning)  # more fields than the header has
            if path.is_file():
                return {"train": _read_file(path)}
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                loaded = datasets.load_from_disk(location)
            else:
                loaded = datasets.load_dataset(location, **_folder_options(path))
    except datasets.exceptions.DatasetGenerationError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        fix = " Quote fields that hold the delimiter." if "fields" in reason else ""
        raise RecipeError(
            f"{SOURCE}: `{location}` could not be read ({reason[:300]}). Fix the row, or give the "
            f"one file that you mean.{fix}"
        ) from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _read_file(path: Path) -> Dataset:
    kind = _READERS.get(path.suffix.lower())
    if kind is None:
        raise RecipeError(
            f"{SOURCE}: `{path}` is of no known kind. Known are: {', '.join(_READERS)}, and "
            "folders of such files."
        )
    no_rows = f"{SOURCE}: `{path}` holds no rows. Give a data set with at least one row."
    text = None if kind == "parquet" else read_text(path, SOURCE)
    if text is not None and not text.strip():
        raise RecipeError(no_rows)
    if kind == "text":
        lines = text.removeprefix("\ufeff").split("\n")
        return Dataset.from_dict({"text": [line.rstrip() for line in lines if line.strip()]})
    options = _options(path)
    with tempfile.TemporaryDirectory() as cache:
        if path.suffix.lower() == ".json" and (rows := _object_rows(text, path)) is not None:
            path = Path(cache, "rows.jsonl")
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        read = {"data_files": str(path), "cache_dir": cache, "keep_in_memory": True}
        try:
            return datasets.load_dataset(kind, split="train", **read, **options)
        except ValueError as error:
            if "corresponds to no data" in str(error):
                raise RecipeError(no_rows) from error
            raise


def _object_rows(text: str, path: Path) -> list[Any] | None:
    """The rows inside a file that is one object: its list of objects, or its columns."""
    whole = _json(text)
    if not isinstance(whole, dict):
        return None
    lists = {name: values for name, values in whole.items() if isinstance(values, list) and values}
    rows = [n for n, v in lists.items() if is_conversation(v) and "role" not in v[0]]
    if len(rows) > 1:
        raise RecipeError(
            f"{SOURCE}: `{path}` holds several lists of rows, {', '.join(rows)}. Write a file of "
            "each, and give the folder."
        )
    if rows or len(lists) < len(whole) or len(set(map(len, lists.values()))) > 1:
        return whole[rows[0]] if rows else None
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _folder_options(folder: Path) -> dict[str, Any]:
    """Give the reader's options for a folder, whose files must be read alike."""
    card, ways = folder / "README.md", {}
    for file in sorted(folder.rglob("*.*")):
        suffix, other = file.suffix.lower(), file.name.startswith(("dataset_info", "."))
        if suffix in _READERS and suffix != ".txt" and not other:
            options = _options(file)
            ways.setdefault((_READERS[suffix], *options.values()), (file, options))
    if len(ways) > 1 and not (card.is_file() and "data_files" in card.read_text("utf-8")):
        found = ", ".join(file.name for file, _ in ways.values())
        raise RecipeError(
            f"{SOURCE}: the folder `{folder}` holds several kinds of files, {found}, of which one "
            "alone would be read (the delimiter and the quotes count too). Give files of one kind."
        )
    return next(iter(ways.values()))[1] if len(ways) == 1 else {}


def _options(path: Path) -> dict[str, Any]:
    """Refuse what a reader would lose of a file without a word, and give the reader's options."""
    suffix = path.suffix.lower()
    kind = _READERS[suffix]
    text = "" if kind == "parquet" else read_text(path, SOURCE)
    if kind == "json" and _SUSPECT.search(text):
        rows = _json(text) or [_json(line) for line in text.split("\n") if line.strip()]
        for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
            if fault := _fault(row):
                raise RecipeError(f"{SOURCE}: `{path}`, row {number} holds {fault}")
    if kind != "csv":
        return {}
    lines = list(io.StringIO(text.lstrip("\ufeff\r\n"), newline=None))
    header = lines[0] if lines else ""
    delimiter = "\t" if suffix == ".tsv" else next((m for m in ",;\t|" if m in header), ",")
    plain = suffix == ".tsv" and not _QUOTED.search(text)  # quotes are characters
    quoting = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    names = next(csv.reader(lines, delimiter=delimiter, quoting=quoting), [])
    if twice := [n for n in dict.fromkeys(names) if n and names.count(n) > 1]:
        raise RecipeError(
            f"{SOURCE}: `{path}` has several columns called `{'`, `'.join(twice)}`. Give "
            "each column a name of its own."
        )
    for number, line in enumerate(lines if plain else [], 1):
        if line.strip() and line.count("\t") < len(names) - 1:
            raise RecipeError(
                f"{SOURCE}: `{path}`, line {number} has {line.count(delimiter) + 1} fields, the "
                f"header {len(names)}. Fix it; texts of several lines go into .csv or .jsonl."
            )
    # no value becomes a missing one, and no column an index
    return {"sep": delimiter, "quoting": quoting, "index_col": False, "keep_default_na": False}


def _json(text: str) -> Any:
    """What a text in JSON says; None for damaged text, of which the reader tells."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _fault(value: Any) -> str | None:
    """What a data set cannot hold of a value, lists and dicts searched through."""
    if isinstance(value, str) and _SURROGATE.search(value):
        return "half a character (a lone surrogate, \\ud800 to \\udfff). Remove it."
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "a whole number of more than 64 bits. Write it as a text, or as 1e30."
    if isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        return next(filter(None, map(_fault, inner)), None)
    return None


def _divide(rows: Dataset) -> dict[str, Dataset]:
    """Divide rows by their column `split`."""
    labels = [str(label or "").strip() for label in rows["split"]]
    if missing := labels.count(""):
        logger.warning_once(
            f"{missing} of {len(rows)} rows have an empty column `split` and are left out."
        )
    return {
        name: rows.select([row for row, label in enumerate(labels) if label == name])
        for name in dict.fromkeys(filter(None, labels))
    }


def _choose_split(parts: dict[str, Dataset], split: str, name: str) -> Dataset:
    parts = {part.lower(): rows for part, rows in parts.items()}
    if split in parts and split != "train":
        return parts[split]
    test = next((part for part in _TEST_SPLITS if part in parts), None)
    if split in _TEST_SPLITS and test is not None:
        return parts[test]
    train = "train" if "train" in parts else next(iter(parts)) if len(parts) == 1 else None
    if train is None or split not in ("train", *_TEST_SPLITS):
        raise RecipeError(
            f"{SOURCE}: `{name}` has no split `{split}`. Its splits are: {', '.join(parts)}."
        )
    return parts[train] if test is not None else _hold_out(parts[train], split == "train", name)


def _hold_out(rows: Dataset, train: bool, name: str) -> Dataset:
    """Nine tenths of the rows for training, or the other tenth; always the same ones."""
    count = max(1, round(len(rows) * _HELD_OUT_FRACTION))
    if len(rows) <= count:
        if train:
            return rows
        raise RecipeError(
            f"{SOURCE}: `{name}` has no test split and only {len(rows)} row(s), too few to hold "
            "some out. Give a data set with a test split or with more rows."
        )
    logger.warning_once(
        f"{name} has no test split: {count} of its {len(rows)} rows are held out of train for it."
    )
    held_out = np.random.default_rng(_HELD_OUT_SEED).permutation(len(rows))[:count]
    return rows.select(np.flatnonzero(np.isin(np.arange(len(rows)), held_out) != train))
