"""What a GRPO or RLOO run is about to do, in words."""

import statistics
from collections.abc import Sequence

from torch import nn

from trl_recipes.describe import duration, peak_memory, printable
from trl_recipes.grpo.config import GroupConfig

# Said before every run, because a loss that stays near 0 looks like a run that learns nothing.
ABOUT_THE_LOSS = (
    "The loss that TRL logs stays near 0 however well it goes, because the advantages in a group "
    "add up to 0; read the score."
)


def describe_run(
    algorithm: str,
    config: GroupConfig,
    model: nn.Module,
    reward_names: Sequence[str],
    prompt_lengths: Sequence[int],
    steps: int,
    device: str,
) -> str:
    """Say in one paragraph what is trained, on what, for how long, with the batch arithmetic.

    Args:
        algorithm: GRPO or RLOO.
        config: after the trainer was built.
        model: the policy.
        reward_names: of the reward functions.
        prompt_lengths: tokens of each prompt.
        steps: optimizer steps of the run.
        device: where it runs.
    """
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    part = "all of them" if trained == total else f"{_count(trained)} of them"
    processes = config.world_size
    samples = config.batch_size * processes
    fresh = config.generation_batch_size
    passes = config.gradient_accumulation_steps
    split = "" if passes == 1 else f" in {passes} passes of {config.mini_batch_size}"
    at_once = "" if fresh == samples else f", sampled {fresh} at a time"
    again = "" if config.num_iterations == 1 else f", gone over {config.num_iterations} times"
    every = (
        f"{fresh // config.num_generations} prompts with {config.num_generations} responses each"
    )
    kl = f"weight of the KL {config.beta:g}" if config.beta else "no reference model"
    precision = "bfloat16 autocast" if config.bf16 else "float32"
    responses = -(-steps * samples // (fresh * config.num_iterations)) * fresh
    return (
        f"{algorithm} on {type(model).__name__} with {_count(total)} parameters, training {part}, "
        f"rewarded by {', '.join(reward_names)}. "
        f"{_range(min(prompt_lengths), max(prompt_lengths))} of {len(prompt_lengths)} prompts are "
        f"continued by at most {_range(config.response_length, config.response_length)}. {steps} "
        f"steps, each of {samples} responses{split}{at_once}{again}: {every}, {responses} "
        f"responses in all. {kl[0].upper() + kl[1:]}; learning rate {config.learning_rate:g}; "
        f"{precision} on {device}, {processes} process{'es' if processes > 1 else ''}, seed "
        f"{config.seed}. {ABOUT_THE_LOSS}"
    )


def describe_check(
    seconds: Sequence[float], steps: int, sample: tuple[str, str, float] | None
) -> str:
    """Say what a check found, and what the whole run will take.

    Args:
        seconds: of each step that was tried; the first one also warms up.
        steps: of the whole run.
        sample: a prompt, the response to it and its score.
    """
    later = statistics.median(seconds[1:] or seconds)
    total = seconds[0] + (steps - 1) * later
    shown = ""
    if sample is not None:
        prompt, response, score = sample
        shown = (
            f"A sample: {printable(prompt)!r} was continued by {printable(response)!r}, score "
            f"{score:.2f}.\n"
        )
    return (
        f"Checked with {len(seconds)} steps, nothing written: the reward functions, the prompts, "
        f"and that gradients are finite.\n{shown}"
        f"The whole training will take about {duration(total)} ({steps} steps of {later:.2g} s) "
        f"and {peak_memory():.1f} GB of memory."
    )


def _count(number: int) -> str:
    if number < 1_000_000:
        return f"{number / 1000:.0f} thousand"
    return f"{number / 1e6:.1f} million"


def _range(low: int, high: int) -> str:
    return f"{low} token{'s' if low > 1 else ''}" if low == high else f"{low} to {high} tokens"
