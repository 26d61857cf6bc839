"""Two processes give the answer of one: real processes, under Accelerate and gloo."""

import json
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from in_two_processes import run_case, trainer_of
from launching import launch
from safetensors.torch import load_file
from tiny_grpo import same
from transformers import AutoModelForCausalLM

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


@pytest.fixture(scope="module")
def launched(request, tmp_path_factory):
    """What two processes, sharded or not, have written, and said."""
    folder = tmp_path_factory.mktemp(request.param)
    script, cases = Path(__file__).with_name("in_two_processes.py"), json.dumps([*CASES.values()])
    return folder, launch(script, folder, cases, way=request.param, ACCELERATE_USE_CPU="true")


@pytest.mark.parametrize("launched", ["whole", "sharded"], indirect=True)
def test_two_processes_make_the_update_of_one(launched):
    for number, (case, (name, steps, settings)) in enumerate(CASES.items()):
        paths = [launched[0] / f"{number}-{rank}" for rank in (0, 1)]
        (ours, theirs) = (load_file(path.with_suffix(".safetensors")) for path in paths)
        assert same(ours, theirs), case  # to the bit, also after ten steps
        assert all(torch.isfinite(value).all() for value in ours.values()), case
        if case == "ten steps":
            continue
        parts = {"gradient_accumulation_steps": 4} if "mini_batch_size" in settings else {}
        alone, found = run_case(name, steps, settings | parts)
        first, second = (json.loads(path.with_suffix(".json").read_text()) for path in paths)
        assert first == second  # logged is what all did
        assert len(alone) == steps
        for row, together in zip(alone, first, strict=True):
            assert {"ppo/loss/total", "objective/kl", "ppo/returns/var"} <= row.keys()
            assert together == pytest.approx(row, rel=1e-5, abs=1e-5), case
        for key in ("logits", "values"):
            torch.testing.assert_close(ours[key], found[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("launched", ["sharded"], indirect=True)
def test_a_sharded_run_leaves_one_plain_model_and_goes_on_with_any_number(launched):
    folder, said = launched[0] / "run", launched[1]
    assert "draws other responses" not in said
    texts = ["whole run", "resumed at step 2"]
    runs = [json.loads((folder / f"{text}.json").read_text()) for text in texts]
    assert runs[0] == runs[1]  # statistics of steps 3 and 4 but for the times, and responses
    assert same(*(load_file(folder / f"{text}.safetensors") for text in texts))

    saved = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    checkpoint = load_file(folder / "checkpoints" / "checkpoint-4" / "model.safetensors")
    of_policy = {k.removeprefix("policy."): v for k, v in checkpoint.items() if "policy" in k}
    assert len(of_policy) == len(list(ARCHITECTURES["gpt2"]().parameters()))
    assert same(of_policy, saved)
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged").state_dict()
    torch.manual_seed(0)
    start = ARCHITECTURES["gpt2"]().state_dict()  # `check` left no trace, the adapter does nothing
    assert same(merged, start)

    alone = trainer_of(folder, 5, resume_from_checkpoint="true")
    alone.train()
    assert alone.state.global_step == 5
    assert len(alone.all_stats) == 5
