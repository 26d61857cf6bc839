import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from trl_recipes.errors import RecipeError
from trl_recipes.stats import (
    STAT_KEYS,
    append_samples,
    append_stats,
    distinct_n,
    load_stats,
    run_names,
    stat_key,
    stat_table,
    steps_of,
)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "all_stats.jsonl"


def test_rows_come_back_as_they_were_written(path):
    rows = [{"step": 1, "kl": 0.1}, {"step": 2, "kl": 1 / 3}]
    for row in rows:
        append_stats(path, row)
    assert load_stats(path) == load_stats(path.parent) == rows  # the file, or its run folder
    append_stats(path, {"step": 3, "x": math.nan})
    assert math.isnan(load_stats(path)[2]["x"])  # null in the file


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (3, 3),
        (True, 1),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.array(0.25), 0.25),
        (torch.tensor(0.75), 0.75),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (math.nan, None),
        (-math.inf, None),
        (torch.tensor(math.inf), None),
    ],
)
def test_every_kind_of_scalar_is_written_as_a_json_number_or_null(path, value, stored):
    arrays = {"a": np.zeros(3), "b": torch.zeros(1), "c": [1.0], "d": "text", "e": None}
    append_stats(path, {"x": value} | arrays)  # which are left out
    assert json.loads(path.read_text()) == {"x": stored}


def test_a_cut_last_line_is_replaced_by_the_next_row_and_one_without_its_newline_is_read(path):
    path.write_text('{"step": 1}\n{"step": 2, "obj')
    assert load_stats(path) == [{"step": 1}]
    append_stats(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text('{"step": 1}\n{"step": 2}')
    assert load_stats(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "No statistics at"),
        ('{"step": 1}\n{"st\n{"step": 3}\n', r"stats\.jsonl, line 2: not JSON"),
        ("[1, 2]\n", "line 1: expected an object"),
        ('{"step": "one"}\n', "row 1: `step` is 'one'"),
        ("", "holds no rows"),
    ],
)
def test_a_line_that_is_no_row_of_numbers_is_named(path, text, told):
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError, match=told):
        load_stats(path.parent)


def test_samples_are_one_row_each_in_the_text_they_had(tmp_path):
    path = tmp_path / "run" / "samples.jsonl"
    responses, scores = [' film "is"\n great é', ""], [torch.tensor(1.5), -2]
    append_samples(path, 3, {"query": ["the", "a"], "response": responses, "score": scores})
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"step": 3, "query": "the", "response": ' film "is"\n great é', "score": 1.5},
        {"step": 3, "query": "a", "response": "", "score": -2},
    ]


@pytest.mark.parametrize("family", ["causal", "seq2seq"])
def test_every_recorded_key_of_trl_is_explained(family):
    cases = json.loads((GOLDEN / family / "cases.json").read_text())["cases"]
    keys = {key for case in cases.values() for row in case["stats"] for key in row}
    assert len(keys) >= 25
    assert [key for key in sorted(keys) if stat_key(key) is None] == []


def test_names_in_patterns_stand_for_any_reward_function():
    assert stat_key("rewards/sentiment/mean") == STAT_KEYS["rewards/<name>/mean"]
    assert stat_key("rewards/sentiment/median") is stat_key("no/such/key") is None
    assert steps_of([{"ppo/loss/total": 0.1}, {"ppo/loss/total": 0.2}]) == [1, 2]  # by hand


def test_the_table_explains_each_key_in_a_sentence_with_a_unit():
    first, second, *lines = stat_table().splitlines()
    assert (first, second) == ("| Key | Unit | Meaning |", "| --- | --- | --- |")
    assert len(lines) == len(STAT_KEYS)
    for line in lines:
        _, key, unit, meaning, _ = (cell.strip() for cell in line.split("|"))
        assert (key[0], bool(unit), meaning[-1]) == ("`", True, ".")


def test_distinct_n_by_hand():
    # pairs: (a b) (b a) | (a b) (b c): three distinct of four
    assert distinct_n(["a b a", "a  b\nc"]) == distinct_n([[1, 2, 1], [1, 2, 3]]) == 3 / 4
    assert distinct_n(["a b a", "a b c"], n=1) == 3 / 6
    assert distinct_n(["a b", "c d"]) == 1  # nothing crosses from one text to the next: no (b c)
    assert math.isnan(distinct_n(["a", ""]))


def test_runs_are_named_by_folder_unless_that_is_unclear(tmp_path):
    a, b, c = tmp_path / "x" / "good", tmp_path / "x" / "bad", tmp_path / "y" / "good"
    assert run_names([f"{a}/", b]) == ["good", "bad"]
    assert run_names([a, b, c]) == [str(a), str(b), str(c)]
    assert run_names([a, b], taken=["bad"]) == [str(a), str(b)]
    with pytest.raises(RecipeError, match="is given 2 times"):
        run_names([a, b, f"{a}/../good"])
