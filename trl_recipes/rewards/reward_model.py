"""The score of a reward model: sequence classification with one label."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from trl_recipes.errors import RecipeError
from trl_recipes.rewards.scorer import (
    batches_by_length,
    encode_pairs,
    load_classifier,
    local_device,
    longest_input,
)
from trl_recipes.rewards.sentiment import SentimentReward
from trl_recipes.rewards.text import completion_texts, full_texts, is_conversation

_SOURCE = "RewardModelReward"


class RewardModelReward:
    """What a scalar reward model says of prompt plus completion.

    The model has a tokenizer of its own; it need not be the policy's. Texts are joined and get the
    special tokens that this tokenizer gives every text (TRL's GRPOTrainer leaves them out, which
    matters for BERT and its kin); conversations go through its chat template. A model whose
    config.json says `reads_pairs` gets prompt and completion as a pair of texts.

    Args:
        model: a folder or hub name, or a ready model with a sequence-classification head.
        tokenizer: of a ready model; loaded by the model's name when None.
        batch_size: texts in one forward pass.
        device: where the model runs; None: the GPU of this process, if there is one, or where a
            ready model is.
        name: the name in logs; the last part of the model's name when None.
        trust_remote_code: run the code that comes with the model.

    Raises:
        RecipeError: no such model, no classifier, more than one label, or no token to pad with.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        name: str | None = None,
        trust_remote_code: bool = False,
    ):
        if isinstance(model, str) or hasattr(model, "__fspath__"):
            model, tokenizer = load_classifier(
                str(model), _SOURCE, trust_remote_code=trust_remote_code
            )
            device = device or local_device()
        elif tokenizer is None:
            from trl_recipes.models.generation import load_tokenizer

            tokenizer = load_tokenizer(model.name_or_path)
        if model.config.num_labels != 1:
            labels = ", ".join(model.config.id2label[i] for i in sorted(model.config.id2label))
            raise RecipeError(
                f"{_SOURCE}: `{model.name_or_path}` has {model.config.num_labels} labels "
                f"({labels}), a reward model has one. For a classifier use SentimentReward(model, "
                "label=...)."
            )
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token_id is None:
                raise RecipeError(
                    f"{_SOURCE}: the tokenizer of `{model.name_or_path}` has neither a pad nor an "
                    "eos token. Set `pad_token` in it, and save it again."
                )
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id  # the score is that of the last other
        self.model = model.eval() if device is None else model.to(device).eval()
        self.tokenizer = tokenizer
        self.reads_pairs = bool(getattr(model.config, "reads_pairs", False))
        self.batch_size = batch_size
        self.max_length = longest_input(model, tokenizer)
        self.__name__ = name or str(model.name_or_path).rstrip("/").split("/")[-1] or "reward_model"

    @torch.inference_mode()
    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **kwargs: Any
    ) -> list[float]:
        """Score each prompt plus completion.

        Args:
            prompts: B texts or conversations.
            completions: B texts or conversations.
            **kwargs: what else a trainer passes; not used.

        Returns:
            B scores: the model's one logit, raw.
        """
        conversations = bool(prompts) and is_conversation(prompts[0]) and not self.reads_pairs
        texts = (
            self._rendered(prompts, completions)
            if conversations
            else full_texts(prompts, completions)
        )
        firsts, seconds = completion_texts(prompts), completion_texts(completions)
        scores = [0.0] * len(texts)
        for batch in batches_by_length(texts, self.batch_size):
            if self.reads_pairs:
                pairs = [[part[index] for index in batch] for part in (firsts, seconds)]
                inputs = encode_pairs(self.tokenizer, *pairs, self.max_length)
            else:
                inputs = self.tokenizer(
                    [texts[index] for index in batch],
                    padding=True,
                    padding_side="right",  # absolute positions must start at the first token
                    truncation=True,
                    max_length=self.max_length,
                    add_special_tokens=not conversations,  # a chat template brings its own
                    return_tensors="pt",
                )
            inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
            values = self.model(**inputs).logits[:, 0].float().tolist()
            for index, value in zip(batch, values, strict=True):
                scores[index] = value
        return scores

    def _rendered(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[str]:
        """Conversations as texts, by the reward model's own chat template."""
        if self.tokenizer.chat_template is None:
            raise RecipeError(
                f"`{self.__name__}`: the data are conversations, and the reward model's tokenizer "
                "has no chat template. Give one that has, or prompts of plain text."
            )
        return [
            self.tokenizer.apply_chat_template(prompt + completion, tokenize=False)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]


def reward_of_model(model: Any, source: str) -> RewardModelReward | SentimentReward:
    """Turn a model with a classification head into a reward function.

    Args:
        model: its name or folder, or the ready model.
        source: where it came from, for messages.

    Returns:
        The score of a model with one label; of one with several, the logit of POSITIVE.

    Raises:
        RecipeError: no such model, no classifier, or several labels and none of them POSITIVE.
    """
    from transformers import AutoTokenizer

    if isinstance(model, str):
        model, tokenizer = load_classifier(model, source)
        model.to(local_device())
    else:
        tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    if model.config.num_labels == 1:
        return RewardModelReward(model, tokenizer)
    return SentimentReward(SimpleNamespace(model=model, tokenizer=tokenizer, device=model.device))
