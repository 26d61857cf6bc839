"""What recipes of several stages leave."""

import json

import torch
from safetensors.torch import load_file
from tiny_grpo import without_times

from trl_recipes import load_stats


def rows_of(folder):
    return without_times(load_stats(folder))


def result_of(folder):
    return json.loads((folder / "stage.json").read_text())["result"]


def contents(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def assert_same_weights(ours, theirs, *parts):
    for part in parts:
        one, other = (load_file(folder / part / "model.safetensors") for folder in (ours, theirs))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
