"""CUDA graphs: the kernels of a step, recorded once and replayed without Python."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch

logger = logging.getLogger(__name__)


def captured(
    step: Callable[[], None], device: torch.device, what: str
) -> Callable[[], None] | None:
    """Capture a step without running it; return its replay, or None where it asks the host."""
    stream, place = _capture_place(device)
    graph, pool = torch.cuda.CUDAGraph(), place.pool()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream), _generator_aside(device):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                step()
            finally:
                graph.capture_end()
    except RuntimeError as error:
        # a capture that fails leaves the pool as if it were still being filled
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(device.index, pool)
        _capture_place.cache_clear()
        cause = error.__context__ or error  # what ended the capture, not that it did not end well
        if isinstance(cause, torch.OutOfMemoryError):
            raise cause from None
        logger.warning("CUDA cannot capture %s, which stays slow: %s", what, cause)
        return None
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


@contextmanager
def _generator_aside(device: torch.device) -> Iterator[None]:
    """Swap the generator's state for a copy: a failed capture would leave it unusable."""
    generator = torch.cuda.default_generators[device.index]
    own = generator.graphsafe_get_state()
    generator.graphsafe_set_state(generator.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(own)


@cache
def _capture_place(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]:
    """Keep one stream and one pool of memory, which a small graph holds, for all captures."""
    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device=device)
        graph.capture_end()
    return stream, graph
