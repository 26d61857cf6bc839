"""Reward models: from labeled texts, from numbers, or from preference pairs.

Classes are learned by cross-entropy, numbers by least squares, pairs by TRL's RewardTrainer with
the loss of Bradley and Terry (1952), minus log sigmoid of the margin. Texts are tokenized as
`SentimentReward` and `RewardModelReward` do it; TRL alone would put an end token behind each.
"""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)
from trl import RewardConfig, RewardTrainer

from trl_recipes.errors import RecipeError
from trl_recipes.settings import setting
from trl_recipes.training.classifier import (
    ClassifierConfig,
    ClassifierSizes,
    cut_fragments,
    start_classifier,
    train_classifier,
)
from trl_recipes.training.fit import fit
from trl_recipes.training.reward_data import Labeled, Pairs

_log = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass
class RewardModelConfig(ClassifierConfig, RewardConfig):
    """TRL's RewardConfig with the defaults that small models want."""

    output_dir: str = setting("runs/reward", "Folder that the run writes to; the model is in it.")
    disable_dropout: bool = setting(False, "Train without dropout.")
    gradient_checkpointing: bool | None = setting(None, "Old name of activation_checkpointing.")
    bf16: bool | None = setting(None, "bfloat16 autocast (default: on a GPU that has it).")
    max_length: int | None = setting(None, "Refused: see context_length.")

    def __post_init__(self):
        if self.max_length is not None:
            raise RecipeError(
                "`max_length` would drop the pairs that are longer. Use --context_length, which "
                "cuts them."
            )
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        super().__post_init__()


class PairTrainer(RewardTrainer):
    """TRL's RewardTrainer that reports to nobody and writes no card of its own."""

    def _send_telemetry(self) -> None:
        """Nothing leaves this machine."""

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the lengths, by which rows of a batch are chosen."""
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, "length"]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The recipe writes one beside the model, with figures."""


def train_reward_model(
    data: Labeled | Pairs,
    output_dir: str | Path,
    config: RewardModelConfig,
    *,
    model_name_or_path: str | None = None,
    sizes: ClassifierSizes | None = None,
    before_training: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Train a reward model from scratch, or a base model further, and save it; see `fit`."""
    sizes = sizes or ClassifierSizes()
    if isinstance(data, Labeled) and data.names is not None:
        start = {"label_names": data.names, "model_name_or_path": model_name_or_path}
        start |= {"sizes": sizes, "before_training": before_training}
        return train_classifier(data.texts, data.labels, output_dir, config, **start)
    set_seed(config.seed)
    pairs = isinstance(data, Pairs)
    texts = [*data.chosen, *data.rejected] if pairs else data.texts
    problem = None if pairs else "regression"
    model, tokenizer = start_classifier(model_name_or_path, texts, sizes, ["SCORE"], problem)
    longest = tokenizer.model_max_length
    cut = sum(len(ids) > longest for ids in tokenizer(texts, verbose=False)["input_ids"])
    if cut:
        said = "%d of %d texts are longer than %d tokens and cut there (--context_length)."
        _log.warning(said, cut, len(texts), longest)
    if pairs:
        rows = _pair_rows(data, tokenizer, sizes, config)
        trainer = score_trainer(model, tokenizer, rows, config)
        return fit(trainer, tokenizer, output_dir, before_training=before_training)
    std = float(torch.tensor(data.labels).std())
    draw = random.Random(config.seed)
    rows = [
        {"input_ids": ids, "labels": label / std}
        for text, label in zip(data.texts, data.labels, strict=True)
        for ids in _with_fragments(text, tokenizer, sizes, draw)
    ]
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1]

    def to_the_labels_unit() -> None:
        for parameter in heads[-1].parameters():
            parameter.data *= std

    trainer = score_trainer(model, tokenizer, rows, config)
    around = {"before_training": before_training, "before_saving": to_the_labels_unit}
    return fit(trainer, tokenizer, output_dir, **around)


def score_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    config: RewardModelConfig,
) -> Trainer:
    """Make the trainer of a model with one score.

    `rows`: tokenized: `chosen_ids` and `rejected_ids` (Bradley-Terry), or `input_ids` and `labels`
    (squared error).
    """
    if "chosen_ids" not in rows[0]:
        return Trainer(model, config, DataCollatorWithPadding(tokenizer), train_dataset=rows)
    rows = [row | {"length": max(len(row["chosen_ids"]), len(row["rejected_ids"]))} for row in rows]
    return PairTrainer(
        model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def _pair_rows(
    data: Pairs,
    tokenizer: PreTrainedTokenizerBase,
    sizes: ClassifierSizes,
    config: RewardModelConfig,
) -> list[Row]:
    """Tokenize pairs and pairs of fragments; those alike once they are cut are left out."""
    special = not data.rendered
    sides = (_encode(tokenizer, texts, special) for texts in (data.chosen, data.rejected))
    rows = [pair for pair in zip(*sides, strict=True) if pair[0] != pair[1]]
    if not rows:
        raise RecipeError(
            f"--context_length: both texts of every pair are the same up to {sizes.context_length} "
            "tokens. Give more."
        )
    count, longest = len(data.chosen), tokenizer.model_max_length
    if len(rows) < count:
        said = "%d of %d pairs differ only behind the context of %d tokens and are left out."
        _log.warning(said, count - len(rows), count, longest)
    if data.fragments:  # one of the better text beside one of the worse
        draw = random.Random(config.seed)
        for texts in zip(data.chosen, data.rejected, strict=True):
            cuts = [_with_fragments(text, tokenizer, sizes, draw)[1:] for text in texts]
            rows += [pair for pair in zip(*cuts, strict=False) if pair[0] != pair[1]]
    return [{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in rows]


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = True
) -> list[list[int]]:
    """Tokenize as the rewards do: the tokenizer's own special tokens, cut at its longest input."""
    settings = {"truncation": True, "max_length": tokenizer.model_max_length}
    return tokenizer(list(texts), add_special_tokens=special, **settings)["input_ids"]


def _with_fragments(
    text: str, tokenizer: PreTrainedTokenizerBase, sizes: ClassifierSizes, draw: random.Random
) -> list[list[int]]:
    """Tokenize a text, and fragments of it, special tokens included."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    cuts = cut_fragments(ids[: tokenizer.model_max_length], sizes.fragments_per_text, draw)
    return _encode(tokenizer, [text, *(tokenizer.decode(cut) for cut in cuts)])
