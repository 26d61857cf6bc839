"""Data sets and their splits: a file, a folder, a name on the hub or the embedded reviews."""

import csv
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_recipes.data.conversations import is_conversation
from trl_recipes.errors import RecipeError
from trl_recipes.models import hub

if TYPE_CHECKING:
    from datasets import Dataset

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
_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t"}  # the first that the header has
# What only a program that writes csv leaves: a field in quotes, with quotes doubled in it.
_QUOTED = re.compile(r'(?:^|\t)"(?:[^"\t\n]|"")*""(?:[^"\t\n]|"")*"(?:\t|$)', re.MULTILINE)
# What may stand for half a character or a number of more than 64 bits in JSON.
_SUSPECT = re.compile(r"\\u[dD][89a-fA-F]|\d{19}")

_SURROGATE = re.compile("[\ud800-\udfff]")

_log = logging.getLogger(__name__)
_said: set[str] = set()


def load_rows(
    dataset_name: str | None, *, split: str = "train", config_name: str | None = None
) -> "Dataset":
    """Load one split of a data set, with all its columns; at least one row.

    Args:
        dataset_name: None for the embedded reviews (columns text and label; splits train, prompts
            and heldout, also called test); a csv, tsv, json, jsonl, parquet or txt file; a folder
            of such files as on the hub, or written by save_to_disk; or a name on the hub. A column
            `split` divides a data set that has no splits of its own.
        split: for "test" any of test, heldout, validation, valid, val, dev, eval and evaluation
            serves, in any case. Where there is none, a tenth of the rows (drawn with a fixed seed)
            is kept out of train for it.
        config_name: the configuration of a data set on the hub.
    """
    if dataset_name is None:
        return _embedded_rows(split)
    parts = _read_splits(hub.resolve(dataset_name, "dataset"), config_name)
    if len(parts) == 1:
        (only,) = parts.values()
        if "split" in only.column_names:
            parts = _divide(only)
    rows = _choose_split(parts, split, dataset_name)
    if len(rows) == 0:
        raise RecipeError(
            f"{SOURCE}: the split `{split}` of `{dataset_name}` holds no rows. Give a data set "
            "with at least one."
        )
    return rows


def make_dataset(columns: dict[str, list[Any]], shown: str, source: str = SOURCE) -> "Dataset":
    """Make an in-memory data set of columns; `shown` names it where one mixes types."""
    _check_values(columns, f"{source}: {shown}")
    import pyarrow as pa
    from datasets import Dataset

    try:
        return Dataset.from_dict(columns)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        mixed = {
            name: sorted({type(value).__name__ for value in values if value is not None})
            for name, values in columns.items()
        }
        several = [f"{name} ({', '.join(kinds)})" for name, kinds in mixed.items() if kinds[1:]]
        raise RecipeError(
            f"{source}: {shown} mixes types in one column: {'; '.join(several) or error}. Give "
            "every value of a column the same type."
        ) from error


def _check_values(columns: dict[str, list[Any]], shown: str) -> None:
    """Name the row of a text that is no Unicode, or of a number of more than 64 bits."""
    for name, values in columns.items():
        for row, value in enumerate(values, 1):
            if fault := _fault(value):
                raise RecipeError(f"{shown}, column `{name}`, row {row} holds {fault}")


def _fault(value: Any) -> str | None:
    """What a data set cannot hold of a value, lists and dicts searched through."""
    if isinstance(value, str) and not value.isascii() and _SURROGATE.search(value):
        return "half a character (a lone surrogate, \\ud800 to \\udfff). Remove it."
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "a whole number of more than 64 bits. Write it as a text, or as 1e30."
    if isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        return next(filter(None, map(_fault, inner)), None)
    return None


def say_once(message: str) -> None:
    """Log a message once, in the main process only."""
    if message not in _said and os.environ.get("RANK", "0") == "0":
        _said.add(message)
        _log.warning(message)


def _embedded_rows(split: str) -> "Dataset":
    from datasets import Dataset

    from trl_recipes import embedded

    part = "heldout" if split in _TEST_SPLITS else split
    if part not in ("train", "prompts", "heldout"):
        raise RecipeError(
            f"The embedded reviews have no split `{split}`. "
            "Choose train, prompts or heldout (also called test)."
        )
    return Dataset.from_list(embedded.reviews(part))


def _read_splits(location: str, config_name: str | None) -> dict[str, "Dataset"]:
    """The splits of a file, a folder, or a data set on the hub."""
    import datasets

    path = Path(location)
    if path.is_file():
        return {"train": _read_file(path)}
    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    options = {} if saved else _folder_options(path)
    with _reading(location), hub.loading(location, "dataset"):
        if saved:
            loaded = datasets.load_from_disk(location)
        else:
            loaded = datasets.load_dataset(location, config_name, **options)
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _folder_options(folder: Path) -> dict[str, Any]:
    """Check the files of a folder, which must be read alike, and give the options to do so."""
    card, ways = folder / "README.md", {}
    for file in sorted(folder.rglob("*.*")):
        suffix, other = file.suffix.lower(), file.name.startswith(("dataset_info", "."))
        if file.is_file() and suffix in _READERS and suffix != ".txt" and not other:
            options = _options(file)
            ways.setdefault((_READERS[suffix], *options.values()), (file, options))
    if len(ways) > 1 and not (card.is_file() and b"data_files" in card.read_bytes()):
        found = ", ".join(file.name for file, _ in ways.values())
        raise RecipeError(
            f"{SOURCE}: the folder `{folder}` holds several kinds of files, {found}, of which one "
            "alone would be read (the delimiter and the quotes count too). Give files of one kind."
        )
    return next(iter(ways.values()))[1] if len(ways) == 1 else {}


def _options(path: Path) -> dict[str, Any]:
    """Check what a reader would lose of a file without a word, and give the reader's options."""
    kind = _READERS[path.suffix.lower()]
    if kind == "parquet":
        import pyarrow.parquet

        with hub.loading(str(path), "dataset"):
            _check_names(pyarrow.parquet.read_schema(path).names, path)
        return {}
    with hub.loading(str(path), "dataset"):
        text = _utf8(path)
    if kind == "json" and _SUSPECT.search(text):
        rows = _json(text) or [_json(line) for line in text.split("\n") if line.strip()]
        for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
            if fault := _fault(row):
                raise RecipeError(f"{SOURCE}: `{path}`, row {number} holds {fault}")
    if kind != "csv":
        return {}
    lines = text.lstrip("\r\n").split("\n")
    delimiters = _DELIMITERS[path.suffix.lower()]
    delimiter = next((mark for mark in delimiters if mark in lines[0]), delimiters[0])
    plain = path.suffix.lower() == ".tsv" and not _QUOTED.search(text)  # quotes are characters
    quoting = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    _check_names(next(csv.reader(lines, delimiter=delimiter, quoting=quoting), []), path)
    for number, line in enumerate(lines, 1):
        if plain and line.strip() and line.count("\t") < lines[0].count("\t"):
            raise RecipeError(
                f"{SOURCE}: `{path}`, line {number} has {line.count(delimiter) + 1} fields, the "
                f"header {lines[0].count(delimiter) + 1}. Fix the line; a text of several "
                "lines goes into .csv or .jsonl."
            )
    # No value becomes a missing one, and no column an index.
    return {"sep": delimiter, "quoting": quoting, "index_col": False, "keep_default_na": False}


def _check_names(names: Sequence[str], path: Path) -> None:
    twice = [name for name in dict.fromkeys(names) if name and list(names).count(name) > 1]
    if twice:
        raise RecipeError(
            f"{SOURCE}: `{path}` has several columns called `{'`, `'.join(twice)}`. Give each "
            "column a name of its own."
        )


def _json(text: str) -> Any:
    """What a text in JSON says; None for damaged text, of which the reader tells."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _object_rows(text: str, path: Path) -> list[Any] | None:
    """The rows inside a file that is one object: its list of objects, or its columns."""
    whole = _json(text) if path.suffix.lower() == ".json" else None
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


def _read_file(path: Path) -> "Dataset":
    """The rows of one file, read by its ending into memory."""
    import datasets

    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise RecipeError(
            f"{SOURCE}: `{path}` is of no known kind. Known are: {', '.join(_READERS)}, and "
            "folders of such files."
        )
    kind = _READERS[suffix]
    no_rows = f"{SOURCE}: `{path}` holds no rows. Give a data set with at least one row."
    with hub.loading(str(path), "dataset"):
        text = "" if kind == "parquet" else _utf8(path)
    if kind == "text":
        lines = [line.rstrip() for line in text.split("\n") if line.strip()]
        if not lines:
            raise RecipeError(no_rows)
        return datasets.Dataset.from_dict({"text": lines})
    if kind != "parquet" and not text.strip():
        raise RecipeError(no_rows)
    options = _options(path)
    with _reading(str(path)), tempfile.TemporaryDirectory() as cache:
        if (rows := _object_rows(text, path)) is not None:
            path = Path(cache, "rows.jsonl")
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        read = {"data_files": str(path), "cache_dir": cache, "keep_in_memory": True}
        with hub.loading(str(path), "dataset"):
            try:
                return datasets.load_dataset(kind, split="train", **read, **options)
            except ValueError as error:
                if "corresponds to no data" in str(error):
                    raise RecipeError(no_rows) from error
                raise


def _utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{SOURCE}: `{path}` is not UTF-8 at byte {error.start}. Save it as UTF-8."
        ) from error


@contextmanager
def _reading(location: str) -> Iterator[None]:
    """Let `datasets` read without bars and log, and turn what it found damaged into an error."""
    import datasets
    from pandas.errors import ParserWarning

    bars = datasets.utils.logging.is_progress_bar_enabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
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
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def _divide(rows: "Dataset") -> dict[str, "Dataset"]:
    """Divide rows by their column `split`."""
    labels = [label if label is None else str(label).strip() for label in rows["split"]]
    if missing := sum(not label for label in labels):
        say_once(f"{missing} of {len(rows)} rows have an empty column `split` and are left out.")
    return {
        name: rows.select([row for row, label in enumerate(labels) if label == name])
        for name in dict.fromkeys(filter(None, labels))
    }


def _choose_split(parts: dict[str, "Dataset"], split: str, name: str) -> "Dataset":
    lower = {part.lower(): rows for part, rows in parts.items()}
    parts, split = (lower, split.lower()) if len(lower) == len(parts) else (parts, split)
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
    if test is not None:
        return parts[train]
    return _hold_out(parts[train], split == "train", name)


def _hold_out(rows: "Dataset", train: bool, name: str) -> "Dataset":
    """Nine tenths of the rows for training, or the other tenth; always the same ones."""
    count = max(1, round(len(rows) * _HELD_OUT_FRACTION))
    if len(rows) <= count:
        if train:
            return rows
        raise RecipeError(
            f"{SOURCE}: `{name}` has no test split and only {len(rows)} row(s), too few to hold "
            "some out. Give a data set with a test split or with more rows."
        )
    say_once(
        f"{name} has no test split: {count} of its {len(rows)} rows are held out of train for it."
    )
    held_out = np.random.default_rng(_HELD_OUT_SEED).permutation(len(rows))[:count]
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[held_out] = True
    return rows.select(np.flatnonzero(chosen != train))
