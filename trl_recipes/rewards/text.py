"""What reward functions are called with, from a batch: prompts, completions and columns."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trl_recipes.data.conversations import is_conversation
from trl_recipes.data.prompts import PROMPT, own_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MADE_UP = (" was a joy to watch.", " made no sense at all.")


def reward_inputs(
    batch: Mapping[str, list], completions: list[str], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list, list, dict[str, list]]:
    """Take prompts, completions and further columns from a batch, as TRL's GRPOTrainer does.

    Where its column `prompt` holds conversations, each completion is one assistant's message;
    prompts without a column `query` are decoded from `input_ids`.
    """
    columns = own_names({n: values for n, values in batch.items() if n not in PROMPT})
    if is_conversation((batch.get("prompt") or [None])[0]):
        answers = [[{"role": "assistant", "content": text}] for text in completions]
        return batch["prompt"], answers, columns
    prompts = batch.get("query") or tokenizer.batch_decode(
        batch["input_ids"], skip_special_tokens=True
    )
    return prompts, completions, columns


def made_up_completions(count: int) -> list[str]:
    """Make one or two completions up, to try reward functions on."""
    return list(_MADE_UP[:count])
