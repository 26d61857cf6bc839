"""Checkpoints: whole or not there, and damage of every kind is named."""

import errno
import json
import logging
import os
import subprocess

import pytest
import torch

from trl_recipes import RecipeError
from trl_recipes.ppo import checkpoint
from trl_recipes.ppo.checkpoint import Checkpoint, damage, find_checkpoint, write_checkpoint

CONTENT = Checkpoint(
    {"policy.weight": torch.randn(50, 40), "value_head.bias": torch.tensor(1.5)},
    {"0.exp_avg": torch.randn(50, 40).bfloat16(), "0.step": torch.tensor(3.0)},
    {"step": 3, "kl_coef": 0.1 + 0.2, "random": [{"torch": [1, 2, 3]}]},
)
FILES = {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints, of steps 9 and 10: their order is of numbers, not of texts."""
    for step in (9, 10):
        write_checkpoint(tmp_path / f"step-{step}", CONTENT)
    return tmp_path


def test_a_checkpoint_comes_back_bit_for_bit_and_holds_no_pickle(folder):
    assert {path.name for path in (folder / "step-10").iterdir()} == FILES
    assert damage(folder / "step-10") is None
    found = checkpoint.read_checkpoint(folder / "step-10")
    assert found.state == CONTENT.state
    for ours, theirs in zip(found[:2], CONTENT[:2], strict=True):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype
            assert torch.equal(tensor, theirs[name])


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("harm", [truncate, flip_a_byte, remove])
@pytest.mark.parametrize("name", sorted(FILES))
def test_damage_is_named_and_the_checkpoint_before_is_taken(folder, name, harm, caplog):
    newest = folder / "step-10"
    harm(newest / name)
    reason = damage(newest)
    assert reason is not None
    # a flipped byte of the manifest may name another file, or another size or sum of one
    assert (name == "manifest.json" and harm is flip_a_byte) or f"`{name}`" in reason
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(folder, True) == folder / "step-9"
    assert f"step-10`: it is damaged: {reason}" in caplog.text
    with pytest.raises(RecipeError, match=r"is damaged|is no checkpoint"):
        find_checkpoint(folder, str(newest))


def test_any_flipped_bit_of_any_file_is_found(tmp_path):
    small = Checkpoint({"w": torch.ones(2)}, {}, {"step": 1})
    write_checkpoint(tmp_path / "step-1", small)
    for path in (tmp_path / "step-1").iterdir():
        content = path.read_bytes()
        for place in range(0, len(content), 7):
            harmed = bytearray(content)
            harmed[place] ^= 4
            path.write_bytes(harmed)
            same = path.name == "manifest.json" and _same_json(content, harmed)
            assert same or damage(tmp_path / "step-1"), (path.name, place)
        path.write_bytes(content)


def _same_json(first, second):
    try:
        return json.loads(first) == json.loads(second)
    except ValueError:
        return False


def test_where_all_are_damaged_each_is_named(folder):
    remove(folder / "step-9" / "state.json")
    truncate(folder / "step-10" / "model.safetensors")
    with pytest.raises(RecipeError, match=r"step-10`: `model.safetensors` has .*step-9`: `state"):
        find_checkpoint(folder, "true")


def test_a_run_without_checkpoints_has_none_to_find(tmp_path):
    assert find_checkpoint(tmp_path / "checkpoints", True) is None
    with pytest.raises(RecipeError, match=r"is no checkpoint of PPO.*Give `true`.*: none"):
        find_checkpoint(tmp_path / "checkpoints", str(tmp_path))


@pytest.mark.parametrize("moment", range(8))
def test_a_kill_at_any_moment_leaves_the_one_before(folder, moment, monkeypatch):
    """Every call that reaches the disk is one moment; what is on disk then is looked at."""
    calls = iter(range(100))

    class Killed(BaseException):
        """Like SIGKILL, except that it comes where it is told to."""

    def until_killed(function):
        def call(*args, **kwargs):
            if next(calls) == moment:
                raise Killed
            return function(*args, **kwargs)

        return call

    for name in ("save_file", "_fingerprint", "_flush", "_remove"):
        monkeypatch.setattr(checkpoint, name, until_killed(getattr(checkpoint, name)))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *args, **kwargs: None)  # dead men
    with pytest.raises(Killed):
        write_checkpoint(folder / "step-11", CONTENT)
    monkeypatch.undo()
    found = find_checkpoint(folder, True)
    assert damage(found) is None
    assert found.name in ("step-10", "step-11")


def test_old_ones_go_and_so_does_what_was_left_unfinished(folder):
    write_checkpoint(folder / "step-11", CONTENT)
    (folder / "step-12.unfinished").mkdir()
    (folder / "mine").mkdir()
    checkpoint.remove_old(folder, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["mine", "step-10", "step-11"]
    checkpoint.remove_old(folder, None)
    assert len(list(folder.iterdir())) == 3


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


def test_a_full_disk_leaves_the_one_before_and_nothing_half_written(small_disk):
    write_checkpoint(small_disk / "step-1", CONTENT)
    large = CONTENT._replace(model={"policy.weight": torch.randn(300, 300)})
    for step in (2, 3):  # again and again
        with pytest.raises(OSError, match="space") as caught:
            write_checkpoint(small_disk / f"step-{step}", large)
        assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in small_disk.iterdir()] == ["step-1"]
    assert find_checkpoint(small_disk, True) == small_disk / "step-1"
