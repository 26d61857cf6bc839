"""Prompts and completions as plain text, where they may be conversations.

A conversation is a list of messages `{"role": ..., "content": ...}`, as in TRL; its content is a
text or a list of parts of which those of the type "text" count.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
Text = str | list[Message]

# What the trainer itself puts into a batch or reads from it, and what TRL keeps back.
_NO_COLUMNS = {"input_ids", "query", "prompt", "response", "score", "attention_mask"}
_NO_COLUMNS |= {"completion", "completion_ids"}
_MADE_UP = (" was a joy to watch.", " made no sense at all.")


def is_conversation(value: Any) -> bool:
    """Tell whether a prompt or completion is a list of messages rather than a text.

    >>> is_conversation([{"role": "user", "content": "Hello"}]), is_conversation("Hello")
    (True, False)
    """
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def plain_text(value: str | Sequence[Message]) -> str:
    """Return the text of a prompt or completion: itself, or its messages' contents, one a line."""
    if isinstance(value, str):
        return value
    return "\n".join(_content(message.get("content")) for message in value)


def completion_texts(completions: Sequence[Text]) -> list[str]:
    """Return the text of each completion."""
    return [plain_text(completion) for completion in completions]


def full_texts(prompts: Sequence[Text], completions: Sequence[Text]) -> list[str]:
    """Join each prompt and its completion: as they are, or message after message."""
    return [
        plain_text(prompt) + "\n" * (not isinstance(completion, str)) + plain_text(completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


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


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if part.get("type") == "text")
    return content or ""
