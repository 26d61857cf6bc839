"""Several processes on one batch: waits add up by hand, and two real processes are measured."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trl_recipes import RecipeError
from trl_recipes.benchmark.processes import Processes, process_works
from trl_recipes.benchmark.report import Spread
from trl_recipes.benchmark.waiting import Wait, Waits, waiting
from trl_recipes.benchmark.work import PHASES, Work, check_works
from trl_recipes.benchmark.worker import Result

ROOT = Path(__file__).parents[1]
WORK = Work("tiny", batch=4, query=3, response=4, epochs=2, processes=2)


def result(seconds, memory=1, waits=None):
    """Steps of the given seconds, and in each the given waits of both processes."""
    steps = [{"step": s, **dict.fromkeys(PHASES, s / 4)} for s in seconds]
    return Result(steps, memory, 4.0, "a machine", [waits] * len(steps) if waits else [])


def test_a_wait_is_imbalance_until_the_last_has_come_and_transfer_from_then_on():
    # the second process comes at 3 and at 10; the first has waited 2 and the second 0.5 by then
    first = [Wait("gradients", 1.0, 4.0), Wait("sums", 10.0, 10.75)]
    second = [Wait("gradients", 3.0, 3.5), Wait("sums", 9.5, 10.25)]
    assert waiting([first, second]) == [
        {
            "gradients/imbalance": 2.0,
            "gradients/transfer": 1.0,
            "gradients/number": 1,
            "sums/imbalance": 0.0,
            "sums/transfer": 0.75,
            "sums/number": 1,
        },
        {
            "gradients/imbalance": 0.0,
            "gradients/transfer": 0.5,
            "gradients/number": 1,
            "sums/imbalance": 0.5,
            "sums/transfer": 0.25,
            "sums/number": 1,
        },
    ]


def test_processes_that_did_not_wait_for_the_same_things_are_no_measurement():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        waiting([[Wait("sums", 0.0, 1.0)], []])


def test_the_wait_for_gradients_begins_with_the_last_one_computed(monkeypatch):
    from trl_recipes.benchmark import waiting as module

    model, waits = torch.nn.Linear(2, 1), Waits()
    waits.watch(model)
    times = iter([5.0, 6.0, 9.0])  # of weight and bias in whichever order, and when all is there
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(times))
    model(torch.ones(1, 2)).sum().backward()
    waits.gradients_arrived()
    waits.on_step_end(None, None, None)
    assert waits.steps == [[Wait("gradients", 6.0, 9.0)]]


def test_samples_a_second_ratio_and_waiting_by_hand():
    first = {"gradients/imbalance": 0.25, "gradients/transfer": 0.5, "sums/imbalance": 0.0}
    second = {"gradients/imbalance": 0.0, "gradients/transfer": 0.5, "sums/imbalance": 0.5}
    waits = [w | {"sums/transfer": 0.25, "sums/number": 7} for w in (first, second)]
    report = Processes(
        WORK,
        {
            "1 process": [result([4.0, 4.0], 2e9), result([8.0, 8.0], 2e9)],
            "2 processes": [result([2.0, 2.0], 3e9, waits), result([5.0, 5.0], 3e9, waits)],
        },
    )
    assert report.samples_per_second("1 process") == Spread(0.75, 0.5, 1.0)
    assert report.ratio() == Spread(1.8, 1.6, 2.0)
    assert report.waiting("gradients", "imbalance").median == 0.125
    assert report.waiting("all", "all").median == 1.125  # of 1.0 and 1.25
    assert report.waiting("all", "all", max).median == 1.25
    assert report.waiting_share().most == pytest.approx(1.125 / 2)
    cells = {line.split(" | ")[0].strip("| "): line for line in report.table().splitlines()}
    assert "| 1.8 (1.6 to 2) |" in cells["**samples a second**"]
    assert "1.12 (1.12 to 1.12)" in cells["waiting, s"]
    assert "0.25 (0.25 to 0.25)" in cells["for 7 sums of statistics: transfer, s"]
    assert "1.50" in cells["peak memory, all processes"]
    assert len({line.count("|") for line in cells.values()}) == 1


def test_threads_are_divided(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    one, three = process_works(replace(WORK, batch=6, processes=3)).values()
    assert (one.processes, one.threads) == (1, 8)
    assert (three.processes, three.threads) == (3, 2)
    assert one.batch == three.batch == 6


@pytest.mark.parametrize(
    ("change", "alone", "message"),
    [
        ({"batch": 5}, False, "--batch 5 cannot be shared evenly by --processes 2"),
        ({"processes": 0}, False, "--processes must be at least 1, got 0"),
        ({}, True, "neither --growth nor --only goes with it"),
        ({"device": "cuda"}, False, "as many GPUs, and torch finds 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, alone, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RecipeError, match=message):
        check_works([replace(WORK, **change)], repeats=1, alone=alone)


def test_the_recipe_measures_one_process_and_two(tmp_path):
    command = [sys.executable, str(ROOT / "recipes" / "benchmark.py"), "--size", "tiny"]
    command += ["--batch", "4", "--response", "4", "--epochs", "2", "--device", "cpu"]
    command += ["--steps", "2", "--repeats", "1", "--processes", "2"]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2500:]
    found = json.loads((tmp_path / "processes.json").read_text())
    (one,), (two,) = found["runs"].values()
    assert one["waiting"] == []
    assert one["response_tokens"] == two["response_tokens"] == 4
    assert two["memory"] > 1.3 * one["memory"]  # two interpreters
    for waited, step in zip(two["waiting"], two["steps"], strict=True):
        assert len(waited) == 2
        for process in waited:
            assert process["gradients/number"] == 2  # one for each epoch
            assert process["sums/number"] < 20
            seconds = [value for key, value in process.items() if not key.endswith("number")]
            assert min(seconds) >= 0
            assert 0 < sum(seconds) < step["step"]
        for kind in ("gradients", "sums"):
            assert min(process[f"{kind}/transfer"] for process in waited) > 0
    assert (tmp_path / "processes.md").read_text().splitlines()[0] in done.stdout
