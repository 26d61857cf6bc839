"""Every recipe that trains, through accelerate launch with two processes: one whole run each."""

import json
import logging
import os
import re
import sys
from pathlib import Path

import pytest
import recipes_in_turn
from launching import launch, run_here
from transformers import AutoConfig

from trl_recipes import distributed as processes
from trl_recipes.stats import load_stats

RUNS = list(recipes_in_turn.RUNS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The runs of one process, this one, and those of two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    for folder in (one, two):
        recipes_in_turn.make_models(folder / "models")
    launch(Path(recipes_in_turn.__file__), two, timeout=400)
    recipes_in_turn.run(one, names=[name for name in RUNS if name != "rloo"])
    return one, two


def files(folder):
    """Paths in a run folder, without the numbers of processes and of steps."""
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {re.sub(r"(rng_state|sampled_batch|checkpoint)[_-]\d+", r"\1", path) for path in paths}


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_leave_the_run_that_one_leaves(name, folders):
    one, two = folders[0] / ("grpo" if name == "rloo" else name), folders[1] / name
    found = files(two)
    assert found == files(one)
    assert {"config.yaml", "model/model.safetensors"} <= found
    AutoConfig.from_pretrained(two / "model")
    for path in two.rglob("*.png"):
        assert path.stat().st_size > 5_000
    if name in ("lm", "classifier", "reward"):
        return
    rows = load_stats(two)
    assert [row["step"] for row in rows] == [1, 2]  # each is one row
    per_process = 16 if name == "shouting" else 8
    assert [row["episode"] for row in rows] == [2 * per_process, 4 * per_process]
    samples = (two / "samples.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in samples} == {1, 2}


def test_only_the_main_process_speaks_and_writes(folders):
    told = (folders[1] / "0.out").read_text()
    for line in ("Training a GPT-2 of 1 layers", "Reward model:", "baseline: train loss"):
        assert told.count(line) == 1, line
    assert (folders[1] / "1.out").read_text() == ""
    assert (folders[1] / "1.err").read_text() == ""
    two = folders[1]
    mine, others = (
        {path for path in (two / f"{rank}.written").read_text().splitlines() if str(two) in path}
        for rank in (0, 1)
    )
    assert len(mine) > 50
    assert {path for path in others if not path.endswith("_1.pt")} == set()


@pytest.mark.parametrize(
    "name", ["compare", "compare_algorithms", "generate", "plot", "benchmark", "train_classifier"]
)
def test_what_trains_nothing_is_done_by_the_main_process_alone(name, monkeypatch, capsys):
    monkeypatch.setattr("trl_recipes.arguments._OTHERS_WAIT_SECONDS", 0)
    monkeypatch.setattr("os._exit", sys.exit)
    settings = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    settings |= {"ACCELERATE_USE_CPU": "true", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    for key, value in settings.items():  # the last two would be set, and stay
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit) as end:
        run_here(f"{name}.py", "--no_such_flag")
    trains = name.startswith("train")
    assert end.value.code == (2 if trains else 0)
    assert ("Unknown flag" in capsys.readouterr().err) is trains
    logging.disable(logging.NOTSET)

    monkeypatch.setenv("RANK", "0")
    if not trains:
        processes.leave_launch()
        assert not processes.launched()
        assert not [key for key in os.environ if key.startswith(("RANK", "LOCAL_", "WORLD_SIZE"))]
