"""Two processes give the answer of one: real processes, under Accelerate and gloo."""

import json
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from launching import launch
from part_of_a_batch import run_case
from safetensors.torch import load_file
from train_in_parts import trainer_of
from transformers import AutoModelForCausalLM

FOLDER = Path(__file__).parent
# Batches in parts: two processes take two of these a step, one takes four.
PARTS = {"mini_batch_size": 2, "gradient_accumulation_steps": 2}
EVERY_SUM = PARTS | {"lr_scheduler_type": "linear", "use_score_scaling": True}
EVERY_SUM |= {"use_score_norm": True, "whiten_rewards": True, "max_grad_norm": 1.0}
CASES = {
    "gpt2": ("gpt2", 3, {}),
    "every sum": ("gpt2", 3, EVERY_SUM),
    "t5": ("t5", 3, PARTS),
    "lora": ("gpt2", 2, {"trainable": "lora"}),
    "ten steps": ("gpt2", 10, {"mini_batch_size": 2, "learning_rate": 3e-3}),
}


@pytest.mark.parametrize("way", ["whole", "sharded"])
def test_two_processes_make_the_update_of_one(way, tmp_path):
    cases = json.dumps(list(CASES.values()))
    launch(FOLDER / "part_of_a_batch.py", tmp_path, cases, way=way, ACCELERATE_USE_CPU="true")
    for number, (case, (name, steps, settings)) in enumerate(CASES.items()):
        found_first, found_second = (
            load_file(tmp_path / f"{number}-{rank}.safetensors") for rank in (0, 1)
        )
        for key, value in found_first.items():  # to the bit, also after ten steps
            assert value.equal(found_second[key]), (case, key)
            assert torch.isfinite(value).all(), (case, key)
        if case == "ten steps":
            continue
        parts = {"gradient_accumulation_steps": 4} if "mini_batch_size" in settings else {}
        alone, found = run_case(name, steps, settings | parts)
        first, second = (
            json.loads((tmp_path / f"{number}-{rank}.json").read_text()) for rank in (0, 1)
        )
        assert len(alone) == len(first) == steps
        for row, together, other in zip(alone, first, second, strict=True):
            keys = {key for key in row if not key.startswith("time/")}
            assert {"ppo/loss/total", "objective/kl", "ppo/returns/var"} <= keys
            for key in keys:
                near = pytest.approx(row[key], rel=1e-5, abs=1e-5)
                assert together[key] == near, (case, key)
                assert together[key] == other[key], (case, key)  # logged is what all did
        for key in ("logits", "values"):
            torch.testing.assert_close(found_first[key], found[key], rtol=0, atol=1e-5)


def test_a_sharded_run_leaves_one_plain_model_and_goes_on_with_any_number(tmp_path):
    folder = tmp_path / "run"
    script = FOLDER / "train_in_parts.py"
    said = launch(script, folder, way="sharded", ACCELERATE_USE_CPU="true")
    assert "draws other responses" not in said
    texts = ["whole run", "resumed at step 2"]
    runs = [json.loads((folder / f"{text}.json").read_text()) for text in texts]
    assert runs[0] == runs[1]  # statistics of steps 3 and 4 but for the times, and responses
    ended = [load_file(folder / f"{text}.safetensors") for text in texts]
    assert all(value.equal(ended[1][name]) for name, value in ended[0].items())

    saved = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    checkpoint = load_file(folder / "checkpoints" / "checkpoint-4" / "model.safetensors")
    of_policy = {k.removeprefix("policy."): v for k, v in checkpoint.items() if "policy" in k}
    assert len(of_policy) == len(list(ARCHITECTURES["gpt2"]().parameters()))
    assert all(value.equal(saved[name]) for name, value in of_policy.items())
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged").state_dict()
    torch.manual_seed(0)
    start = ARCHITECTURES["gpt2"]().state_dict()  # `check` left no trace, the adapter does nothing
    assert all(value.equal(start[name]) for name, value in merged.items())

    alone = trainer_of(folder, "gpt2", 5, {"resume_from_checkpoint": "true"})
    alone.train()
    assert alone.state.global_step == 5
    assert len(alone.all_stats) == 5
