"""SIGTERM and Ctrl-C: end after the current step instead of in the middle of it."""

import signal
import sys
import threading
from types import FrameType
from typing import Any


class StopSignals:
    """Notes the first SIGTERM or Ctrl-C while its block runs; a second one stops at once.

    Attributes:
        received: the signal, or None.
    """

    WATCHED = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # python allows no other
            self._handlers = {name: signal.signal(name, self._note) for name in self.WATCHED}
        return self

    def __exit__(self, *error: Any) -> None:
        for name, handler in self._handlers.items():
            signal.signal(name, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        sys.stderr.write(
            f"\n{self.received.name}: finishing this step, then saving. Once more stops at once.\n"
        )
