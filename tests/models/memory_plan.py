"""How much memory training takes on each GPU, worked out beforehand.

Kept all the time, in bytes per parameter: trained weights 4 (float32), frozen ones 2 or 4 as they
were loaded, gradients of trained ones 4, AdamW's moments 8, a reference model 2 or 4 (with LoRA
it is the policy with its adapter off and takes nothing). DDP holds gradients once more, in the
buckets that travel. On top comes the largest of three phases: sampling, evaluation and update.

Left out: CUDA's own half a gigabyte, what the allocator loses between its blocks, the reward model;
`HEADROOM` of a GPU is left free for the first two.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from trl_recipes.models.adapters import MOMENTS
from trl_recipes.ppo.objective import CHUNK_GPU

FLOAT32, BFLOAT16 = 4, 2
HEADROOM = 0.1
GPUS = (16, 24, 40, 80)  # gigabytes


class Memory(NamedTuple):
    """Bytes on one GPU."""

    weights: float
    gradients: float
    moments: float
    reference: float
    copies: float = 0  # of gradients, in the buckets of DDP
    phase: float = 0  # the phase that takes most on top of these

    @property
    def total(self) -> float:
        return sum(self)


class Shape(NamedTuple):
    """What a language model is made of."""

    parameters: int  # tied ones once
    layers: int  # blocks of attention and MLP
    width: int  # of the hidden states
    intermediate: int  # width of the layer within the MLP
    gated: bool  # whether the MLP has a gate beside it
    key_value: int  # width of keys: heads of them times their size
    vocabulary: int  # tokens


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


def shape_of(config) -> Shape:
    """Count the weights of the model that transformers makes of a configuration."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters, width = sum(p.numel() for p in model.parameters()), config.hidden_size
    sizes = parameters, config.num_hidden_layers, width
    if config.model_type == "gpt2":
        return Shape(*sizes, 4 * width, False, width, config.vocab_size)
    key_value = model.model.layers[0].self_attn.k_proj.out_features
    return Shape(*sizes, config.intermediate_size, True, key_value, config.vocab_size)


SHAPES = {name: shape_of(config) for name, config in CONFIGS.items()}


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
    query: int = 256  # tokens of each
    response: int = 256  # tokens of each
    processes: int = 1  # GPUs
    spread: Literal["nothing", "all"] = "nothing"  # over GPUs: DDP, or FSDP2
    packed: bool = False  # weights are laid out once more for sampling, as on a CPU
    chunk: int = CHUNK_GPU  # logits that are float32 at a time


def lora_parameters(shape: Shape, rank: int) -> int:
    """Count the weights of an adapter on the projections to queries and values."""
    return shape.layers * rank * (2 * shape.width + shape.width + shape.key_value)


def kept(trained: int, frozen: int, reference: int, number: int = FLOAT32) -> Memory:
    """Give the bytes kept all the time, of numbers of parameters; `number`: of one not trained."""
    own = trained * FLOAT32
    return Memory(own + frozen * number, own, own * MOMENTS, reference * number)


def needed(shape: Shape, plan: Plan) -> Memory:
    """Work out the bytes that training takes on each GPU, at its most."""
    # FSDP2 divides what is kept; sampling and evaluation gather the policy, the latter both models
    adapter = 0 if plan.rank is None else lora_parameters(shape, plan.rank)
    trained = adapter or shape.parameters
    frozen = shape.parameters if adapter else 0
    copied = shape.parameters if plan.reference and not adapter else 0
    full = kept(trained, frozen, copied, plan.frozen)
    spread = plan.spread == "all"
    part = Memory(*(value / plan.processes for value in full)) if spread else full
    gathered, gathered_reference = (full.weights, full.reference) if spread else (0, 0)
    evaluation = evaluation_bytes(shape, plan) + gathered + gathered_reference
    phase = max(
        sampling_bytes(shape, plan) + gathered - part.gradients,  # which come with the update
        evaluation - part.gradients,
        update_bytes(shape, plan) + (layer_bytes(shape) if spread else 0),
    )
    buckets = full.gradients if plan.processes > 1 and not spread else 0.0
    return part._replace(copies=buckets, phase=phase)


def sampling_bytes(shape: Shape, plan: Plan) -> float:
    """Give the bytes of keys and values of all responses, and logits of one position of each."""
    number = BFLOAT16 if plan.autocast else FLOAT32
    tokens = plan.batch * (plan.query + plan.response)
    cache = 2 * shape.layers * shape.key_value * tokens * number
    logits = 2 * plan.batch * shape.vocabulary * FLOAT32
    packed = shape.parameters * FLOAT32 if plan.packed else 0
    return cache + logits + packed + autocast_bytes(shape, plan)


def evaluation_bytes(shape: Shape, plan: Plan) -> float:
    """Give the bytes of one pass's logits, and of the reference's beside them."""
    whole, chunk = logits_bytes(shape, plan)
    return 2 * whole + chunk + autocast_bytes(shape, plan)


def logits_bytes(shape: Shape, plan: Plan) -> tuple[float, float]:
    """Give the bytes of one pass's logits, and of the rows of them that are float32 at a time.

    There are three of the latter: logits, their softmax, and a product of both.
    """
    logits = plan.micro_batch * plan.response * shape.vocabulary
    number = BFLOAT16 if plan.autocast else FLOAT32
    return logits * number, 3 * min(logits, plan.chunk) * FLOAT32


def update_bytes(shape: Shape, plan: Plan) -> float:
    """Give the bytes that a backward pass needs of its forward pass, roughly.

    Each layer keeps about 8 vectors of its width per token (what norms, projections, attention and
    the sums around them take in), keys and values, and 2 or 4 of the width within the MLP. With
    checkpointing it keeps what it took in alone, and one layer at a time has all.
    """
    number = BFLOAT16 if plan.autocast else FLOAT32
    tokens = plan.micro_batch * (plan.query + plan.response)
    vectors = 8 * shape.width + 2 * shape.key_value
    vectors += (4 if shape.gated else 2) * shape.intermediate
    layer = tokens * vectors * number
    layers = shape.layers * layer
    if plan.checkpointing:
        layers = layer + shape.layers * tokens * shape.width * number
    whole, chunk = logits_bytes(shape, plan)
    if plan.autocast and shape.vocabulary % 8:  # an odd vocabulary's gradient is copied
        whole *= 2
    return layers + whole + chunk + autocast_bytes(shape, plan)


def autocast_bytes(shape: Shape, plan: Plan) -> float:
    """Give the bytes of autocast's bfloat16 copies of weights that are kept in float32."""
    in_float32 = plan.rank is None or plan.frozen == FLOAT32
    return BFLOAT16 * shape.parameters if plan.autocast and in_float32 else 0


def layer_bytes(shape: Shape) -> float:
    """Give the bytes that FSDP2 gathers at a time: two layers with gradients, or the head."""
    head = shape.width * shape.vocabulary
    return 2 * FLOAT32 * max(2 * (shape.parameters - head) // shape.layers, head)


def smallest_gpu(needed_bytes: float) -> int | None:
    """Find the smallest GPU of `GPUS` that holds so many bytes; None where none does."""
    fitting = (size for size in GPUS if needed_bytes <= (1 - HEADROOM) * size * 1e9)
    return next(fitting, None)


def memory_table() -> str:
    """Write the Markdown table of what training takes on each GPU, and the smallest that fits."""
    full = Plan(frozen=FLOAT32)
    plans = {
        "all weights": full,
        "without a reference": replace(full, reference=False),
        "8 GPUs, DDP": replace(full, processes=8),
        "8 GPUs, FSDP2": replace(full, processes=8, spread="all"),
        "LoRA": Plan(rank=16),
    }
    rows = [["GB a GPU (smallest)", *plans], ["---", *["---:"] * len(plans)]]
    for name, shape in SHAPES.items():
        totals = [needed(shape, plan).total for plan in plans.values()]
        cells = [f"{total / 1e9:.3g} ({smallest_gpu(total) or 'none'})" for total in totals]
        rows.append([name, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
