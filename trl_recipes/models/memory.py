"""The memory that training keeps on one process, and how the CPU keeps what it frees."""

import ctypes
import sys
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn

MOMENTS = 2  # of AdamW, each in float32


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


def kept_by(model: nn.Module, reference: nn.Module | None) -> Memory:
    """Count the bytes that training a model on one process keeps all the time."""
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


def set_malloc_thresholds() -> None:
    """Let the C library, where it is glibc, keep large blocks for the next tensor.

    It returns them to the system by default, which hands out zeroed pages again: a tenth of a step
    on the CPU with GPT-2 small, a third with small models. The peak stays the same.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold, most = -1, -3, 2**31 - 1  # of malloc.h
        mallopt(trim_threshold, most)
        mallopt(mmap_threshold, most)
