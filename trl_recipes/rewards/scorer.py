"""What rewards with a model behind them share: loading, device, batches of like lengths."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from trl_recipes.errors import RecipeError
from trl_recipes.models import loading as hub
from trl_recipes.models.padding import pad_rows


def load_classifier(name: str, source: str, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load a model with a sequence-classification head, in float32, and its tokenizer.

    Args:
        name: a folder or hub name.
        source: where the name came from, for messages.
        trust_remote_code: run the code that comes with the model.

    Returns:
        Model and tokenizer.

    Raises:
        RecipeError: there is no such model, it has no such head, or the head's weights are missing.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    path = hub.resolve(name, "model", source=source)
    trusted = {"trust_remote_code": trust_remote_code}
    with hub.loading(path, "model", source=source):
        config = AutoConfig.from_pretrained(path, **trusted)
        architecture = (config.architectures or ["none given"])[0]
        # transformers would put a fresh random head on a language model and only warn.
        if not architecture.endswith("ForSequenceClassification"):
            raise RecipeError(
                f"{source}: `{name}` is no text classifier (its architecture is {architecture}). "
                "Give a model with a sequence-classification head, for instance one made by "
                "recipes/train_classifier.py."
            )
        tokenizer = AutoTokenizer.from_pretrained(path, **trusted)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **trusted
        )
    if info["missing_keys"]:
        raise RecipeError(
            f"{source}: `{name}` lacks weights of its classifier "
            f"({', '.join(sorted(info['missing_keys'])[:3])}). Save the whole model again."
        )
    return model, tokenizer


def load_language_model(
    model: Any, tokenizer: Any, source: str, *, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Give a causal language model and its tokenizer, loaded where they are not ready yet.

    Args:
        model: None for the embedded one; a folder or hub name; or a ready model.
        tokenizer: of a ready model; None loads it by the model's name.
        source: where the name came from, for messages.
        trust_remote_code: run the code that comes with the model.

    Returns:
        Model and tokenizer.

    Raises:
        RecipeError: there is no such model, or it is an encoder-decoder.
    """
    from trl_recipes.models.generation import load_run, load_tokenizer

    if model is None or isinstance(model, str) or hasattr(model, "__fspath__"):
        if model is None:
            from trl_recipes.embedded import language_model

            model = language_model()
        path = hub.resolve(str(model), "model", source=source)
        model, tokenizer = load_run(path, trust_remote_code=trust_remote_code)
        model.to(local_device())
    elif tokenizer is None:
        tokenizer = load_tokenizer(model.name_or_path)
    if model.config.is_encoder_decoder:
        raise RecipeError(
            f"{source}: `{model.name_or_path}` is an encoder-decoder. Give a causal language model."
        )
    return model, tokenizer


def local_device() -> torch.device:
    """Give the device of this process: its GPU, if there is one."""
    from accelerate import PartialState

    return PartialState().device


def batches_by_length(texts: Sequence[Any], batch_size: int) -> Iterator[list[int]]:
    """Cut texts or token lists into batches of like lengths, so that little is padded.

    Args:
        texts: anything with a length.
        batch_size: most entries of a batch.

    Yields:
        Indices into `texts`; each index once.
    """
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def encode_pairs(
    tokenizer: Any, firsts: Sequence[str], seconds: Sequence[str], max_length: int | None
) -> dict[str, torch.Tensor]:
    """Tokenize pairs of texts, each with its special tokens and an end token where there is one.

    Args:
        tokenizer: of a model that reads pairs.
        firsts: B texts.
        seconds: B texts.
        max_length: most tokens of a pair; each text is cut to half of it.

    Returns:
        `input_ids` and `attention_mask`, (B, longest), padded at the right.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    room = None if max_length is None else max_length // 2 - len(end)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        # split_special_tokens: an end token that a model spelt out is no end of a text
        rows = tokenizer(list(texts), split_special_tokens=True, verbose=False)["input_ids"]
        return [(row[:-1] if row[-1:] == end else row)[:room] + end for row in rows]

    rows = [torch.tensor(a + b) for a, b in zip(encode(firsts), encode(seconds), strict=True)]
    ids, mask = pad_rows(rows, tokenizer.pad_token_id, "right")
    return {"input_ids": ids, "attention_mask": mask}


def can_pad(model: Any, tokenizer: Any) -> bool:
    """Whether a classifier knows where a padded text ends.

    Args:
        model: with a classification head.
        tokenizer: its own.
    """
    pad_token_id = tokenizer.pad_token_id
    return pad_token_id is not None and pad_token_id == model.config.pad_token_id


def longest_input(model: Any, tokenizer: Any) -> int | None:
    """Give the most tokens that a model takes, or None where it does not say.

    Args:
        model: any transformers model.
        tokenizer: its own.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    embeddings = getattr(model.base_model, "embeddings", None)
    padding_idx = getattr(embeddings, "padding_idx", None)
    if positions is not None and padding_idx is not None:
        positions -= padding_idx + 1  # RoBERTa and its kin count positions from there
    limits = [tokenizer.model_max_length, positions]
    known = [int(limit) for limit in limits if limit is not None and limit < 1e9]
    return min(known, default=None)
