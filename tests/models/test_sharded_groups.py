"""GRPO with weights in parts over two processes: the run of whole ones, and one plain model."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import cpu_as_gpu  # noqa: F401
import pytest
import torch
from launching import launch
from tiny_grpo import build, tiny, without_times
from transformers import AutoModelForCausalLM

MISSING = importlib.util.find_spec("deepspeed") is None
DEEPSPEED = [pytest.mark.skipif(MISSING, reason="needs `pip install deepspeed`"), pytest.mark.slow]


def train(folder):
    trainer = build(output_dir=str(folder), max_steps=3, save_steps=2, beta=0.1, learning_rate=1e-3)
    trainer.train()
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        rows = [{"way": str(trainer.accelerator.distributed_type)}, *trainer.all_stats]
        (folder / "rows.json").write_text(json.dumps(without_times(rows)))
    trainer.accelerator.wait_for_everyone()
    os._exit(0)  # torch 2.13 can wait for itself for ever when it takes gloo down


def run(folder, way, **environment):
    """The rows of a run, and the model that it saved as plain transformers loads it."""
    launch(Path(__file__), folder, way=way, DS_ACCELERATOR="cpu", **environment)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    return json.loads((folder / "rows.json").read_text()), model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole") / "run", "whole", ACCELERATE_USE_CPU="true")


@pytest.mark.parametrize(
    "way", ["FSDP", *(pytest.param(z, marks=DEEPSPEED) for z in ("ZeRO-2", "ZeRO-3"))]
)
def test_weights_in_parts_make_the_run_of_whole_ones(way, whole, tmp_path):
    (name, *rows), model = run(tmp_path / "run", way)
    assert name["way"].endswith("FSDP" if way == "FSDP" else "DEEPSPEED")
    (_, *expected), expected_model = whole
    assert len(rows) == len(expected) == 3
    for row, other in zip(rows, expected, strict=True):
        for key in ("reward", "reward_std", "loss", "kl", "completions/mean_length"):
            assert row[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), key
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        logits, expected_logits, start = (m(ids).logits for m in (model, expected_model, tiny()))
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-3)
    assert (logits - start).abs().max() > 1e-2


if __name__ == "__main__":
    train(Path(sys.argv[1]))
