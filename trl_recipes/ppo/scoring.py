"""Which reward functions PPO calls, and a batch to try them on."""

from collections.abc import Callable, Mapping

from trl_recipes.ppo.config import PPOConfig
from trl_recipes.rewards import Rewards, load_reward_funcs

_MADE_UP = (" was a joy to watch.", " made no sense at all.")


def rewards_of(
    config: PPOConfig,
    reward_funcs: Callable | list[Callable] | None,
    reward_weights: list[float] | None,
    metrics: Callable | list[Callable] | None,
) -> Rewards | None:
    """Collect reward functions and metrics; those that the configuration names go first.

    Args:
        config: its `reward_funcs` stand in place of those passed, its `reward_weights` likewise,
            its `metrics` beside them.
        reward_funcs: one reward function or several.
        reward_weights: weight of each.
        metrics: one function or several that are only logged.

    Returns:
        None where there is no reward function.

    Raises:
        RecipeError: as `Rewards` and `load_reward_funcs`.
    """
    if config.reward_funcs:
        reward_funcs, reward_weights = load_reward_funcs(config.reward_funcs), None
    if reward_funcs is None:
        return None
    if config.reward_weights is not None:
        reward_weights = config.reward_weights
    own = [] if metrics is None else metrics if isinstance(metrics, list | tuple) else [metrics]
    named = load_reward_funcs(config.metrics or [], source="--metrics")
    return Rewards(reward_funcs, reward_weights, [*own, *named])


def made_up_batch(rows: Mapping[str, list]) -> dict[str, list]:
    """Give the first two rows of a data set with responses, to try the reward functions on.

    Args:
        rows: two rows of the data set, or one, as lists.
    """
    return {**rows, "response": list(_MADE_UP[: len(rows["input_ids"])])}
