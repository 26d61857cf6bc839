"""Sentiment of prompt plus completion, from any text-classification model."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from trl_recipes.errors import RecipeError
from trl_recipes.rewards.scorer import (
    batches_by_length,
    can_pad,
    load_classifier,
    local_device,
    longest_input,
)
from trl_recipes.rewards.text import full_texts

_SOURCE = "--reward_model"


class SentimentReward:
    """How much a text-classification model sees one label in prompt plus completion.

    The numbers are those of the transformers pipeline with `top_k=None` (and
    `function_to_apply="none"` for the logit), but all texts go through the model in batches sorted
    by length, without the pipeline's own work for each text.

    Args:
        model: None for the embedded classifier; a folder or hub name; or a ready transformers
            text-classification pipeline.
        label: the label whose score counts, by name (upper or lower case).
        score: "logit" is the model's raw output for the label; "probability" is in 0 to 1;
            "log_odds" is log(p / (1 - p)), in nats.
        batch_size: texts in one forward pass.
        device: where the model runs; the GPU of this process, if there is one, when None.
        name: the name in logs; `sentiment_<label>` when None.
        trust_remote_code: whether code that the model brings along may run.

    Raises:
        RecipeError: no such model, no classifier, no such label, or a wrong option.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        label: str = "POSITIVE",
        score: Literal["logit", "probability", "log_odds"] = "logit",
        batch_size: int = 64,
        device: str | torch.device | None = None,
        name: str | None = None,
        trust_remote_code: bool = False,
    ):
        if score not in ("logit", "probability", "log_odds"):
            raise RecipeError(
                f"SentimentReward: unknown score {score!r}. Choose logit, probability or log_odds."
            )
        if batch_size < 1:
            raise RecipeError(f"SentimentReward: batch_size is {batch_size}. Use 1 or more.")
        if hasattr(model, "model") and hasattr(model, "tokenizer"):  # a ready pipeline
            self.model, self.tokenizer = model.model, model.tokenizer
            self.device = torch.device(device) if device is not None else model.device
        else:
            self.model, self.tokenizer = load_classifier(
                _name_of(model), _SOURCE, trust_remote_code=trust_remote_code
            )
            self.device = torch.device(device) if device is not None else local_device()
        self.model.to(self.device).eval()
        self.label_id = _label_id(self.model.config.id2label, label, self.model.name_or_path)
        self.label = self.model.config.id2label[self.label_id]
        if score != "logit" and self.model.config.problem_type == "regression":
            raise RecipeError(
                f"SentimentReward: `{self.model.name_or_path}` is a regression model, whose output "
                f'has no {score}. Use score="logit".'
            )
        self.score = score
        # Without a padding token a model cannot tell where a shorter text of a batch ends.
        self.batch_size = batch_size if can_pad(self.model, self.tokenizer) else 1
        self.max_length = longest_input(self.model, self.tokenizer)
        self.__name__ = name or f"sentiment_{self.label.lower()}"

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **kwargs: Any
    ) -> list[float]:
        """Score each prompt plus completion.

        Args:
            prompts: B texts or conversations.
            completions: B texts or conversations.
            **kwargs: what else a trainer passes; not used.

        Returns:
            B scores.
        """
        return self.score_texts(full_texts(prompts, completions))

    @torch.inference_mode()
    def score_texts(self, texts: Sequence[str]) -> list[float]:
        """Score whole texts.

        Args:
            texts: B texts; what exceeds the model's maximum is cut off at the end.

        Returns:
            B scores, in the same order.
        """
        scores = [0.0] * len(texts)
        for batch in batches_by_length(texts, self.batch_size):
            inputs = self.tokenizer(
                [texts[index] for index in batch],
                padding=len(batch) > 1,
                padding_side="right",  # absolute positions must start at the first token
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            ).to(self.device)
            values = self._scores(self.model(**inputs).logits.float()).tolist()
            for index, value in zip(batch, values, strict=True):
                scores[index] = value
        return scores

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores, shape (B,), from logits, shape (B, labels)."""
        logit = logits[:, self.label_id]
        if self.score == "logit":
            return logit
        # The pipeline's rule: independent labels go through a sigmoid, competing ones a softmax.
        several = self.model.config.problem_type == "multi_label_classification"
        if several or logits.shape[1] == 1:
            return logit.sigmoid() if self.score == "probability" else logit
        if self.score == "probability":
            return logits.softmax(dim=1)[:, self.label_id]
        others = [index for index in range(logits.shape[1]) if index != self.label_id]
        return logit - logits[:, others].logsumexp(dim=1)


def _name_of(model: str | None) -> str:
    if model is not None:
        return model
    from trl_recipes.embedded import sentiment_classifier

    return str(sentiment_classifier())


def _label_id(id2label: dict[int, str], label: str, name: str) -> int:
    by_name = {text: index for index, text in id2label.items()}
    by_lower_name = {text.lower(): index for text, index in by_name.items()}
    index = by_name.get(label, by_lower_name.get(str(label).lower()))
    if index is None:
        labels = ", ".join(id2label[key] for key in sorted(id2label))
        raise RecipeError(
            f"{_SOURCE}: the classifier `{name}` has no label {label!r}. Its labels are: {labels}."
        )
    return index
