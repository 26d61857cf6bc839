"""The state of every random generator, taken and put back."""

import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """State of every random generator that a step draws from, as plain numbers.

    Python's, numpy's, torch's, and those of this process's accelerators.
    """
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  as used
    states = {
        "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state().tolist(),
    }
    if torch.cuda.is_available():
        states["cuda"] = [state.tolist() for state in torch.cuda.get_rng_state_all()]
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Put every random generator back.

    Args:
        states: from `random_states`.
    """
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    devices = states.get("cuda", [])
    if len(devices) == (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        torch.cuda.set_rng_state_all([torch.tensor(s, dtype=torch.uint8) for s in devices])
