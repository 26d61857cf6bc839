"""How much memory training takes on each GPU, worked out beforehand from what is kept.

What is kept all the time, in bytes a parameter: weights that are trained 4 (float32), frozen ones 2
or 4 as they were loaded, gradients of trained ones 4, AdamW's two moments 8, a reference model 2 or
4; with LoRA the reference is the policy with its adapter off and takes nothing. Several processes
that average gradients (DDP) hold them once more, in the buckets that travel. On a CPU weights are
laid out once more for sampling, and freed memory is kept for the next step.

What a phase takes on top of it, the largest of which counts:

- sampling: keys and values of all responses of the batch, and the logits of one position of each;
- evaluation: one forward pass, whose logits are float32, three times: logits, their softmax, and
  the reference's;
- update: what the backward pass needs of a forward pass of `micro_batch` sequences, logits three
  times, and under autocast the weights in bfloat16. With one pass an optimizer step it is less:
  gradients then come as activations go.

Spread over several GPUs (FSDP2), each holds its part of what is kept; sampling and evaluation
gather the whole policy, and evaluation the reference.

Left out: CUDA's own half a gigabyte, what the allocator loses between its blocks, the reward model.
`HEADROOM` of a GPU is left free for the first two. PPO and GRPO keep the same: PPO's value head has
a few thousand weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torch import Tensor, nn

FLOAT32, BFLOAT16 = 4, 2
MOMENTS = 2  # of AdamW, each in float32
HEADROOM = 0.1
GPUS = (16, 24, 40, 80)  # gigabytes


class Shape(NamedTuple):
    """What a language model is made of, in numbers of weights."""

    parameters: int  # tied ones once
    layers: int  # blocks of attention and MLP
    width: int  # of the hidden states
    intermediate: int  # width of the layer within the MLP
    gated: bool  # whether the MLP has a gate beside it
    key_value: int  # width of keys: heads of them times their size
    vocabulary: int  # tokens


SHAPES = {
    "GPT-2, 124M": Shape(124_439_808, 12, 768, 3072, False, 768, 50257),
    "Qwen2.5 0.5B": Shape(494_032_768, 24, 896, 4864, True, 128, 151936),
    "Qwen2.5 1.5B": Shape(1_543_714_304, 28, 1536, 8960, True, 256, 151936),
    "Qwen2.5 3B": Shape(3_085_938_688, 36, 2048, 11008, True, 256, 151936),
    "Qwen2.5 7B": Shape(7_615_616_512, 28, 3584, 18944, True, 512, 152064),
    "Llama 3.1 8B": Shape(8_030_261_248, 32, 4096, 14336, True, 1024, 128256),
}


@dataclass(frozen=True)
class Plan:
    """How a model is trained.

    Attributes:
        rank: of LoRA on queries and values; None trains all weights.
        frozen: bytes of a weight that is not trained, the reference's included.
        reference: whether there is one.
        autocast: bfloat16 autocast.
        checkpointing: whether activations are worked out again in the backward pass.
        batch: responses of one process that are sampled together.
        micro_batch: sequences of one forward and backward pass.
        query: tokens of each.
        response: tokens of each.
        processes: GPUs.
        spread: over GPUs: nothing (DDP), or all that is kept (FSDP2).
        packed: whether weights are laid out once more for sampling, as on a CPU.
    """

    rank: int | None = None
    frozen: int = BFLOAT16
    reference: bool = True
    autocast: bool = True
    checkpointing: bool = True
    batch: int = 32
    micro_batch: int = 4
    query: int = 256
    response: int = 256
    processes: int = 1
    spread: Literal["nothing", "all"] = "nothing"
    packed: bool = False


class Memory(NamedTuple):
    """Bytes on one GPU."""

    weights: float  # of the policy
    gradients: float  # of the trained weights
    moments: float  # Adam's two
    reference: float  # a reference model of its own
    copies: float  # of gradients, in the buckets of DDP; of packed weights
    phase: float  # the phase that takes most on top of these

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self)


def lora_parameters(shape: Shape, rank: int) -> int:
    """Count the weights of an adapter on the projections to queries and values.

    Args:
        shape: of the model.
        rank: of the adapter.
    """
    return shape.layers * rank * (2 * shape.width + shape.width + shape.key_value)


def kept(trained: int, frozen: int, reference: int, number: int = FLOAT32) -> Memory:
    """Bytes of what is kept all the time by one process alone.

    Args:
        trained: parameters that are trained.
        frozen: parameters of the policy that are not.
        reference: parameters of a reference model of its own; 0 where there is none.
        number: bytes of a frozen one, the reference's included.
    """
    return Memory(
        weights=trained * FLOAT32 + frozen * number,
        gradients=trained * FLOAT32,
        moments=trained * FLOAT32 * MOMENTS,
        reference=reference * number,
        copies=0,
        phase=0,
    )


def kept_by(model: nn.Module, reference: nn.Module | None) -> Memory:
    """Count the bytes of what training keeps all the time: the same as `kept`, of a model at hand.

    Args:
        model: that is trained, on one process.
        reference: a model of its own, or None.
    """
    trained = _bytes(p for p in model.parameters() if p.requires_grad)
    return Memory(
        weights=_bytes(model.parameters()),
        gradients=trained,
        moments=MOMENTS * trained,
        reference=0 if reference is None else _bytes(reference.parameters()),
        copies=0,
        phase=0,
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def needed(shape: Shape, plan: Plan) -> Memory:
    """Work out the bytes that training takes on each GPU, at its most.

    Args:
        shape: of the policy; the reference has the same.
        plan: how it is trained.
    """
    adapter = 0 if plan.rank is None else lora_parameters(shape, plan.rank)
    trained = adapter or shape.parameters
    frozen = shape.parameters if adapter else 0
    copied = shape.parameters if plan.reference and not adapter else 0
    whole = kept(trained, frozen, copied, plan.frozen)
    spread = plan.spread == "all"
    part = Memory(*(value / plan.processes for value in whole)) if spread else whole
    gathered = whole.weights if spread else 0.0
    phase = max(
        sampling_bytes(shape, plan) + gathered - part.gradients,  # which come with the update
        evaluation_bytes(shape, plan)
        + gathered
        + (whole.reference if spread else 0)
        - part.gradients,
        update_bytes(shape, plan) + (layer_bytes(shape) if spread else 0),
    )
    buckets = whole.gradients if plan.processes > 1 and not spread else 0.0
    packed = whole.weights if plan.packed else 0.0
    return part._replace(copies=buckets + packed, phase=phase)


def sampling_bytes(shape: Shape, plan: Plan) -> float:
    """Keys and values of all responses, and logits of one position of each.

    Args:
        shape: of the policy.
        plan: gives batch and lengths.
    """
    number = BFLOAT16 if plan.autocast else FLOAT32
    tokens = plan.batch * (plan.query + plan.response)
    cache = 2 * shape.layers * shape.key_value * tokens * number
    return cache + 2 * plan.batch * shape.vocabulary * FLOAT32 + autocast_bytes(shape, plan)


def evaluation_bytes(shape: Shape, plan: Plan) -> float:
    """Logits of policy and reference in one forward pass.

    Args:
        shape: of the policy.
        plan: gives the sequences of a pass, and their length.
    """
    logits = plan.micro_batch * plan.response * shape.vocabulary * FLOAT32
    return 3 * logits + autocast_bytes(shape, plan)


def update_bytes(shape: Shape, plan: Plan) -> float:
    """What a backward pass needs of its forward pass, roughly.

    Each layer keeps about 8 vectors of its width a token (what norms, projections, attention and
    the sums around them take in), keys and values, and 2 or 4 of the width within the MLP. With
    checkpointing it keeps what it took in alone, and one layer at a time has all.

    Args:
        shape: of the policy.
        plan: gives the sequences of a pass, their length and what is kept of them.
    """
    number = BFLOAT16 if plan.autocast else FLOAT32
    tokens = plan.micro_batch * (plan.query + plan.response)
    vectors = 8 * shape.width + 2 * shape.key_value
    vectors += (4 if shape.gated else 2) * shape.intermediate
    layer = tokens * vectors * number
    layers = shape.layers * layer
    if plan.checkpointing:
        layers = layer + shape.layers * tokens * shape.width * number
    logits = plan.micro_batch * plan.response * shape.vocabulary * FLOAT32
    return layers + 3 * logits + autocast_bytes(shape, plan)


def autocast_bytes(shape: Shape, plan: Plan) -> float:
    """Copies in bfloat16 of weights that are kept in float32, which a pass under autocast makes.

    Args:
        shape: of the policy.
        plan: says which weights are float32.
    """
    in_float32 = plan.rank is None or plan.frozen == FLOAT32
    return BFLOAT16 * shape.parameters if plan.autocast and in_float32 else 0


def layer_bytes(shape: Shape) -> float:
    """The layers that are gathered at a time: two of them, with their gradients, or the head.

    Args:
        shape: of the policy.
    """
    head = shape.width * shape.vocabulary
    return 2 * FLOAT32 * max(2 * (shape.parameters - head) // shape.layers, head)


def smallest_gpu(needed_bytes: float) -> int | None:
    """Find the smallest GPU of `GPUS` that holds so many bytes; None where none does.

    Args:
        needed_bytes: from `needed`.
    """
    fitting = (size for size in GPUS if needed_bytes <= (1 - HEADROOM) * size * 1e9)
    return next(fitting, None)


def memory_table() -> str:
    """Lay out as Markdown what training takes on each GPU, and the smallest that holds it."""
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
        rows.append([name, *(_cell(needed(shape, plan).total) for plan in plans.values())])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _cell(taken: float) -> str:
    gpu = smallest_gpu(taken)
    return f"{taken / 1e9:.3g} ({gpu or 'none'})"
