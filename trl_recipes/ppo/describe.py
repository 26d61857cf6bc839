"""What a run is about to do, in words."""

import statistics

from torch import nn

from trl_recipes.describe import duration, peak_memory, printable
from trl_recipes.models.memory import Memory
from trl_recipes.ppo.config import PPOConfig


def describe_run(
    config: PPOConfig,
    model: nn.Module,
    reward_names: list[str],
    prompt_lengths: list[int],
    device: str,
) -> str:
    """Say in one paragraph what is trained, on what, for how long, with the batch arithmetic.

    Args:
        config: after the trainer was built.
        model: the trained module, value head included.
        reward_names: of the reward functions.
        prompt_lengths: tokens of each prompt.
        device: where it runs.
    """
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    part = "all of them" if trained == total else f"{_count(trained)} of them"
    processes = config.world_size or 1
    samples = config.batch_size * processes
    step = config.backward_batch_size * processes
    shortest = config.min_response_length or config.response_length
    passes = (
        ""
        if config.gradient_accumulation_steps == 1
        else f" ({config.gradient_accumulation_steps} passes of {config.mini_batch_size})"
    )
    adaptive = f", adapted towards {config.target:g} nats" if config.adap_kl_ctrl else ", fixed"
    precision = "bfloat16 autocast" if config.bf16 else "float32"
    return (
        f"PPO on {type(getattr(model, 'policy', model)).__name__} with {_count(total)} parameters, "
        f"training {part}, rewarded by {', '.join(reward_names)}. "
        f"{_range(min(prompt_lengths), max(prompt_lengths), 'token')} of {len(prompt_lengths)} "
        f"prompts are continued by {_range(shortest, config.response_length, 'token')}. "
        f"{config.num_total_batches} steps, each of {samples} responses gone over "
        f"{_times(config.ppo_epochs)} in optimizer steps of {step}{passes}: "
        f"{config.num_total_batches * samples} responses and "
        f"{config.num_total_batches * config.ppo_epochs * config.num_mini_batches} optimizer "
        f"steps in all. KL coefficient {config.init_kl_coef:g}{adaptive}; learning rate "
        f"{config.learning_rate:g}; {precision} on {device}, "
        f"{processes} process{'es' if processes > 1 else ''}, seed {config.seed}."
    )


def describe_check(seconds: list[float], steps: int, batch: dict[str, list], kept: Memory) -> str:
    """Say what a check found, and what the whole run will take.

    Args:
        seconds: of each step that was tried; the first one also checks and warms up.
        steps: of the whole run.
        batch: of the last step, with its responses and scores.
        kept: what training keeps all the time.
    """
    total = seconds[0] + (steps - 1) * statistics.median(seconds[1:])
    query, response = (printable(batch[name][0]) for name in ("query", "response"))
    return (
        f"Checked with {len(seconds)} steps, nothing written: the reward functions, ratio 1 before "
        "the first update, the KL to the reference, and that gradients are finite.\n"
        f"A sample: {query!r} was continued by {response!r}, score {batch['score'][0]:.2f}.\n"
        f"The whole training will take about {duration(total)} ({steps} steps of "
        f"{statistics.median(seconds[1:]):.2g} s) and {peak_memory():.1f} GB of memory; "
        f"of it weights {kept.weights / 1e9:.2g}, gradients {kept.gradients / 1e9:.2g}, optimizer "
        f"{kept.moments / 1e9:.2g}, reference {kept.reference / 1e9:.2g} GB."
    )


def _count(number: int) -> str:
    if number < 1_000_000:
        return f"{number / 1000:.0f} thousand"
    return f"{number / 1e6:.1f} million"


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def _range(low: int, high: int, unit: str) -> str:
    plural = "s" if high > 1 else ""
    return f"{low} {unit}{plural}" if low == high else f"{low} to {high} {unit}{plural}"
