"""What a number among the settings may be, the same in every recipe."""

from collections.abc import Iterable
from typing import Any

from trl_recipes.errors import RecipeError

INFINITY = float("inf")
# Smallest and largest value of a flag, by its name; a flag that is left out or None is not held.
RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (0, INFINITY),
    "weight_decay": (0, INFINITY),
    "adam_beta1": (0, 0.99999999),
    "adam_beta2": (0, 0.99999999),
    "max_grad_norm": (0, INFINITY),
    "seed": (0, 2**32 - 1),
    "per_device_train_batch_size": (1, INFINITY),
    "eval_prompts": (1, INFINITY),
    "max_prompts": (1, INFINITY),
    "min_prompt_length": (0, INFINITY),
    "max_prompt_length": (1, INFINITY),
    "prompt_length": (1, INFINITY),
    "baseline_steps": (1, INFINITY),
    "baseline_batch_size": (1, INFINITY),
    "baseline_learning_rate": (0, INFINITY),
    "total_episodes": (1, INFINITY),
    "log_samples": (0, INFINITY),
    "init_kl_coef": (0, INFINITY),
    "vf_coef": (0, INFINITY),
    "cliprange": (0, INFINITY),
    "cliprange_value": (0, INFINITY),
    "gamma": (0, 1),
    "lam": (0, 1),
    "beta": (0, INFINITY),
    "epsilon": (0, INFINITY),
    "epsilon_high": (0, INFINITY),
    "lora_r": (1, INFINITY),
    "n_layer": (1, INFINITY),
    "n_head": (1, INFINITY),
    "n_embd": (1, INFINITY),
    "num_layers": (1, INFINITY),
    "num_heads": (1, INFINITY),
    "hidden_size": (1, INFINITY),
    "context_length": (2, INFINITY),
    "vocab_size": (257, INFINITY),  # 256 bytes and a special token
    "dropout": (0, 0.99999999),
    "fragments_per_text": (0, INFINITY),
    "pairs_per_text": (1, INFINITY),
    "reward_epochs": (0, INFINITY),
    "reward_batch_size": (1, INFINITY),
    "reward_learning_rate": (0, INFINITY),
    "reward_context_length": (2, INFINITY),
}


def check_range(name: str, value: Any, where: str = "") -> None:
    """Hold one setting to `RANGES`.

    Args:
        name: of the flag.
        value: what it was given; what is no number is left to its own check.
        where: where it was given, for the message.

    Raises:
        RecipeError: the value lies outside, is not finite or not a number.
    """
    low, high = RANGES.get(name, (-INFINITY, INFINITY))
    if name not in RANGES or not isinstance(value, int | float):
        return
    if not low <= value <= high or value == INFINITY:
        allowed = f"{low} or more" if high == INFINITY else f"from {low:g} to {high:g}"
        raise RecipeError(f"{where}`{name}` is {value}. It must be {allowed}.")


def divide_exactly(total: int, part: int | None, total_name: str, part_name: str) -> int:
    """Divide one size by another, or say which numbers would do.

    Args:
        total: such as a batch.
        part: such as a minibatch; None stands for 1.
        total_name: of its flag.
        part_name: of its flag, or how it is worked out from several.

    Raises:
        RecipeError: `total` is not a multiple of `part`.

    >>> divide_exactly(128, 32, "batch_size", "mini_batch_size")
    4
    >>> divide_exactly(10, 4, "batch_size", "mini_batch_size")
    Traceback (most recent call last):
    ...
    trl_recipes.errors.RecipeError: `batch_size` (10) must be a multiple of `mini_batch_size`...
    """
    part = part or 1
    if total % part == 0:
        return total // part
    below, above = total // part * part, (total // part + 1) * part
    fitting = " or ".join(str(n) for n in (below, above) if n)
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    raise RecipeError(
        f"`{total_name}` ({total}) must be a multiple of `{part_name}` ({part}). Set {total_name} "
        f"to {fitting}, or {part_name} to a divisor of {total}: {', '.join(map(str, divisors))}."
    )


def check_trackers(report_to: str | Iterable[str] | None) -> None:
    """Refuse a tracker that is not there, before anything is trained.

    Args:
        report_to: names of trackers, as transformers takes them.

    Raises:
        RecipeError: says which are.
    """
    from transformers.integrations import get_available_reporting_integrations

    installed = get_available_reporting_integrations()
    for tracker in [report_to] if isinstance(report_to, str) else report_to or []:
        if tracker not in ("none", "all", *installed):
            raise RecipeError(
                f"`report_to`: the tracker '{tracker}' is unknown or not installed. Installed: "
                f"{', '.join(installed) or 'none'}. Install its package, or leave it out."
            )
