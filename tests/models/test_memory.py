"""The memory of training, worked out beforehand and measured: the table of docs/what_fits.md.

Kept all the time, in bytes per parameter: trained weights 4 (float32), frozen ones 2 or 4 as they
were loaded, gradients of trained ones 4, AdamW's moments 8, a reference model 2 or 4 (with LoRA
it is the policy with its adapter off and takes nothing). DDP holds gradients once more, in the
buckets that travel. On top comes the largest of three phases: sampling, evaluation and update.

Left out: CUDA's own half a gigabyte, what the allocator loses between its blocks, the reward model;
a tenth of a GPU is left free for the first two.
"""

import ctypes
import functools
import gc
import itertools
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
import tiny_grpo
import torch
from architectures import ppo_trainer
from launching import ROOT, run_warm
from peft import LoraConfig, get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, Qwen2Config

from trl_recipes.models.adapters import MOMENTS, kept_by
from trl_recipes.ppo.objective import CHUNK_CPU, CHUNK_GPU

FLOAT32, BFLOAT16 = 4, 2


class Memory(NamedTuple):
    """Bytes on one GPU."""

    weights: float
    gradients: float
    moments: float
    reference: float
    copies: float = 0  # of gradients, in the buckets of DDP
    phase: float = 0  # the phase that takes most on top of these


class Shape(NamedTuple):
    """What a language model is made of."""

    parameters: int  # tied ones once
    layers: int
    width: int
    intermediate: int  # width of the layer within the MLP
    gated: bool  # whether the MLP has a gate beside it
    key_value: int  # heads of keys times their size
    vocabulary: int


@dataclass(frozen=True)
class Plan:
    """How a model is trained."""

    rank: int | None = None  # of LoRA on queries and values; None trains all weights
    frozen: int = BFLOAT16  # bytes of a weight that is not trained, the reference's included
    reference: bool = True
    autocast: bool = True  # to bfloat16
    checkpointing: bool = True  # of activations
    batch: int = 32  # responses of one process that are sampled together
    micro_batch: int = 4  # sequences of one forward and backward pass
    query: int = 256  # tokens
    response: int = 256
    processes: int = 1  # GPUs
    spread: Literal["nothing", "all"] = "nothing"  # over GPUs: DDP, or FSDP2
    packed: bool = False  # weights are laid out once more for sampling, as on a CPU
    chunk: int = CHUNK_GPU  # logits that are float32 at a time


def qwen(layers, width, intermediate, heads, key_value_heads, vocabulary=151936, tied=True):
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": intermediate}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": key_value_heads}
    return Qwen2Config(**sizes, vocab_size=vocabulary, tie_word_embeddings=tied)


# Their publishers' own configurations.
LLAMA = {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336}
LLAMA |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
CONFIGS = {
    "GPT-2, 124M": GPT2Config(),
    "Qwen2.5 0.5B": qwen(24, 896, 4864, 14, 2),
    "Qwen2.5 1.5B": qwen(28, 1536, 8960, 12, 2),
    "Qwen2.5 3B": qwen(36, 2048, 11008, 16, 2),
    "Qwen2.5 7B": qwen(28, 3584, 18944, 28, 4, 152064, False),
    "Llama 3.1 8B": LlamaConfig(**LLAMA),
}


@functools.cache
def shape_of(name):
    """The sizes of the model that transformers makes of a configuration."""
    config = CONFIGS[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    width = config.hidden_size
    sizes = sum(p.numel() for p in model.parameters()), config.num_hidden_layers, width
    if config.model_type == "gpt2":
        return Shape(*sizes, 4 * width, False, width, config.vocab_size)
    key_value = model.model.layers[0].self_attn.k_proj.out_features
    return Shape(*sizes, config.intermediate_size, True, key_value, config.vocab_size)


def lora_parameters(shape, rank):
    return shape.layers * rank * (2 * shape.width + shape.width + shape.key_value)


def kept(trained, frozen, reference, number=FLOAT32):
    """What is kept all the time, of numbers of parameters; `number`: bytes of one not trained."""
    own = trained * FLOAT32
    return Memory(own + frozen * number, own, own * MOMENTS, reference * number)


def phases(shape, plan):
    """What sampling, evaluation and update take on top, roughly."""
    number = BFLOAT16 if plan.autocast else FLOAT32
    cast = plan.autocast and (plan.rank is None or plan.frozen == FLOAT32)
    copies = BFLOAT16 * shape.parameters if cast else 0  # autocast's, of float32 weights

    # keys and values of all responses, and the logits of one position of each, twice
    cache = 2 * shape.layers * shape.key_value * plan.batch * (plan.query + plan.response) * number
    sampling = cache + 2 * plan.batch * shape.vocabulary * FLOAT32
    sampling += shape.parameters * FLOAT32 if plan.packed else 0

    # in float32 are a chunk of the logits, its softmax, and a product of both
    count = plan.micro_batch * plan.response * shape.vocabulary
    logits, chunk = count * number, 3 * min(count, plan.chunk) * FLOAT32

    # a layer keeps per token about 8 vectors of its width (what norms, projections, attention and
    # sums take in), keys and values, and 2 or 4 of the width within the MLP; with checkpointing
    # what it took in alone, and one layer at a time has all
    tokens = plan.micro_batch * (plan.query + plan.response) * number
    vectors = 8 * shape.width + 2 * shape.key_value
    layer = tokens * (vectors + (4 if shape.gated else 2) * shape.intermediate)
    one_by_one = layer + shape.layers * tokens * shape.width
    layers = one_by_one if plan.checkpointing else shape.layers * layer
    copied = 2 if plan.autocast and shape.vocabulary % 8 else 1  # the gradient of an odd vocabulary
    taken = (sampling, 2 * logits + chunk, layers + copied * logits + chunk)
    return [on_top + copies for on_top in taken]


def needed(shape, plan):
    """What training takes on each GPU, at its most."""
    adapter = 0 if plan.rank is None else lora_parameters(shape, plan.rank)
    frozen, copied = (shape.parameters, 0) if adapter else (0, shape.parameters * plan.reference)
    part = full = kept(adapter or shape.parameters, frozen, copied, plan.frozen)
    sampling, evaluation, update = phases(shape, plan)
    if plan.spread == "all":  # sampling gathers the policy, evaluation both, the update two layers
        part = Memory(*(value / plan.processes for value in full))
        sampling += full.weights
        evaluation += full.weights + full.reference
        head = shape.width * shape.vocabulary
        update += 2 * FLOAT32 * max(2 * (shape.parameters - head) // shape.layers, head)
    buckets = full.gradients if plan.processes > 1 and plan.spread == "nothing" else 0
    before = max(sampling, evaluation) - part.gradients  # which come with the update
    return part._replace(copies=buckets, phase=max(before, update))


def smallest_gpu(size):
    return next((gpu for gpu in (16, 24, 40, 80) if size <= 0.9 * gpu * 1e9), "none")


def memory_table():
    full = Plan(frozen=FLOAT32)
    plans = {
        "all weights": full,
        "without a reference": replace(full, reference=False),
        "8 GPUs, DDP": replace(full, processes=8),
        "8 GPUs, FSDP2": replace(full, processes=8, spread="all"),
        "LoRA": Plan(rank=16),
    }
    rows = [["GB a GPU (smallest)", *plans], ["---", *["---:"] * len(plans)]]
    for name in CONFIGS:
        totals = [sum(needed(shape_of(name), plan)) for plan in plans.values()]
        rows.append([name, *(f"{total / 1e9:.3g} ({smallest_gpu(total)})" for total in totals)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def test_the_table_of_the_docs_is_the_one_worked_out():
    assert memory_table() in (ROOT / "docs" / "what_fits.md").read_text()


@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("GPT")])
def test_an_adapter_has_the_weights_that_peft_makes(name):
    adapter = LoraConfig(r=16, target_modules=["q_proj", "v_proj"])
    with torch.device("meta"):
        model = get_peft_model(AutoModelForCausalLM.from_config(CONFIGS[name]), adapter)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert lora_parameters(shape_of(name), 16) == trained


# 10 weights; a layer has 4 vectors of width 2 and so on
TOY = Shape(10, layers=2, width=2, intermediate=4, gated=False, key_value=1, vocabulary=5)
TOY_PLAN = Plan(frozen=4, checkpointing=False, batch=3, micro_batch=2, query=1, response=4)
TOY_PLAN = replace(TOY_PLAN, chunk=15)
IN_PARTS = replace(TOY_PLAN, processes=4, spread="all", micro_batch=1, response=1)


def test_parts_of_a_toy_by_hand():
    assert kept(trained=3, frozen=10, reference=0, number=2) == Memory(32, 12, 24, 0)
    # copies of 10 weights in bfloat16: 20. Keys and values of 2 layers, width 1, 3 * 5 tokens, 2
    # bytes: 120; logits of 3 sequences twice: 2 * 3 * 5 * 4 = 120.
    # Logits of 2 * 4 tokens: 8 * 5 * 2 = 80, twice, and 15 of them in float32, three times: 180.
    # 10 tokens of 2 layers, 8 * 2 + 2 * 1 + 2 * 4 = 26 numbers of 2 bytes: 1040; 5 is odd
    assert phases(TOY, TOY_PLAN) == [120 + 120 + 20, 160 + 180 + 20, 1040 + 160 + 180 + 20]
    # of one token in 2 layers, 2 * 26 * 2 * 2 = 208, logits 5 * 2 twice, in float32 60, copies 20
    assert phases(TOY, IN_PARTS)[1:] == [20 + 60 + 20, 208 + 20 + 60 + 20]
    assert [smallest_gpu(size) for size in (14.4e9, 14.5e9, 72e9, 72.1e9)] == [16, 24, 80, "none"]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (TOY_PLAN, Memory(40, 40, 80, 40, 0, 1400)),
        (replace(TOY_PLAN, reference=False), Memory(40, 40, 80, 0, 0, 1400)),
        (replace(TOY_PLAN, processes=2), Memory(40, 40, 80, 40, 40, 1400)),
        (replace(TOY_PLAN, packed=True, batch=60), Memory(40, 40, 80, 40, 0, 4800 + 20)),
        # a head of 10 weights is gathered, with its gradients
        (IN_PARTS, Memory(10, 10, 20, 10, 0, 308 + 2 * 10 * 4)),
        # keys and values 2 * 2 * 60 * 2 * 2, logits 2400; the part of the gradients is not there
        (replace(IN_PARTS, batch=60), Memory(10, 10, 20, 10, 0, 960 + 2400 + 20 + 40 - 10)),
    ],
)
def test_the_whole_of_a_toy_by_hand(plan, expected):
    assert needed(TOY, plan) == expected


MIDDLE = {"n_layer": 6, "n_embd": 384, "n_head": 6, "vocab_size": 32000}
MIDDLE_PARAMETERS = 32000 * 384 + 128 * 384 + 6 * (12 * 384**2 + 13 * 384) + 2 * 384


@pytest.mark.parametrize("rank", [pytest.param(None, marks=pytest.mark.slow), 8])
def test_what_ppo_holds_is_what_was_worked_out(rank):
    lengths = {"batch": 8, "micro_batch": 4, "query": 16, "response": 48}
    plan = Plan(rank=rank, frozen=4, autocast=False, checkpointing=False, packed=True, **lengths)
    plan = replace(plan, chunk=CHUNK_CPU)
    done = run_warm(Path(__file__), json.dumps(vars(plan)))
    assert done.returncode == 0, done.stderr
    held = json.loads(done.stdout.splitlines()[-1])
    adapter = 6 * 8 * (384 + 3 * 384)  # GPT-2 has queries, keys and values in one matrix
    trained = (adapter if rank else MIDDLE_PARAMETERS) + 384 + 1  # and a value head
    frozen, reference = (MIDDLE_PARAMETERS, 0) if rank else (0, MIDDLE_PARAMETERS)
    assert held["trained"] == trained
    assert held["said"] == held["kept"] == [*kept(trained, frozen, reference)[:4]]

    shape = Shape(MIDDLE_PARAMETERS, 6, 384, 4 * 384, False, 384, 32000)
    expected = sum(needed(shape, plan))
    assert held["allocated"] == pytest.approx(expected, rel=0.1)
    # its heap keeps what was packed for sampling, and has holes
    assert held["process"] == pytest.approx(expected + MIDDLE_PARAMETERS * 4, rel=0.3)


def status(field):
    """Bytes of one line of /proc/self/status."""
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


def train(plan):
    """Steps of PPO in a process of its own, and one line of JSON of what is held."""
    torch.manual_seed(0)
    config = GPT2Config(**MIDDLE, bos_token_id=0, eos_token_id=0, n_positions=128)
    model = GPT2LMHeadModel(config)
    weights = size_of(model.parameters())
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the most that was held is forgotten
    before = status("VmRSS")
    adapter = LoraConfig(r=plan["rank"], target_modules=["c_attn"], task_type="CAUSAL_LM")

    def length(completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]

    chosen = {"batch_size": plan["batch"], "mini_batch_size": plan["micro_batch"]}
    chosen |= {"gradient_accumulation_steps": plan["batch"] // plan["micro_batch"]}
    chosen |= {"response_length": plan["response"], "min_response_length": None, "ppo_epochs": 1}
    chosen |= {"stop_token": None, "max_steps": 2, "use_cpu": True}
    more = {"peft_config": adapter if plan["rank"] else None}
    trainer = ppo_trainer(model, length, [[1] * plan["query"]] * 64, more=more, **chosen)
    gradients = note_gradients(trainer.optimizer.optimizer, trainer.model)
    trainer.train()
    peak = status("VmHWM") - before + weights
    moments = moments_of(trainer.optimizer)
    reference = [] if trainer.ref_model is None else list(trainer.ref_model.parameters())
    own = list(trainer.model.parameters())
    allocated = most_allocated(lambda: trainer._train_on(*trainer._collect(trainer._next_batch())))
    held = {
        "kept": [size_of(own), gradients[-1], size_of(moments), size_of(reference)],
        "said": kept_by(trainer._actor_critic(), trainer.ref_model),
        "trained": sum(p.numel() for p in own if p.requires_grad),
        "process": peak,
        "allocated": size_of([*own, *reference, *moments]) + allocated,
    }
    print(json.dumps(held))


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=4, target_modules=["c_attn"])])
def test_what_grpo_holds_is_what_was_worked_out(adapter):
    trainer = tiny_grpo.build(max_steps=1, more={"peft_config": adapter})
    gradients = note_gradients(trainer.create_optimizer(), trainer.model)
    trainer.train()
    whole = sum(p.numel() for p in tiny_grpo.tiny().parameters())
    added = 0 if adapter is None else 2 * 4 * (32 + 3 * 32)  # layers, rank, in and out
    expected = kept(added or whole, whole if added else 0, reference=0 if added else whole)
    assert kept_by(trainer.model, trainer.ref_model) == expected[:4]
    assert gradients == [expected.gradients]
    assert size_of(moments_of(trainer.optimizer)) == expected.moments


if __name__ == "__main__":
    train(json.loads(sys.argv[1]))
