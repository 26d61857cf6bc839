"""What reward functions are called with, from a batch: prompts, completions and columns."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trl_recipes.data.conversations import is_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What the trainer itself puts into a batch or reads from it, and what TRL keeps back.
_NO_COLUMNS = {"input_ids", "query", "prompt", "response", "score", "attention_mask"}
_NO_COLUMNS |= {"completion", "completion_ids"}
_MADE_UP = (" was a joy to watch.", " made no sense at all.")


def reward_inputs(
    batch: Mapping[str, list], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list, list, dict[str, list]]:
    """Take prompts, completions and further columns from a batch, as TRL's GRPOTrainer does.

    The batch holds the responses' texts under `response`. Where its column `prompt` holds
    conversations, each completion is one assistant's message; prompts without a column `query` are
    decoded from `input_ids`.
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
    """Add made-up responses to one or two rows of a data set, to try reward functions on."""
    return {**rows, "response": list(_MADE_UP[: len(rows["input_ids"])])}
