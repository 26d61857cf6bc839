"""Data sets and their splits: a file, a folder, a name on the hub or the embedded reviews."""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_recipes.errors import RecipeError
from trl_recipes.models import hub

if TYPE_CHECKING:
    from datasets import Dataset

SOURCE = "--dataset_name"  # where a data set is named
_TEST_SPLITS = ("test", "heldout", "validation", "valid", "dev")
_HELD_OUT_FRACTION = 0.1
_HELD_OUT_SEED = 0
# The reader of `datasets` for each kind of file, and its options: no value of a csv file is turned
# into a missing one, and no column into an index.
_CSV = {"index_col": False, "keep_default_na": False}
_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", _CSV),
    ".tsv": ("csv", {**_CSV, "sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".txt": ("text", {}),
}

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
        split: for "test" any of test, heldout, validation, valid and dev serves. Where there is
            none, a tenth of the rows (drawn with a fixed seed) is kept out of train for it.
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


def make_dataset(columns: dict[str, list[Any]], shown: str) -> "Dataset":
    """Make an in-memory data set of columns; `shown` names the source where one mixes types."""
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
            f"{SOURCE}: {shown} mixes types in one column: {'; '.join(several) or error}. Give "
            "every value of a column the same type."
        ) from error


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
    with _reading(location), hub.loading(location, "dataset"):
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(location)
        else:
            loaded = datasets.load_dataset(location, config_name)
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _read_file(path: Path) -> "Dataset":
    """The rows of one file, read by its ending into memory."""
    import datasets

    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise RecipeError(
            f"{SOURCE}: `{path}` is of no known kind. Known are: {', '.join(_READERS)}, and "
            "folders of such files."
        )
    kind, options = _READERS[suffix]
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
    with _reading(str(path)), tempfile.TemporaryDirectory() as cache:
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
    labels = [str(label) for label in rows["split"]]
    return {
        name: rows.select([row for row, label in enumerate(labels) if label == name])
        for name in dict.fromkeys(labels)
    }


def _choose_split(parts: dict[str, "Dataset"], split: str, name: str) -> "Dataset":
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
