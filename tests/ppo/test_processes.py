"""Two processes give the answer of one: real processes, under Accelerate and gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("part_of_a_batch.py")
ACCELERATE = Path(sys.executable).with_name("accelerate")
COMMON = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
SETTINGS = {
    "gpt2": {},
    "every sum": {
        "lr_scheduler_type": "linear",
        "use_score_scaling": True,
        "use_score_norm": True,
        "whiten_rewards": True,
        "max_grad_norm": 1.0,
        "mini_batch_size": 2,
        "gradient_accumulation_steps": 2,
    },
    "t5": {},
}


def launch(processes, folder, name, steps, settings):
    """Statistics and what was found of each process."""
    folder.mkdir()
    several = ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    command = [ACCELERATE, "launch", *several, "--num_processes", str(processes), *COMMON]
    done = subprocess.run(
        [*command, SCRIPT, folder, name, str(steps), json.dumps(settings)],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stats = [json.loads((folder / f"stats-{i}.json").read_text()) for i in range(processes)]
    return stats, [load_file(folder / f"found-{i}.safetensors") for i in range(processes)]


@pytest.mark.parametrize("case", SETTINGS)
def test_two_processes_make_the_update_of_one(case, tmp_path):
    name = case if case == "t5" else "gpt2"
    settings = {"trl_0_11_quirks": False} | SETTINGS[case]
    parts = {"gradient_accumulation_steps": 4} if "mini_batch_size" in settings else {}
    (alone,), (found,) = launch(1, tmp_path / "one", name, 3, settings | parts)
    (first, second), (found_first, found_second) = launch(2, tmp_path / "two", name, 3, settings)

    assert len(alone) == 3
    for row, together, other in zip(alone, first, second, strict=True):
        keys = [key for key in row if not key.startswith("time/")]
        assert {"ppo/loss/total", "objective/kl", "ppo/returns/var", "ppo/learning_rate"} <= {*keys}
        for key in keys:
            assert together[key] == pytest.approx(row[key], rel=1e-5, abs=1e-5), key
            assert together[key] == other[key], key  # what is logged is of all processes
    for key in ("logits", "values"):
        torch.testing.assert_close(found_first[key], found[key], rtol=0, atol=1e-5)
    for key, value in found_first.items():
        assert value.equal(found_second[key]), key


def test_processes_hold_the_same_weights_to_the_bit_after_ten_steps(tmp_path):
    settings = {"mini_batch_size": 2, "learning_rate": 3e-3}
    _, (first, second) = launch(2, tmp_path / "two", "gpt2", 10, settings)
    assert len(first) > 20
    for key, value in first.items():
        assert value.equal(second[key]), key
        assert torch.isfinite(value).all()
