"""What training holds, measured, beside the formulas of docs/what_fits.md."""

import ctypes
import gc
import itertools
import json
import sys
from pathlib import Path

import pytest
import tiny_grpo
import torch
from architectures import ppo_trainer
from launching import run_warm
from peft import LoraConfig
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2Config, GPT2LMHeadModel

from trl_recipes.models.adapters import kept_by
from trl_recipes.ppo.objective import CHUNK_CPU

LAYERS, WIDTH, WORDS, HEAD = 6, 384, 32000, 384 + 1
BATCH, PASS, QUERY, RESPONSE = 8, 4, 16, 48
PARAMETERS = WORDS * WIDTH + 128 * WIDTH + LAYERS * (12 * WIDTH**2 + 13 * WIDTH) + 2 * WIDTH


def kept(trained, frozen, reference):
    """Bytes of weights, gradients, moments and a reference, of numbers of parameters in float32."""
    return [4 * (trained + frozen), 4 * trained, 8 * trained, 4 * reference]


@pytest.mark.parametrize("rank", [pytest.param(None, marks=pytest.mark.slow), 8])
def test_what_ppo_holds_is_what_was_worked_out(rank):
    done = run_warm(Path(__file__), json.dumps(rank))
    assert done.returncode == 0, done.stderr
    held = json.loads(done.stdout.splitlines()[-1])
    if rank:  # GPT-2 has queries, keys and values in one matrix
        expected = kept(LAYERS * rank * (WIDTH + 3 * WIDTH) + HEAD, PARAMETERS, 0)
    else:
        expected = kept(PARAMETERS + HEAD, 0, PARAMETERS)
    assert held["said"] == held["kept"] == expected

    logits, chunk = 4 * PASS * RESPONSE * WORDS, 3 * 4 * CHUNK_CPU
    keys = 2 * LAYERS * WIDTH * BATCH * (QUERY + RESPONSE)
    sampling = 4 * (keys + 2 * BATCH * WORDS + PARAMETERS)  # whose weights are laid out once more
    vectors = LAYERS * (8 + 2 + 2 * 4) * WIDTH * PASS * (QUERY + RESPONSE)
    before = max(sampling, 2 * logits + chunk) - expected[1]  # the gradients come with the update
    total = sum(expected) + max(before, 4 * vectors + logits + chunk)
    assert held["allocated"] == pytest.approx(total, rel=0.1)
    # its heap keeps what was packed for sampling, and has holes
    assert held["process"] == pytest.approx(total + PARAMETERS * 4, rel=0.3)


def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def size_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def moments_of(optimizer):
    states = optimizer.state_dict()["state"].values()
    return [tensor for state in states for tensor in state.values() if tensor.dim()]


def note_gradients(optimizer, model):
    """A list that gets the bytes of the gradients at each step."""
    sizes = []

    def note(*_):
        sizes.append(size_of(p.grad for p in model.parameters() if p.grad is not None))

    optimizer.register_step_pre_hook(note)
    return sizes


def most_allocated(run):
    """Most bytes that torch holds at a time beyond what it held before `run`, by its own count."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def train(rank):
    """Steps of PPO in a process of its own, and one line of JSON of what is held."""
    torch.manual_seed(0)
    sizes = {"n_layer": LAYERS, "n_embd": WIDTH, "n_head": 6, "n_positions": 128}
    model = GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=WORDS, bos_token_id=0, eos_token_id=0))
    weights = size_of(model.parameters())
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the most that was held is forgotten
    before = status("VmRSS")
    adapter = LoraConfig(r=rank, target_modules=["c_attn"], task_type="CAUSAL_LM")

    def length(completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]

    chosen = {"batch_size": BATCH, "mini_batch_size": PASS, "ppo_epochs": 1, "max_steps": 2}
    chosen |= {"gradient_accumulation_steps": BATCH // PASS, "response_length": RESPONSE}
    chosen |= {"min_response_length": None, "stop_token": None, "use_cpu": True}
    chosen["reward_norm"] = "none"  # which would sample for a while first
    more = {"peft_config": adapter if rank else None}
    trainer = ppo_trainer(model, length, [[1] * QUERY] * 64, more=more, **chosen)
    gradients = note_gradients(trainer.optimizer.optimizer, trainer.model)
    trainer.train()
    peak = status("VmHWM") - before + weights
    moments = moments_of(trainer.optimizer)
    reference = [] if trainer.ref_model is None else list(trainer.ref_model.parameters())
    own = list(trainer.model.parameters())
    on_top = most_allocated(lambda: trainer._train_on(*trainer._collect(trainer._next_batch())))
    held = {
        "kept": [size_of(own), gradients[-1], size_of(moments), size_of(reference)],
        "said": kept_by(trainer._actor_critic(), trainer.ref_model),
        "allocated": size_of([*own, *reference, *moments]) + on_top,
        "process": peak,
    }
    print(json.dumps(held))


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=4, target_modules=["c_attn"])])
def test_what_grpo_holds_is_what_was_worked_out(adapter):
    trainer = tiny_grpo.build(max_steps=1, more={"peft_config": adapter})
    gradients = note_gradients(trainer.create_optimizer(), trainer.model)
    trainer.train()
    whole = sum(p.numel() for p in tiny_grpo.tiny().parameters())
    added = 2 * 4 * (32 + 3 * 32)  # layers, rank, in and out
    expected = kept(added, whole, 0) if adapter else kept(whole, 0, whole)
    assert [*kept_by(trainer.model, trainer.ref_model)] == expected
    assert [*gradients, size_of(moments_of(trainer.optimizer))] == expected[1:3]


if __name__ == "__main__":
    train(json.loads(sys.argv[1]))
