"""Conversations as prompts, in TRL's format: through the tokenizer's chat template, never cut.

A conversation is a list of messages `{"role": ..., "content": ...}` that the model is to answer.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_recipes.errors import RecipeError

Message = dict[str, Any]
Text = str | list[Message]
Texts = Sequence[Text]  # prompts or completions


def is_conversation(value: Any) -> bool:
    """Tell whether a prompt or completion is a list of messages rather than a text."""
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def plain_text(value: str | Sequence[Message]) -> str:
    """Return the text of a prompt or completion: itself, or its messages' contents, one a line."""
    if isinstance(value, str):
        return value
    return "\n".join(_content(message.get("content")) for message in value)


def completion_texts(completions: Texts) -> list[str]:
    """Return the text of each completion."""
    return [plain_text(completion) for completion in completions]


def answers(texts: Sequence[str], prompts: Texts) -> list[Text]:
    """Give each text the form of its prompt: a text, or a conversation of one message."""
    return [
        [{"role": "assistant", "content": text}] if is_conversation(prompt) else text
        for text, prompt in zip(texts, prompts, strict=True)
    ]


def full_texts(prompts: Texts, completions: Texts) -> list[str]:
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
    """Tell whether a column holds conversations, by its first value that is not None."""
    return is_conversation(next((value for value in values if value is not None), None))


def check_chat_template(tokenizer: PreTrainedTokenizerBase, why: str) -> None:
    """Refuse a tokenizer without a chat template; `why` says what needs one."""
    if not getattr(tokenizer, "chat_template", None):
        raise RecipeError(
            f"{why}, but the tokenizer `{tokenizer.name_or_path}` has no chat template to write it "
            "with. Use a chat model, or give texts."
        )


def encode_conversations(
    values: Sequence[Any], order: Iterable[int], tokenizer: PreTrainedTokenizerBase, where: str
) -> Iterator[tuple[int, list[int], str]]:
    """Encode conversations as TRL's GRPOTrainer does, up to where the assistant's answer begins.

    Gives row number, token ids and text to look at of the rows in `order`; both empty where there
    is no text. `where` names the column in messages.
    """
    check_chat_template(tokenizer, f"{where} holds conversations")
    for row in order:
        messages = values[row]
        known = messages is None or is_conversation(messages)
        if not known or not all("role" in message for message in messages or []):
            raise RecipeError(
                f"{where}, row {row + 1} holds {messages!r:.80}, which is no conversation. Give a "
                'list of messages such as {"role": "user", "content": "Hello."}.'
            )
        if not messages or not plain_text(messages).strip():
            yield row, [], ""
            continue
        try:
            ids = tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=True,
                return_dict=False,
                tokenizer_kwargs={"verbose": False},  # load_prompts counts those that are too long
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
