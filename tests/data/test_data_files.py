"""Every kind of file, its splits, and the error for each way to get them wrong."""

import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from trl_recipes.data.files import load_rows, read_text
from trl_recipes.data.prompts import LengthSampler, collator
from trl_recipes.errors import RecipeError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

ROWS = [
    {"text": "A fine film, quietly told.", "label": 1},
    {"text": 'He said "no", then left.', "label": 0},
    {"text": "Caf\u00e9 scenes\u2028and rain.", "label": 1},
]


WRITERS = {
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    ".tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    ".json": lambda frame, path: frame.to_json(path, orient="records"),
    ".jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    ".parquet": lambda frame, path: frame.to_parquet(path),
}


def write_rows(path, rows):
    """Write rows in the format of the suffix, with pandas (an independent writer)."""
    WRITERS[path.suffix](pd.DataFrame(rows), path)
    return str(path)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path):
    """The rows of both splits."""
    return [load_rows(str(path), split=split).to_list() for split in ("train", "test")]


def all_train(rows):
    """Rows of which none is held out, because there is a test split."""
    return [{**row, "split": "train"} for row in rows] + [{"text": "held out", "split": "test"}]


def numbered(count, **columns):
    return [{"text": f"text number {i}", "label": i % 2, **columns} for i in range(count)]


def test_lengths_are_uniform_without_the_upper_end_or_numpys():
    sampler = LengthSampler(2, 5, seed=0)
    drawn = np.bincount([sampler() for _ in range(3000)], minlength=6)
    assert drawn[[0, 1, 5]].sum() == 0
    assert drawn[2:5].min() > 900  # 1000 expected, standard deviation 26
    np.random.seed(7)
    expected = [int(np.random.choice([3, 4, 5, 6])) for _ in range(20)]
    np.random.seed(7)
    sampler = LengthSampler(3, 7)
    assert [sampler() for _ in range(20)] == expected
    for interval in ((4, 4), (5, 2), (-1, 3)):
        with pytest.raises(RecipeError, match="no length lies in"):
            LengthSampler(*interval)


def test_the_collator_makes_a_dict_of_lists_and_tensors_of_input_ids():
    rows = [{"query": "a", "input_ids": [1, 2]}, {"query": "b", "input_ids": [3]}]
    batch = collator(rows)
    assert batch["query"] == ["a", "b"]
    assert [ids.tolist() for ids in batch["input_ids"]] == [[1, 2], [3]]
    assert all(ids.dtype == torch.long for ids in batch["input_ids"])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, suffix):
    rows = [{**row, "split": "train"} for row in ROWS] + numbered(2, split="test")
    assert read(write_rows(tmp_path / f"reviews{suffix}", rows)) == [rows[:3], rows[3:]]


def test_a_text_file_holds_one_text_a_line(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"first\r\n\r\n  second line \r\n" + b"more\r\n" * 18)
    texts = [row["text"] for part in read(path) for row in part]
    assert sorted(texts) == ["  second line", "first"] + ["more"] * 18  # no empty line


def test_rows_may_lack_columns_and_lists_may_span_lines(tmp_path):
    (tmp_path / "rows.json").write_text('[\n{"text": "a", "split": "train"},\n{"text": "b"}\n]')
    rows = load_rows(str(tmp_path / "rows.json"), split="train")
    assert rows.to_list() == [{"text": "a", "split": "train"}]


def test_quotes_in_tab_separated_text_are_characters(tmp_path):
    texts = ['" never closed', 'a 6" pizza', '"whole"', 'one at the end "', "plain", '"two" "more"']
    lines = [f"{text}\t{number}\ttrain" for number, text in enumerate(texts)]
    for name in ("a.tsv", "folder/train.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n".join(["sentence\tlabel\tsplit", *lines, "x\t9\ttest"]))
        found = load_rows(str(tmp_path / name.split("/")[0]), split="train")
        rows = [(row["sentence"], row["label"]) for row in found if row["label"] != 9]
        assert rows == list(zip(texts, range(6), strict=True))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text;label;split\n" + "good, bad;1;train\n" * 3),
        ("a.csv", "text\tlabel\tsplit\n" + "good, bad\t1\ttrain\n" * 3),
        ("a.csv", 'text|label|split\n"good, bad"|1|train\n' + "good, bad|1|train\n" * 2),
        ("a.json", {"version": 2, "data": [{"text": "good, bad", "label": 1}] * 3}),
        ("a.json", {"text": ["good, bad"] * 3, "label": [1] * 3}),
    ],
)
def test_rows_are_found_behind_any_delimiter_and_in_any_json_object(tmp_path, name, content):
    text = content if isinstance(content, str) else json.dumps(content, indent=1)
    (tmp_path / name).write_text(text)
    found = load_rows(str(tmp_path / name), split="train")
    row = {"text": "good, bad", "label": 1}
    assert {name: found[0][name] for name in row} == row
    assert len(found) == 2  # of three, one is held out


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a.jsonl": '{"text": "x"}\n\n{"text": "y"\n'}, "JSON parse error: .* in row 1"),
        ({"a.jsonl": '{"text": "x"}\n"y"\n'}, "changed from object to string"),
        ({"a.json": '[{"text": "x"},\n {"text" "y"}]'}, "No ':' found"),
        ({"a.csv": "text,label\nx,1\ny,1,2\n"}, "Expected 2 fields in line 3, saw 3.*Quote"),
        ({"a.csv": "text,label\nx,1,5\ny,1,2\n"}, "Length of header"),
        ({"a.parquet": "PAR?"}, "Parquet file size is 4 bytes.*write them again"),
        ({"a.xml": "<x/>"}, "of no known kind. Known are: .csv, .tsv"),
        *(({"a.csv": text}, "holds no rows") for text in ("", "text,label\n")),
        ({"a.txt": "\n \n"}, "holds no rows"),
        ({"a.csv": "text,label,text\nx,1,y\n"}, "several columns called `text`"),
        ({"a.tsv": 'b\ta"\tb\ta"\nx\t1\ty\tz\n'}, 'columns called `b`, `a"`'),
        ({"a.tsv": "text\tlabel\nx\t1\nbroken\n"}, "line 3 has 1 fields, the header 2"),
        ({"a.jsonl": '{"text": "x"}\n{"a": ["y \\ud83d"]}\n'}, "row 2 holds half a character"),
        ({"a.jsonl": '{"a": 1}\n{"a": {"b": -12345678901234567890}}\n'}, "row 2 .* 64 bits"),
        ({"a.json": '[{"text": "x"},\n{"text": "\\udc00"}]'}, "row 2 holds half a character"),
        ({"a.json": '{"train": [{"a": 1}], "test": [{"a": 2}]}'}, "several lists of rows, train"),
        ({"d/a.csv": "text\nx\n", "d/b.jsonl": '{"text": "y"}\n'}, "a.csv, b.jsonl, of which one"),
        ({"d/a.csv": "text\nx\n", "d/b.tsv": "text\nx\n"}, "several kinds of files, a.csv, b.tsv"),
        ({"d/a.csv": "text\nx\n", "d/b.csv": "text;b\nx;1\n"}, "files, a.csv, b.csv, .*delimiter"),
        ({"d/train.jsonl": '{"a": 1}\n{"a": 12345678901234567890}\n'}, "train.jsonl`, row 2"),
        ({"d/train.jsonl": '{"text": "x"}\n{"text": '}, r"could not be read[^\n]*$"),
    ],
)
def test_what_is_damaged_empty_or_would_be_lost_is_refused_with_the_cause(tmp_path, files, told):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    path = str(tmp_path / next(iter(files)).split("/")[0])
    with pytest.raises(RecipeError, match=f"^--dataset_name: .*{path}.*{told}"):
        load_rows(path, split="train")


@pytest.mark.parametrize("held_out", ["val", "Test", "EVAL", " dev "])
def test_a_held_out_split_goes_by_any_usual_name(tmp_path, held_out, caplog):
    rows = numbered(4, split="train") + numbered(2, split=held_out) + [{"text": "x", "split": ""}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert read(path) == [rows[:4], rows[4:6]]
    assert caplog.messages == ["1 of 7 rows have an empty column `split` and are left out."]


def test_a_text_is_read_without_changing_a_character_and_another_encoding_is_an_error(tmp_path):
    content = "\ufeffone\r\ntwo\n\tthree\x0b é e\u0301\r"
    (tmp_path / "a.txt").write_bytes(content.encode())
    assert read_text(tmp_path / "a.txt", "--text_file") == content
    (tmp_path / "a.csv").write_bytes("text\ncaf\u00e9\n".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"^--dataset_name: .*position 8.*Give a UTF-8"):
        load_rows(str(tmp_path / "a.csv"), split="train")
    with pytest.raises(RecipeError, match=r"^--text_file: .*No such file.*Give"):
        read_text(tmp_path / "no.txt", "--text_file")
    with pytest.raises(RecipeError, match=r"there is no file or folder `gone\.jsonl`"):
        load_rows("gone.jsonl", split="train")


def test_a_tenth_is_held_out_where_there_is_no_test_split_and_said_once(tmp_path, caplog):
    path = write_jsonl(tmp_path / "a.jsonl", numbered(50))
    train, test = read(path)
    assert (len(train), len(test)) == (45, 5)
    assert sorted(map(str, train + test)) == sorted(map(str, numbered(50)))
    assert load_rows(path, split="heldout").to_list() == test  # always the same rows
    (said,) = caplog.messages
    assert "5 of its 50 rows are held out" in said


def test_a_split_that_is_not_there_and_too_few_rows_to_hold_out_are_errors(tmp_path):
    rows = numbered(2, split="train") + numbered(2, split="test")
    with pytest.raises(RecipeError, match=r"has no split `extra`. Its splits are: train, test"):
        load_rows(write_jsonl(tmp_path / "a.jsonl", rows), split="extra")
    path = write_jsonl(tmp_path / "b.jsonl", numbered(1))
    assert len(load_rows(path, split="train")) == 1
    with pytest.raises(RecipeError, match=r"too few to hold some out.*more rows"):
        load_rows(path, split="test")


@pytest.mark.parametrize("kind", ["csv files", "parquet shards", "save_to_disk"])
def test_a_folder_is_read_as_on_the_hub(tmp_path, kind):
    folder = tmp_path / "reviews"
    parts = {"train": ROWS, "test": numbered(2)}
    if kind == "save_to_disk":
        parts = {name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}
        datasets.DatasetDict(parts).save_to_disk(folder)
    elif kind == "csv files":
        folder.mkdir()
        for name, rows in parts.items():
            write_rows(folder / f"{name}.csv", rows)
    else:
        (folder / "plain_text").mkdir(parents=True)
        paths = [{"split": name, "path": f"plain_text/{name}-*"} for name in parts]
        config = {"configs": [{"config_name": "plain_text", "data_files": paths}]}
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump(config)}---\n")
        shards = {"train-00000-of-00002": ROWS[:2], "train-00001-of-00002": ROWS[2:]}
        for name, rows in (shards | {"test-00000-of-00001": numbered(2)}).items():
            write_rows(folder / "plain_text" / f"{name}.parquet", rows)
    before = sorted(folder.rglob("*"))
    assert read(folder) == [ROWS, numbered(2)]
    assert sorted(folder.rglob("*")) == before


def test_a_folder_without_data_is_an_error(tmp_path):
    with pytest.raises(RecipeError, match="could not be loaded"):
        load_rows(str(tmp_path), split="train")
