"""The time that no PPO step of a given shape can do without, on this machine.

For B rows of Q query and R response tokens, with n = Q + R - 1 (the last token's logits nobody
needs) and E epochs:

- generation: each row's n tokens once through the trunk, R of them through the head; and for each
  of the R positions every weight read once, since a token depends on the one before it;
- forward: the same once through the reference model;
- update: E times forward and backward. Backward costs twice the forward pass; with LoRA once for
  frozen weights, twice for the attention product and the adapter. AdamW reads parameter, gradient
  and two moments, and writes parameter and moments: 7 float32 numbers a trained parameter.

A weight and token take two operations, and attention 4 times its width a layer and pair of
positions. All else counts for nothing, so a trainer cannot reach the bound. Operations are divided
by the measured rate of a matrix product, (B * n, width) times (width, 4 * width) in the step's
precision; bytes by that of a copy as large as the weights. While a token is generated, reading and
multiplying can overlap: there the longer one counts. All else adds up.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from peft import get_peft_model
from torch import nn
from torch.utils.benchmark import Timer
from transformers.pytorch_utils import Conv1D

from trl_recipes.benchmark import models
from trl_recipes.benchmark.models import Workload

ADAMW_BYTES = 7 * 4
COPY_LIMIT = 2**28


class ModelShape(NamedTuple):
    """What a model multiplies by and holds, in numbers of weights."""

    trunk: int  # weights that each token is multiplied by, without the head
    head: int  # width times vocabulary
    layers: int
    width: int  # of its hidden states, and of its heads together
    parameters: int  # in all
    adapter: int  # weights of the LoRA adapter, 0 without one


class Needs(NamedTuple):
    """Floating-point operations and bytes that one step cannot do without."""

    generation_operations: float
    generation_bytes: float  # read
    forward_operations: float  # of the passes between sampling and updates
    update_operations: float
    update_bytes: float  # that the optimizer reads and writes


class Rates(NamedTuple):
    """What the machine does when it does nothing else."""

    operations: float  # a second
    bytes: float  # a second, read and written


def model_shape(work: Workload) -> ModelShape:
    """Count a model's weights; nothing is allocated."""
    with torch.device("meta"), warnings.catch_warnings():
        # PEFT 0.21 reads a property that transformers renamed in 5.23
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        model = models.language_model(work)
        parameters = sum(p.numel() for p in model.parameters())
        products = (m for m in model.get_decoder().modules() if isinstance(m, nn.Linear | Conv1D))
        trunk = sum(module.weight.numel() for module in products)
        adapter = 0
        if work.peft:
            model = get_peft_model(model, models.lora_config(work))
            adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    config = model.config
    width = config.hidden_size  # that of all heads together too, at each of these sizes
    return ModelShape(
        trunk, width * config.vocab_size, config.num_hidden_layers, width, parameters, adapter
    )


def needs(work: Workload, shape: ModelShape) -> Needs:
    """Count what one step needs, as the module's docstring says."""
    n = work.tokens
    weights = work.batch * 2.0 * (shape.trunk * n + shape.head * work.response)
    # position t attends to t positions: n (n + 1) / 2 pairs
    attention = work.batch * 2.0 * shape.layers * shape.width * n * (n + 1)
    adapter = work.batch * 2.0 * shape.adapter * n
    if shape.adapter:
        epoch, trained = 2 * weights + 3 * (attention + adapter), shape.adapter
    else:
        epoch, trained = 3 * (weights + attention), shape.parameters
    number = 2 if work.precision == "bf16" else 4
    return Needs(
        generation_operations=weights + attention,
        generation_bytes=float(work.response * (shape.trunk + shape.head) * number),
        forward_operations=weights + attention,
        update_operations=work.epochs * epoch,
        update_bytes=float(work.epochs * trained * ADAMW_BYTES),
    )


def bound(needed: Needs, rates: Rates) -> dict[str, float]:
    """Turn counts into the seconds that a step and its phases take at least."""
    seconds = {
        "generation": max(
            needed.generation_operations / rates.operations, needed.generation_bytes / rates.bytes
        ),
        "forward": needed.forward_operations / rates.operations,
        "update": needed.update_operations / rates.operations + needed.update_bytes / rates.bytes,
    }
    return seconds | {"step": sum(seconds.values())}


def measure_rates(work: Workload, shape: ModelShape) -> Rates:
    """Measure a matrix product of the model's shape, and a copy as large as its weights."""
    dtype = torch.bfloat16 if work.precision == "bf16" else torch.float32
    rows, width = work.batch * work.tokens, shape.width
    left = torch.randn(rows, width, device=work.device).to(dtype)
    right = torch.randn(width, 4 * width, device=work.device).to(dtype)
    product = torch.empty(rows, 4 * width, device=work.device, dtype=dtype)
    source = torch.randn(min(shape.parameters, COPY_LIMIT), device=work.device)
    target = torch.empty_like(source)
    seconds_product = _seconds(lambda: torch.mm(left, right, out=product))
    seconds_copy = _seconds(lambda: target.copy_(source))
    return Rates(2.0 * rows * width * 4 * width / seconds_product, 8.0 * len(source) / seconds_copy)


def _seconds(call: Callable[[], object]) -> float:
    """Seconds of one call: the best of several windows, each long enough for the clock."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=1.0).times)
