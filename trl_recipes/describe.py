"""What a run is about to do, in words; texts made safe to show, and numbers easy to read."""

import io
import math
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# Said before every run of GRPO and RLOO, because such a loss looks like a run that learns nothing.
ABOUT_THE_LOSS = (
    "The loss that TRL logs stays near 0 however well it goes, because the advantages in a group "
    "add up to 0; read the score."
)


def printable(text: str) -> str:
    """Make text safe for a terminal and one line: control characters become spaces.

    >>> printable("red " + chr(27) + "[31mtext")
    'red  [31mtext'
    """
    return "".join(character if character.isprintable() else " " for character in text)


def replace_unknown_characters() -> None:
    """Let standard output and error replace what their encoding lacks, as cp1252 does."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows, the first a heading, as Markdown: the first column left, the others right."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def duration(seconds: float) -> str:
    """Say a time in the unit that suits it, such as 75 seconds, 5 minutes or 2.5 hours."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


def peak_memory() -> float:
    """Measure the most memory that this process held, in GB, of a GPU or else of RAM; else nan."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return peaks[0] * 1024 / 1e9 if peaks else math.nan


def device_name() -> str:
    """Name the GPU, or the CPU with the number of torch's threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


def describe_run(
    algorithm: str, trainer: Any, model: Any, prompt_lengths: Sequence[int], steps: int
) -> str:
    """Say in one paragraph what is trained, on what, for how long, with the batch arithmetic."""
    config = trainer.args
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    processes = config.world_size or 1
    if algorithm == "PPO":
        shortest, about_the_loss = config.min_response_length or 1, ""
        batch = f"gone over {config.ppo_epochs} times in {config.num_mini_batches} optimizer steps"
        kl = f"KL coefficient {config.init_kl_coef:g}"
        if config.adap_kl_ctrl:
            kl += f", adapted towards {config.target:g} nats"
    else:
        shortest, about_the_loss = 1, f" {ABOUT_THE_LOSS}"
        batch = f"{config.num_generations} to a prompt, gone over {config.num_iterations} times"
        kl = f"beta {config.beta:g}"
    prompts = "Prompts of a stream"
    if prompt_lengths:
        shortest_prompt, longest = min(prompt_lengths), max(prompt_lengths)
        prompts = f"{len(prompt_lengths):,} prompts of {shortest_prompt} to {longest} tokens"
    return (
        f"{algorithm} on {type(getattr(model, 'policy', model)).__name__} with {total:,} "
        f"parameters, training {trained:,}, rewarded by {', '.join(trainer.rewards.names)}. "
        f"{prompts} get responses of {shortest} to {config.response_length}. {steps} steps, each "
        f"of {config.batch_size * processes} responses, {batch}; {kl}; learning rate "
        f"{config.learning_rate:g}; {'bfloat16 autocast' if config.bf16 else 'float32'} on "
        f"{trainer.accelerator.device}, {processes} process(es), seed {config.seed}."
        f"{about_the_loss}{trainer.rewards.described()}"
    )


def describe_check(
    seconds: Sequence[float],
    steps: int,
    checked: str,
    sample: tuple[str, str, float],
    kept: Any = None,
) -> str:
    """Say what a check found, and what the whole run will take.

    `seconds` are those of each step that was tried, the first one with its warm-up; `sample` is a
    prompt, the response to it and its score; `kept` the bytes that training keeps (`kept_by`).
    """
    later = statistics.median(seconds[1:] or seconds)
    total = seconds[0] + (steps - 1) * later
    parts, (prompt, response, score) = "", sample
    if kept is not None:
        parts = (
            "; of it weights {:.2g}, gradients {:.2g}, optimizer {:.2g}, reference {:.2g} GB"
        ).format(*(part / 1e9 for part in kept))
    return (
        f"Checked with {len(seconds)} steps, nothing written: the reward functions, {checked}, and "
        f"that gradients are finite.\n"
        f"A sample: {printable(prompt)!r} was continued by {printable(response)!r}, score "
        f"{score:.2f}.\n"
        f"The whole training will take about {duration(total)} ({steps} steps of {later:.2g} s) "
        f"and {peak_memory():.1f} GB of memory{parts}."
    )
