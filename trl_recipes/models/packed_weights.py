"""Copies of a model's weights as oneDNN lays them out, for sampling token by token on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

# Entries from which a weight is packed: below, starting the kernels costs more than the layout.
SMALLEST = 2**18
# Entries of all packed weights together: larger models on a CPU want for memory before time.
MOST = 2**30


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Let a model multiply with packed weights for the time of the block, which must not train it.

    A matrix product with a few rows spends most of its time on laying the weight out for the
    processor, anew in each call: with 16 rows, GPT-2 small's take a third of the time on weights
    laid out once. The copies take as much memory as the weights, until the block ends. Elsewhere
    than on a CPU, and where torch comes without oneDNN, nothing is changed.

    Args:
        model: its linear layers, GPT-2's among them, are changed in place and changed back. Under
            autocast the copies have its precision.
    """
    layers = [layer for layer in model.modules() if _gains(layer)]
    if sum(layer.weight.numel() for layer in layers) > MOST:
        layers = []
    for layer in layers:
        layer.forward = _PackedLinear(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _gains(layer: nn.Module) -> bool:
    """Whether a layer is one that is worth packing, and nobody else has changed."""
    if type(layer) not in (nn.Linear, Conv1D) or "forward" in vars(layer):
        return False
    weight = layer.weight
    return (
        weight.device.type == "cpu"
        and not isinstance(weight, DTensor)
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.numel() >= SMALLEST
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class _PackedLinear:
    """What a linear layer computes, in its place."""

    def __init__(self, layer: nn.Linear | Conv1D):
        weight, bias = layer.weight.detach(), layer.bias
        if isinstance(layer, Conv1D):  # (in, out)
            weight = weight.t()
        autocast = torch.is_autocast_enabled("cpu")
        self.dtype = torch.get_autocast_dtype("cpu") if autocast else weight.dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(self.dtype))
        self.bias = None if bias is None else bias.detach().to(self.dtype)

    def __call__(self, inputs: Tensor) -> Tensor:
        inputs = inputs.to(self.dtype)
        return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
