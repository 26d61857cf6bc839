"""Conversations as prompts, in TRL's format: through the tokenizer's chat template, never cut.

A conversation is a list of messages `{"role": ..., "content": ...}` that the model is to answer.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from trl_recipes.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
Text = str | list[Message]


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


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if part.get("type") == "text")
    return content or ""


def are_conversations(values: Iterable[Any]) -> bool:
    """Whether a column holds conversations; its first value that is not None tells."""
    return is_conversation(next((value for value in values if value is not None), None))


def encode_conversations(
    values: Sequence[Any], order: Iterable[int], tokenizer: "PreTrainedTokenizerBase", where: str
) -> Iterator[tuple[int, list[int], str]]:
    """Encode conversations as TRL's GRPOTrainer does, up to where the assistant's answer begins.

    Gives the row number, token ids, and the conversation as text to look at, of the rows in
    `order`; both are empty where there is no text. `where` names the column in messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise RecipeError(
            f"{where} holds conversations, but the tokenizer `{tokenizer.name_or_path}` has no "
            "chat template to turn them into text. Use a chat model, whose tokenizer has one; save "
            "the tokenizer with a `chat_template` into the model's folder; or give texts."
        )
    for row in order:
        messages = values[row]
        _check_messages(messages, row, where)
        if not messages or not plain_text(messages).strip():
            yield row, [], ""
            continue
        try:
            ids = tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=True,
                return_dict=False,
                tokenizer_kwargs={"verbose": False},  # too long a one is told of elsewhere
            )
        except Exception as error:  # a template is a program of its own and may raise anything
            raise RecipeError(
                f"{where}, row {row + 1}: the chat template refuses it ({type(error).__name__}: "
                f"{error}). Fix the row, or use a model with another chat template."
            ) from error
        yield row, ids, shown(messages)


def shown(messages: Sequence[Message]) -> str:
    """Write a conversation that the assistant is to answer as text to look at."""
    lines = [f"{message['role']}: {plain_text([message])}\n" for message in messages]
    return "".join(lines) + "assistant: "


def _check_messages(messages: Any, row: int, where: str) -> None:
    """Every message has a role, and a content that is text, parts or nothing."""
    place = f"{where}, row {row + 1}:"
    form = 'Give a list of messages such as {"role": "user", "content": "Hello."}.'
    if messages is not None and not is_conversation(messages):
        raise RecipeError(
            f"{place} {str(messages)[:60]!r} ({type(messages).__name__}) is no conversation. {form}"
        )
    for number, message in enumerate(messages or [], 1):
        if not isinstance(message.get("role"), str):
            raise RecipeError(f"{place} message {number} has no role ({message}). {form}")
        content = message.get("content")
        if not (content is None or isinstance(content, str) or is_conversation(content)):
            raise RecipeError(
                f"{place} message {number} has the content {content!r} "
                f"({type(content).__name__}), which is no text. {form}"
            )
