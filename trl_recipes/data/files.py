"""Data sets and their splits: a file, a folder, a name on the hub or the embedded reviews."""

import csv
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from pandas.errors import ParserWarning
from transformers.utils import logging

from trl_recipes import embedded
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


def load_rows(dataset_name: str | None, *, split: str = "train") -> Dataset:
    """Load one split of a data set, with all its columns; at least one row.

    Args:
        dataset_name: None for the embedded reviews (columns text and label; splits train, prompts
            and heldout, also called test); a csv, tsv, json, jsonl, parquet or txt file; a folder
            of such files as on the hub, or written by save_to_disk; or a name on the hub. A column
            `split` divides a data set that has no splits of its own.
        split: "test" may go by any usual name (heldout, validation, val, ...), in any case. Where
            there is none, a tenth of the rows (drawn with a fixed seed) is held out of train.
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
    with _told(location), hub.loading(location, "dataset"):
        if path.is_file():
            return {"train": _read_file(path)}
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(location)
        else:
            loaded = datasets.load_dataset(location, **_folder_options(path))
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
    with tempfile.TemporaryDirectory() as cache:
        read = {"data_files": str(path), "cache_dir": cache, "keep_in_memory": True}
        try:
            return datasets.load_dataset(kind, split="train", **read, **_options(path))
        except ValueError as error:
            if "corresponds to no data" in str(error):
                raise RecipeError(no_rows) from error
            raise


def _folder_options(folder: Path) -> dict[str, Any]:
    """Give the reader's options for a folder, whose files must be of one kind."""
    files = [file for file in sorted(folder.rglob("*.*")) if file.suffix.lower() in _READERS]
    files = [
        f for f in files if f.suffix != ".txt" and not f.name.startswith(("dataset_info", "."))
    ]
    kinds = {_READERS[file.suffix.lower()]: file for file in files}
    card = folder / "README.md"
    if len(kinds) > 1 and not (card.is_file() and "data_files" in card.read_text("utf-8")):
        raise RecipeError(
            f"{SOURCE}: the folder `{folder}` holds several kinds of files, "
            f"{', '.join(file.name for file in kinds.values())}, of which one alone would be read. "
            "Give files of one kind."
        )
    return _options(files[0]) if len(kinds) == 1 else {}


def _options(path: Path) -> dict[str, Any]:
    """Give the options by which a csv or tsv file loses nothing."""
    suffix = path.suffix.lower()
    if _READERS[suffix] != "csv":
        return {}
    text = read_text(path, SOURCE)
    header = text.lstrip().partition("\n")[0]
    delimiter = "\t" if suffix == ".tsv" else next((m for m in ",;\t|" if m in header), ",")
    plain = suffix == ".tsv" and not _QUOTED.search(text)  # quotes are characters
    quoting = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    # no value becomes a missing one, and no column an index
    return {"sep": delimiter, "quoting": quoting, "index_col": False, "keep_default_na": False}


@contextmanager
def _told(location: str) -> Iterator[None]:
    """Turn what `datasets` found damaged into an error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ParserWarning)  # more fields than the header has
            yield
    except datasets.exceptions.DatasetGenerationError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        fix = " Quote fields that hold the delimiter." if "fields" in reason else ""
        raise RecipeError(
            f"{SOURCE}: `{location}` could not be read ({reason[:300]}). Fix the row, or give the "
            f"one file that you mean.{fix}"
        ) from error


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
