"""Rewards with a model behind them: sentiment, a reward model's score, perplexity."""

import os
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch.nn import functional as F

from trl_recipes import embedded
from trl_recipes.data.conversations import Texts, completion_texts, full_texts, is_conversation
from trl_recipes.errors import RecipeError
from trl_recipes.models.forward import context_length, evaluating, pad_rows
from trl_recipes.models.loading import load_classifier, load_run, load_tokenizer, set_pad_token


class SentimentReward:
    """How much a text-classification model sees one label in prompt plus completion.

    The numbers are those of the transformers pipeline with `top_k=None`. `model` is None for the
    embedded classifier, a folder or hub name, or a ready pipeline. `score` is the label's raw
    "logit", its "probability" (0 to 1) or its "log_odds", log(p / (1 - p)), in nats.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        label: str = "POSITIVE",
        score: Literal["logit", "probability", "log_odds"] = "logit",
        batch_size: int = 64,
        name: str | None = None,
        trust_remote_code: bool = False,
    ):
        if score not in ("logit", "probability", "log_odds"):
            raise RecipeError(
                f"SentimentReward: unknown score {score!r}. Choose logit, probability or log_odds."
            )
        if hasattr(model, "model") and hasattr(model, "tokenizer"):  # a ready pipeline
            self.model, self.tokenizer = model.model.eval(), model.tokenizer
        else:
            model = str(model or embedded.sentiment_classifier())
            options = {"source": "--reward_model", "trust_remote_code": trust_remote_code}
            self.model, self.tokenizer = with_tokenizer(model, None, load_classifier, **options)
            self.model.eval()
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

    def __call__(self, prompts: Texts, completions: Texts, **kwargs: Any) -> list[float | None]:
        """Score each prompt plus completion, cut to the model's maximum; None without tokens."""
        texts = full_texts(prompts, completions)
        return scores_by(self, texts, self._scores)

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Turn logits, (B, labels), into scores, (B,)."""
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


class RewardModelReward:
    """What a scalar reward model says of prompt plus completion.

    Texts get the special tokens that the model's own tokenizer gives every text (TRL's GRPOTrainer
    leaves them out, which matters for BERT and its kin); conversations go through its chat
    template. A model whose config.json says `reads_pairs` gets a pair of texts. `model` is a folder
    or hub name, or a ready model with a sequence-classification head.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        batch_size: int = 32,
        name: str | None = None,
        trust_remote_code: bool = False,
    ):
        source = "RewardModelReward"
        options = {"source": source, "trust_remote_code": trust_remote_code}
        model, tokenizer = with_tokenizer(model, tokenizer, load_classifier, **options)
        if model.config.num_labels != 1:
            raise RecipeError(
                f"{source}: `{model.name_or_path}` has {model.config.num_labels} labels, a reward "
                "model has one. For a classifier use SentimentReward(model, label=...)."
            )
        set_pad_token(tokenizer, f"{source}: the tokenizer of `{model.name_or_path}`")
        model.config.pad_token_id = tokenizer.pad_token_id  # the score is that of the last other
        self.model, self.tokenizer = model.eval(), tokenizer
        self.reads_pairs = bool(getattr(model.config, "reads_pairs", False))
        self.batch_size = batch_size
        self.max_length = longest_input(model, tokenizer)
        self.__name__ = name or str(model.name_or_path).rstrip("/").split("/")[-1] or "reward_model"

    @torch.inference_mode()
    def __call__(self, prompts: Texts, completions: Texts, **kwargs: Any) -> list[float | None]:
        """Score each prompt plus completion with the model's one logit; None without tokens."""
        if self.reads_pairs:
            return self._score_pairs(completion_texts(prompts), completion_texts(completions))
        chat = bool(prompts) and is_conversation(prompts[0])
        texts = (self._rendered if chat else full_texts)(prompts, completions)
        # templates bring their special tokens
        return scores_by(self, texts, lambda logits: logits[:, 0], special=not chat)

    def _score_pairs(self, firsts: list[str], seconds: list[str]) -> list[float]:
        scores = torch.zeros(len(firsts))
        for batch in batches_by_length(full_texts(firsts, seconds), self.batch_size):
            pairs = [[part[index] for index in batch] for part in (firsts, seconds)]
            inputs = encode_pairs(self.tokenizer, *pairs, self.max_length)
            inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
            scores[batch] = self.model(**inputs).logits[:, 0].float().cpu()
        return scores.tolist()

    def _rendered(self, prompts: Texts, completions: Texts) -> list[str]:
        """Write conversations as texts, by the reward model's own chat template."""
        if self.tokenizer.chat_template is None:
            raise RecipeError(
                f"`{self.__name__}`: the data are conversations, and the reward model's tokenizer "
                "has no chat template. Give one that has, or prompts of plain text."
            )
        return [
            self.tokenizer.apply_chat_template(prompt + completion, tokenize=False)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]


class PerplexityReward:
    """Minus the perplexity of prompt plus completion under a causal language model.

    It is exp of the mean negative log-probability of its tokens after the first; with `log` that
    mean, where a few odd texts do not outweigh all others. Alone it invites one dull sentence said
    again and again: add a `RepetitionPenalty`. `model` is None for the embedded language model, a
    folder or hub name, or a ready model; not the one in training, which would judge itself.
    """

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        *,
        log: bool = False,
        batch_size: int = 32,
        trust_remote_code: bool = False,
    ):
        self.model, self.tokenizer = language_model_of(
            model, tokenizer, "PerplexityReward", trust_remote_code=trust_remote_code
        )
        self.log, self.batch_size = log, batch_size
        self.__name__ = "log_perplexity" if log else "perplexity"

    @torch.inference_mode()
    def __call__(self, prompts: Texts, completions: Texts, **kwargs: Any) -> list[float | None]:
        """Score each prompt plus completion: at most -1 (at most 0 with `log`).

        An empty text gets None. Tokens beyond the model's context are left out.
        """
        rows = [self._token_ids(text) for text in full_texts(prompts, completions)]
        scored = [index for index, row in enumerate(rows) if len(row) > 1]
        texts = [rows[index] for index in scored]
        values: list[float | None] = [None] * len(rows)
        with evaluating(self.model):
            for batch in batches_by_length(texts, self.batch_size):
                losses = self._losses([texts[i] for i in batch])
                for i, loss in zip(batch, losses if self.log else losses.exp(), strict=True):
                    values[scored[i]] = -loss.item()
        return values

    def _token_ids(self, text: str) -> torch.Tensor:
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        if len(ids) == 1 and self.tokenizer.bos_token_id is not None:
            ids = [self.tokenizer.bos_token_id, *ids]
        return torch.tensor(ids[: context_length(self.model.config)], dtype=torch.long)

    def _losses(self, rows: list[torch.Tensor]) -> torch.Tensor:
        """Return the model's loss on each row, in nats per token."""
        ids, mask = pad_rows(rows, 0, side="right")
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        nll = F.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
        counts = mask[:, 1:].sum(1)
        return (nll * mask[:, 1:]).sum(1) / counts


def reward_of_model(model: Any, source: str) -> RewardModelReward | SentimentReward:
    """Turn a classifier, or its name, into a reward: its one score, or the logit of POSITIVE."""
    model, tokenizer = with_tokenizer(model, None, load_classifier, source=source)
    if model.config.num_labels == 1:
        return RewardModelReward(model, tokenizer)
    return SentimentReward(SimpleNamespace(model=model, tokenizer=tokenizer))


def language_model_of(
    model: Any, tokenizer: Any, source: str, *, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Return a causal language model (None: the embedded one) and its tokenizer."""
    model = model or embedded.language_model()
    options = {"source": source, "trust_remote_code": trust_remote_code}
    model, tokenizer = with_tokenizer(model, tokenizer, load_run, **options)
    if model.config.is_encoder_decoder:
        raise RecipeError(
            f"{source}: `{model.name_or_path}` is an encoder-decoder. Give a causal language model."
        )
    return model, tokenizer


def with_tokenizer(model: Any, tokenizer: Any, load: Callable, **options: Any) -> tuple[Any, Any]:
    """Load a model and its tokenizer by name, or the tokenizer alone beside a ready model."""
    if isinstance(model, str | os.PathLike):
        model, tokenizer = load(model, **options)
        model.to(PartialState().device)
    elif tokenizer is None:
        if not model.name_or_path:
            raise RecipeError(
                f"{options['source']}: this {type(model).__name__} was not loaded by a name, which "
                "leaves no tokenizer to it. Give both: `RewardModelReward(model, tokenizer)`."
            )
        tokenizer = load_tokenizer(model.name_or_path)
    return model, tokenizer


def batches_by_length(texts: Sequence[Any], batch_size: int) -> Iterator[list[int]]:
    """Yield indices of texts or token lists in batches of like lengths, to pad little."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@torch.inference_mode()
def classifier_logits(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    batch_size: int,
    max_length: int | None,
    special: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the logits of texts on the CPU, (B, labels), in batches of like lengths.

    Without `special`, texts bring their special tokens; beyond `max_length` tokens they are cut.
    Also tells which texts have tokens, (B,): the logits of others mean nothing.
    """
    logits = torch.zeros(len(texts), model.config.num_labels)
    read = torch.zeros(len(texts), dtype=torch.bool)
    for batch in batches_by_length(texts, batch_size):
        inputs = tokenizer(
            [texts[index] for index in batch],
            padding=len(batch) > 1,
            padding_side="right",  # absolute positions must start at the first token
            truncation=True,
            max_length=max_length,
            add_special_tokens=special,
            return_tensors="pt",
        )
        read[batch] = inputs["attention_mask"].bool().any(1)
        if read[batch].any():
            logits[batch] = model(**inputs.to(model.device)).logits.float().cpu()
    return logits, read


def scores_by(
    reward: Any, texts: Sequence[str], of_logits: Callable, special: bool = True
) -> list[float | None]:
    """Score texts by the logits of a reward's classifier; one without tokens gets None."""
    own = (reward.model, reward.tokenizer, texts, reward.batch_size, reward.max_length, special)
    logits, read = classifier_logits(*own)
    scored = zip(of_logits(logits).tolist(), read.tolist(), strict=True)
    return [value if has_tokens else None for value, has_tokens in scored]


def encode_pairs(
    tokenizer: Any, firsts: Sequence[str], seconds: Sequence[str], max_length: int | None
) -> dict[str, torch.Tensor]:
    """Tokenize pairs of texts, each with its special tokens and an end token where there is one.

    Each text is cut to half of `max_length`. Returns `input_ids` and `attention_mask`,
    (B, longest), padded at the right.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    room = None if max_length is None else max_length // 2 - len(end)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        # split_special_tokens: an end token that a model spelled out is no end of a text
        rows = tokenizer(list(texts), split_special_tokens=True, verbose=False)["input_ids"]
        return [(row[:-1] if row[-1:] == end else row)[:room] + end for row in rows]

    rows = [torch.tensor(a + b) for a, b in zip(encode(firsts), encode(seconds), strict=True)]
    ids, mask = pad_rows(rows, tokenizer.pad_token_id, "right")
    return {"input_ids": ids, "attention_mask": mask}


def can_pad(model: Any, tokenizer: Any) -> bool:
    """Tell whether a classifier knows where a padded text ends."""
    pad_token_id = tokenizer.pad_token_id
    return pad_token_id is not None and pad_token_id == model.config.pad_token_id


def longest_input(model: Any, tokenizer: Any) -> int | None:
    """Return the most tokens that a model takes, or None where it does not say."""
    positions = getattr(model.config, "max_position_embeddings", None)
    embeddings = getattr(model.base_model, "embeddings", None)
    padding_idx = getattr(embeddings, "padding_idx", None)
    if positions is not None and padding_idx is not None:
        positions -= padding_idx + 1  # RoBERTa and its kin count positions from there
    limits = [tokenizer.model_max_length, positions]
    known = [int(limit) for limit in limits if limit is not None and limit < 1e9]
    return min(known, default=None)


def _label_id(id2label: dict[int, str], label: str, name: str) -> int:
    by_name = {text.lower(): index for index, text in id2label.items()}
    if str(label).lower() not in by_name:
        labels = ", ".join(id2label[key] for key in sorted(id2label))
        raise RecipeError(
            f"--reward_model: the classifier `{name}` has no label {label!r}. Its labels are: "
            f"{labels}."
        )
    return by_name[str(label).lower()]
