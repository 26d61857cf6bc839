"""How long each of several processes waits for the others, step by step.

A process waits from the moment at which it has nothing left to compute and needs what the others
know, until it has that. There are two such moments: the end of a backward pass, when its last
gradient is computed and the averages of all are not there yet (those of earlier layers travel while
later ones are computed, which is no waiting), and each sum of a statistic over all processes.

A wait has two parts. Until the last process has come as far, there is nothing to be had: that is
imbalance. From then on, numbers are on their way: that is transfer. Processes of one machine read
one clock, so both are told apart without a barrier that would itself make them wait.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn
from transformers import TrainerCallback


class Wait(NamedTuple):
    """One wait of one process."""

    kind: str  # gradients, or sums (of statistics)
    began: float  # seconds of the machine's clock
    ended: float  # likewise


class Waits(TrainerCallback):
    """Notes each wait of this process.

    Attributes:
        steps: the waits of each step, in their order, which is that of every other process.
    """

    def __init__(self):
        self.steps: list[list[Wait]] = []
        self._running: list[Wait] = []
        self._last_gradient = 0.0

    def watch(self, model: nn.Module) -> None:
        """Note when each gradient of a model is computed.

        Args:
            model: whose parameters are trained, in DistributedDataParallel or not.
        """

        def computed(parameter: nn.Parameter) -> None:
            self._last_gradient = time.perf_counter()

        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(computed)

    def gradients_arrived(self) -> None:
        """End the wait that began with the last gradient computed here."""
        self._running.append(Wait("gradients", self._last_gradient, time.perf_counter()))

    @contextmanager
    def sums(self) -> Iterator[None]:
        """Note the block, which adds up a statistic over all processes."""
        began = time.perf_counter()
        yield
        self._running.append(Wait("sums", began, time.perf_counter()))

    def on_step_end(self, args, state, control, **kwargs):
        """Keep the waits of a step."""
        self.steps.append(self._running)
        self._running = []


def waiting(processes: Sequence[Sequence[Wait]]) -> list[dict[str, float]]:
    """Add up the waits of one step.

    Args:
        processes: of each process, its waits; the same number and order of them.

    Returns:
        For each process, seconds under `<kind>/imbalance` and `<kind>/transfer`, and the number of
        waits under `<kind>/number`.
    """
    found: list[dict[str, float]] = [defaultdict(float) for _ in processes]
    for together in zip(*processes, strict=True):
        last = max(wait.began for wait in together)
        for process, wait in zip(found, together, strict=True):
            process[f"{wait.kind}/imbalance"] += last - wait.began
            process[f"{wait.kind}/transfer"] += wait.ended - last
            process[f"{wait.kind}/number"] += 1
    return [dict(process) for process in found]
