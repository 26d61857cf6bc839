"""Checkpoints: whole or not there, and damage that a reader would trip over is named."""

import json
import logging
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from trl_recipes import RecipeError, checkpointing
from trl_recipes.checkpointing import checkpoints_in, damage, find_checkpoint, whole_checkpoints

FILES = ("model.safetensors", "optimizer.pt", "trainer_state.json")


class Writer:
    """A stand-in of a trainer, which writes checkpoints of three files."""

    _run_epoch = _load_optimizer_and_scheduler = None  # those of transformers, which wait unused

    def __init__(self, run, keep=None, size=50):
        self.args = SimpleNamespace(output_dir=str(run), save_total_limit=keep)
        best = {"best_global_step": None, "best_model_checkpoint": None}
        self.state = SimpleNamespace(global_step=0, **best)
        self.accelerator = Accelerator(cpu=True)
        self.size = size

    def _save_checkpoint(self, model, trial):
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        folder.mkdir(parents=True)
        save_file({"w": torch.full((self.size, self.size), 1.0)}, folder / "model.safetensors")
        torch.save({"state": {0: torch.randn(self.size)}}, folder / "optimizer.pt")
        (folder / "trainer_state.json").write_text(json.dumps(vars(self.state)))

    def write(self, *steps):
        with whole_checkpoints(self):
            for step in steps:
                self.state.global_step = step
                self._save_checkpoint(None, None)


def found(run, wanted="true"):
    args = SimpleNamespace(output_dir=str(run), resume_from_checkpoint=wanted)
    return find_checkpoint(args)


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints, of steps 9 and 10: their order is of numbers, not of texts."""
    Writer(tmp_path).write(9, 10)
    return tmp_path


HARMS = {
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path: path.write_bytes(b""),
    "without a header": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
    "gone": Path.unlink,
}
# Whoever reads the files tells; a zip's header is at its end.
UNNOTICED = [("gone", name) for name in FILES[:2]] + [("without a header", "optimizer.pt")]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named_and_the_checkpoint_before_is_taken(run, name, harm, caplog):
    newest = run / "checkpoints" / "checkpoint-10"
    HARMS[harm](newest / name)
    reason = damage(newest)
    if (harm, name) in UNNOTICED:
        assert reason is None
        return
    told = "missing" if harm == "gone" else "cut short or damaged"
    assert f"`{name}` is {told}" in reason
    with caplog.at_level(logging.WARNING):
        assert found(run, True).name == "checkpoint-9"
    assert f"checkpoint-10` is damaged: {reason}" in caplog.text
    with pytest.raises(RecipeError, match=rf"is no whole checkpoint: `{name}` is"):
        found(run, str(newest))


def test_where_all_are_damaged_each_is_named_and_without_any_there_is_none_to_find(run, tmp_path):
    other = tmp_path / "other"
    assert found(other) is None
    assert found(other, None) is None
    with pytest.raises(RecipeError, match=r"is no whole checkpoint.*Give `true`.*: none"):
        found(other, str(other))
    (run / "checkpoints" / "checkpoint-9" / "trainer_state.json").unlink()
    HARMS["cut"](run / "checkpoints" / "checkpoint-10" / "model.safetensors")
    told = r"-10` is damaged: `model.safetensors` is .*-9` is damaged: `trainer_"
    with pytest.raises(RecipeError, match=f"{told}.*--overwrite_output_dir"):
        found(run)


@pytest.mark.parametrize("step", [10, 11])
@pytest.mark.parametrize("moment", range(12))
def test_a_kill_at_any_moment_leaves_a_whole_one(run, step, moment, monkeypatch):
    """Every call that reaches the disk is one moment; what is on disk then is looked at."""
    calls = iter(range(100))

    def until_killed(function):
        def call(*args, **kwargs):
            if next(calls) == moment:
                raise KeyboardInterrupt  # which nothing catches, as nothing does SIGKILL
            return function(*args, **kwargs)

        return call

    writing = [(checkpointing, "_flush"), (Path, "rename"), (torch, "save")]
    for owner, name in (*writing, (checkpointing.shutil, "rmtree")):
        monkeypatch.setattr(owner, name, until_killed(getattr(owner, name)))
    ended = pytest.raises(KeyboardInterrupt) if moment <= 7 else suppress(KeyboardInterrupt)
    with ended:
        Writer(run, keep=2).write(step)
    monkeypatch.undo()
    left = found(run)
    assert left.name in ("checkpoint-9", "checkpoint-10", "checkpoint-11")
    assert damage(left) is None
    assert set(load_file(left / "model.safetensors")) == {"w"}
    Writer(run, keep=2).write(12)  # what was left there is in nobody's way
    assert len(names(run)) == 2


def test_old_ones_go_but_for_the_best_and_so_does_what_was_left_unfinished(run):
    (run / "checkpoints" / ".unfinished" / "checkpoint-12").mkdir(parents=True)
    (run / "checkpoints" / "mine").mkdir()
    writer = Writer(run, keep=2)
    writer.write(11)
    assert names(run) == ["checkpoint-10", "checkpoint-11", "mine"]
    writer.state.best_global_step = 10
    writer.write(12, 13)
    assert names(run) == ["checkpoint-10", "checkpoint-12", "checkpoint-13", "mine"]
    assert writer.state.best_model_checkpoint == str(run / "checkpoints" / "checkpoint-10")
    Writer(run).write(14)
    assert len(checkpoints_in(run / "checkpoints")) == 4


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("a small file system takes the right to mount one")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_one_before_and_nothing_half_written(small_disk, caplog):
    Writer(small_disk).write(1)
    Writer(small_disk, size=300).write(2, 3)  # again and again
    assert caplog.text.count("No space left on device") == 2
    assert "The run goes on, and the checkpoints before it are whole" in caplog.text
    assert names(small_disk) == ["checkpoint-1"]
    assert found(small_disk).name == "checkpoint-1"
