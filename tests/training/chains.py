"""Recipes of several stages, loaded into this process, and what they leave."""

import importlib.util
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

RECIPES = Path(__file__).parents[2] / "recipes"


def load_recipe(name):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "all_stats.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


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
