"""What reward functions are given in PPO."""

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from trl_recipes.rewards.text import is_conversation

# What the trainer itself puts into a batch or reads from it.
_NO_COLUMNS = ("input_ids", "query", "prompt", "response", "score", "attention_mask")
_MADE_UP = (" was a joy to watch.", " made no sense at all.")


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
