"""Seconds of a step and of its phases, taken from outside a trainer."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import TrainerCallback


class Clock(TrainerCallback):
    """Takes the time from the end of one step to the end of the next, of any trainer alike.

    Before it looks at the time it waits for a GPU to finish what was asked of it.

    Args:
        device: cpu or cuda.

    Attributes:
        steps: for each step, its seconds under "step", and those of each phase that was timed.
    """

    def __init__(self, device: str):
        self.device = device
        self.steps: list[dict[str, float]] = []
        self._phases: dict[str, float] = defaultdict(float)
        self._last = 0.0

    def now(self) -> float:
        """The time in seconds, when the device has nothing left to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's seconds to a phase of the running step.

        Args:
            name: of the phase; its blocks add up.
        """
        started = self.now()
        yield
        self._phases[name] += self.now() - started

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the first step."""
        self._last = self.now()

    def on_step_end(self, args, state, control, **kwargs):
        """End a step, and start the next."""
        now = self.now()
        self.steps.append({"step": now - self._last, **self._phases})
        self._phases.clear()
        self._last = now
