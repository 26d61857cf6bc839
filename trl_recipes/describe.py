"""Text of models and data made safe to show, and numbers made easy to read."""

import math
from pathlib import Path


def printable(text: str) -> str:
    """Make text safe for a terminal and one line: control characters become spaces.

    That takes in escape sequences, which could hide or rewrite what stands on the screen, and
    characters that turn the direction of writing.

    >>> printable("red " + chr(27) + "[31mtext")
    'red  [31mtext'
    """
    return "".join(character if character.isprintable() else " " for character in text)


def duration(seconds: float) -> str:
    """Say a time in the unit that suits it.

    >>> duration(75), duration(300), duration(9000)
    ('75 seconds', '5 minutes', '2.5 hours')
    """
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


def peak_memory() -> float:
    """Measure the most memory that this process has held, in GB: the GPU's, or the machine's.

    nan where the system does not say.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return peaks[0] * 1024 / 1e9 if peaks else math.nan
