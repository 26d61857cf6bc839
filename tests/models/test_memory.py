"""The memory of training, worked out and measured."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import memory_plan
import pytest
import tiny_grpo
import torch
from memory_plan import CONFIGS, Memory, Plan, Shape, kept, needed
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from trl_recipes.models.adapters import kept_by
from trl_recipes.ppo.objective import CHUNK_CPU

ROOT = Path(__file__).parents[2]
# 10 weights; a layer has 4 vectors of width 2 and so on
TOY = Shape(10, layers=2, width=2, intermediate=4, gated=False, key_value=1, vocabulary=5)
TOY_PLAN = Plan(frozen=4, checkpointing=False, batch=3, micro_batch=2, query=1, response=4)
TOY_PLAN = replace(TOY_PLAN, chunk=15)


@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("GPT")])
def test_an_adapter_has_the_weights_that_peft_makes(name):
    adapter = LoraConfig(r=16, target_modules=["q_proj", "v_proj"])
    with torch.device("meta"):
        model = get_peft_model(AutoModelForCausalLM.from_config(CONFIGS[name]), adapter)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory_plan.lora_parameters(memory_plan.SHAPES[name], 16) == trained


def test_what_is_kept_by_hand():
    assert kept(trained=10, frozen=0, reference=10) == Memory(40, 40, 80, 40, 0, 0)
    assert kept(trained=3, frozen=10, reference=0, number=2) == Memory(32, 12, 24, 0, 0, 0)


def test_phases_of_a_toy_by_hand():
    # copies of 10 weights in bfloat16: 20. Keys and values of 2 layers, width 1, 3 * 5 tokens, 2
    # bytes: 120; logits of 3 sequences twice: 2 * 3 * 5 * 4 = 120
    assert memory_plan.sampling_bytes(TOY, TOY_PLAN) == 120 + 120 + 20
    # logits of 2 * 4 tokens: 8 * 5 * 2 = 80, twice, and 15 of them in float32, three times: 180
    assert memory_plan.evaluation_bytes(TOY, TOY_PLAN) == 160 + 180 + 20
    # 10 tokens of 2 layers, 8 * 2 + 2 * 1 + 2 * 4 = 26 numbers of 2 bytes: 1040; 5 is odd
    assert memory_plan.update_bytes(TOY, TOY_PLAN) == 1040 + 160 + 180 + 20


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (TOY_PLAN, Memory(40, 40, 80, 40, 0, 1400)),
        (replace(TOY_PLAN, reference=False), Memory(40, 40, 80, 0, 0, 1400)),
        (replace(TOY_PLAN, processes=2), Memory(40, 40, 80, 40, 40, 1400)),
        (replace(TOY_PLAN, packed=True, batch=60), Memory(40, 40, 80, 40, 0, 4800 + 20)),
    ],
)
def test_the_whole_of_a_toy_by_hand(plan, expected):
    assert needed(TOY, plan) == expected


def test_what_is_spread_over_gpus_is_gathered_to_sample_and_to_evaluate():
    changes = {"processes": 4, "spread": "all", "micro_batch": 1, "response": 1}
    plan = replace(TOY_PLAN, **changes)
    taken = needed(TOY, plan)
    assert taken[:5] == (10, 10, 20, 10, 0)
    # logits of one token twice, 2 * 5 * 2 = 20, and in float32, 3 * 5 * 4 = 60, copies 20, policy
    # and reference gathered 40 each, and the part of the gradients, which are not there yet: 10
    assert memory_plan.evaluation_bytes(TOY, plan) == 100
    assert taken.phase == max(
        memory_plan.sampling_bytes(TOY, plan) + 40 - 10,
        100 + 80 - 10,
        memory_plan.update_bytes(TOY, plan) + memory_plan.layer_bytes(TOY),
    )


@pytest.mark.parametrize(("size", "gpu"), [(14.4e9, 16), (14.5e9, 24), (72e9, 80), (72.1e9, None)])
def test_a_tenth_of_a_gpu_stays_free(size, gpu):
    assert memory_plan.smallest_gpu(size) == gpu


MIDDLE = {"n_layer": 6, "n_embd": 384, "n_head": 6, "vocab_size": 32000}
MIDDLE_PARAMETERS = 32000 * 384 + 128 * 384 + 6 * (12 * 384**2 + 13 * 384) + 2 * 384


@pytest.mark.parametrize("rank", [pytest.param(None, marks=pytest.mark.slow), 8])
def test_what_ppo_holds_is_what_was_worked_out(rank):
    lengths = {"batch": 8, "micro_batch": 4, "query": 16, "response": 48}
    plan = {"rank": rank, "frozen": 4, "checkpointing": False, **lengths}
    command = [sys.executable, Path(__file__).with_name("held_memory.py")]
    command += [json.dumps(MIDDLE), json.dumps(plan)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    held = json.loads(done.stdout.splitlines()[-1])
    value_head = 384 + 1
    adapter = 6 * 8 * (384 + 3 * 384)  # GPT-2 has queries, keys and values in one matrix
    trained = (adapter if rank else MIDDLE_PARAMETERS) + value_head
    frozen = MIDDLE_PARAMETERS if rank else 0
    expected = kept(trained, frozen, reference=0 if rank else MIDDLE_PARAMETERS)
    assert held["trained"] == trained
    assert held["kept"] | {"copies": 0, "phase": 0} == expected._asdict()
    for what in ("weights", "gradients", "moments", "reference"):
        assert held[what] == getattr(expected, what), what

    shape = Shape(MIDDLE_PARAMETERS, 6, 384, 4 * 384, False, 384, 32000)
    plan = Plan(**plan, autocast=False, packed=True, chunk=CHUNK_CPU)
    expected = needed(shape, plan).total
    assert held["allocated"] == pytest.approx(expected, rel=0.1)
    # its heap keeps what was packed for sampling, and has holes
    assert held["process"] == pytest.approx(expected + MIDDLE_PARAMETERS * 4, rel=0.3)


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=4, target_modules=["c_attn"])])
def test_what_grpo_holds_is_what_was_worked_out(adapter):
    trainer = tiny_grpo.build(max_steps=1, more={"peft_config": adapter})
    gradients = []

    def note(*_):
        held = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        gradients.append(sum(gradient.numel() * 4 for gradient in held))

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(note)
    trainer.train()
    states = trainer.optimizer.state_dict()["state"].values()
    moments = sum(m.numel() * 4 for state in states for m in state.values() if m.dim())
    whole = sum(p.numel() for p in tiny_grpo.tiny().parameters())
    added = 0 if adapter is None else 2 * 4 * (32 + 3 * 32)  # layers, rank, in and out
    expected = kept(added or whole, whole if added else 0, reference=0 if added else whole)
    assert kept_by(trainer.model, trainer.ref_model) == expected[:4]
    assert gradients == [expected.gradients]
    assert moments == expected.moments


def test_the_table_of_the_docs_is_the_one_worked_out():
    assert memory_plan.memory_table() in (ROOT / "docs" / "what_fits.md").read_text()
