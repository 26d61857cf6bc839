"""What reward functions are given in PPO, and which they are."""

from collections.abc import Callable, Mapping

from transformers import PreTrainedTokenizerBase

from trl_recipes.ppo.config import PPOConfig
from trl_recipes.rewards import Rewards, load_reward_funcs
from trl_recipes.rewards.text import is_conversation

# What the trainer itself puts into a batch or reads from it.
_NO_COLUMNS = ("input_ids", "query", "prompt", "response", "score", "attention_mask")
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


def reward_inputs(
    batch: Mapping[str, list], tokenizer: PreTrainedTokenizerBase
) -> tuple[list, list, dict[str, list]]:
    """Give prompts, completions and columns as TRL's GRPOTrainer gives them.

    Args:
        batch: rows of the data set as lists, with the texts of the responses under `response`.
        tokenizer: decodes prompts where there is no column `query`.

    Returns:
        Texts and texts; or, where the column `prompt` holds conversations, these and an
        assistant's message each. And the data set's further columns.
    """
    columns = {name: values for name, values in batch.items() if name not in _NO_COLUMNS}
    if is_conversation((batch.get("prompt") or [None])[0]):
        answers = [[{"role": "assistant", "content": text}] for text in batch["response"]]
        return batch["prompt"], answers, columns
    prompts = batch.get("query") or tokenizer.batch_decode(
        batch["input_ids"], skip_special_tokens=True
    )
    return prompts, batch["response"], columns


def made_up_batch(rows: Mapping[str, list]) -> dict[str, list]:
    """Give the first two rows of a data set with responses, to try the reward functions on.

    Args:
        rows: two rows of the data set, or one, as lists.
    """
    return {**rows, "response": list(_MADE_UP[: len(rows["input_ids"])])}
