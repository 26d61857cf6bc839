"""Prompts and completions as plain text, where they may be conversations.

A conversation is a list of messages `{"role": ..., "content": ...}`, as in TRL; its content is a
text or a list of parts of which those of the type "text" count.
"""

from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]


def is_conversation(value: Any) -> bool:
    """Whether a prompt or completion is a list of messages rather than a text.

    Args:
        value: a prompt or a completion.

    >>> is_conversation([{"role": "user", "content": "Hello"}]), is_conversation("Hello")
    (True, False)
    """
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def plain_text(value: str | Sequence[Message]) -> str:
    """Give the text of a prompt or completion: itself, or its messages' contents, one a line.

    Args:
        value: a text or a conversation.
    """
    if isinstance(value, str):
        return value
    return "\n".join(_content(message.get("content")) for message in value)


def completion_texts(completions: Sequence[str | Sequence[Message]]) -> list[str]:
    """Give the text of each completion, B of them.

    Args:
        completions: B texts, or lists of messages.
    """
    return [plain_text(completion) for completion in completions]


def full_texts(
    prompts: Sequence[str | Sequence[Message]], completions: Sequence[str | Sequence[Message]]
) -> list[str]:
    """Give prompt plus completion of each sample: joined as they are, or message after message.

    Args:
        prompts: B texts or conversations.
        completions: B texts or conversations.
    """
    return [
        plain_text(prompt) + "\n" * (not isinstance(completion, str)) + plain_text(completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if part.get("type") == "text")
    return content or ""
