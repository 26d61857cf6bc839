"""Files of rows, read into data sets, with the place of what is wrong in them."""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_recipes.errors import RecipeError

if TYPE_CHECKING:
    from datasets import Dataset

SOURCE = "--dataset_name"  # where a file is named


def read_file(path: Path) -> "Dataset":
    """Read one file, by its ending.

    Args:
        path: csv, tsv, json, jsonl, parquet or txt.

    Raises:
        RecipeError: it is of no known kind, cannot be read, is damaged (with the line) or empty.
    """
    readers: dict[str, Callable[[Path], dict[str, list[Any]]]] = {
        ".csv": lambda path: _read_table(path, ","),
        ".tsv": lambda path: _read_table(path, "\t"),
        ".json": _read_json,
        ".jsonl": _read_json,
        ".parquet": _read_parquet,
        ".txt": _read_text,
    }
    if path.suffix.lower() not in readers:
        raise RecipeError(
            f"{SOURCE}: `{path}` is of no known kind. Known are: {', '.join(readers)}, and "
            "folders of such files."
        )
    try:
        columns = readers[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{SOURCE}: `{path}` is not UTF-8 at byte {error.start}. Save it as UTF-8."
        ) from error
    except OSError as error:
        raise RecipeError(
            f"{SOURCE}: `{path}` could not be read ({error.strerror or error}). Check the file "
            "and its permissions."
        ) from error
    if not any(columns.values()):
        raise RecipeError(
            f"{SOURCE}: `{path}` holds no rows. Give a data set with at least one row."
        )
    return make_dataset(columns, str(path))


def _read_table(path: Path, delimiter: str) -> dict[str, list[Any]]:
    """A csv or tsv file with a header; columns of numbers become numbers."""
    csv.field_size_limit(2**31 - 1)  # whole reviews exceed the default of 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            lines = [(reader.line_num, line) for line in reader if line]
        except csv.Error as error:
            raise RecipeError(
                f"{SOURCE}: `{path}`, line {reader.line_num}: {error}. Mend the quotes there."
            ) from error
    if not lines:
        return {}
    (_, header), *body = lines
    for number, line in body:
        if len(line) != len(header):
            raise RecipeError(
                f"{SOURCE}: `{path}`, line {number}: {len(line)} fields where the header has "
                f"{len(header)} ({', '.join(header)}). Quote fields that hold the delimiter."
            )
    values = zip(*(line for _, line in body), strict=True) if body else [[] for _ in header]
    return {name: _numbers(list(column)) for name, column in zip(header, values, strict=True)}


def _numbers(column: list[str]) -> list[Any]:
    """The column as integers or else floats where all its values are such, else unchanged."""
    for kind in (int, float):
        try:
            return [kind(value) for value in column]
        except ValueError:
            continue
    return column


def _read_json(path: Path) -> dict[str, list[Any]]:
    """A file of one JSON object a line, or one JSON list of objects."""
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise RecipeError(
                f"{SOURCE}: `{path}`, line {error.lineno}: invalid JSON ({error.msg}). Mend it."
            ) from error
        return columns_of(_checked_objects(enumerate(rows, 1), path, "entry"))
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows = []
    for number, line in numbered:
        try:
            rows.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            raise RecipeError(
                f"{SOURCE}: `{path}`, row {number}: invalid JSON ({error.msg} at character "
                f"{error.pos + 1}). Mend or delete the row."
            ) from error
    return columns_of(_checked_objects(rows, path, "row"))


def _checked_objects(
    rows: Iterable[tuple[int, Any]], path: Path, noun: str
) -> list[dict[str, Any]]:
    checked = []
    for number, row in rows:
        if not isinstance(row, dict):
            raise RecipeError(
                f"{SOURCE}: `{path}`, {noun} {number}: {str(row)[:60]!r} is no object. Every "
                f'{noun} must be one, for instance {{"text": "..."}}.'
            )
        checked.append(row)
    return checked


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        return pa.parquet.read_table(path).to_pydict()
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(
            f"{SOURCE}: `{path}` is no readable parquet file ({reason[:200]}). Write it again."
        ) from error


def _read_text(path: Path) -> dict[str, list[Any]]:
    """One text a line; empty lines are left out."""
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return {"text": [line.rstrip() for line in lines if line.strip()]}


def columns_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Turn rows into columns; None stands where a row lacks a name that others have.

    Args:
        rows: values by name.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def make_dataset(columns: dict[str, list[Any]], shown: str) -> "Dataset":
    """Make an in-memory data set, which writes no cache files.

    Args:
        columns: values by name, all of one length.
        shown: name of the source, for messages.

    Raises:
        RecipeError: a column mixes types.
    """
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
