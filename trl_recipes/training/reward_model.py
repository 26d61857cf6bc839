"""Reward models that are trained: from labelled texts, from numbers, or from preference pairs.

Classes are learnt by transformers' Trainer (`pretrain.train_classifier`), numbers by the same with
a squared error, pairs by TRL's RewardTrainer with the loss of Bradley and Terry (1952), minus log
sigmoid of the margin. Texts are tokenized as `SentimentReward` and `RewardModelReward` do it, so
that a model scores what it learnt to score; TRL alone would put an end token behind each.
"""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    ModernBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    set_seed,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
from trl import RewardConfig, RewardTrainer

from trl_recipes.callbacks import train_or_stop
from trl_recipes.data.tokenizers import train_tokenizer
from trl_recipes.embedded import language_model
from trl_recipes.errors import RecipeError
from trl_recipes.models.adapters import save_trained
from trl_recipes.models.loading import load_classifier, load_config
from trl_recipes.rewards.models import longest_input
from trl_recipes.training.language_model import (
    ClassifierConfig,
    ClassifierSizes,
    LossBar,
    cut_fragments,
    train_classifier,
)
from trl_recipes.training.reward_data import Labelled, Pairs

_log = logging.getLogger(__name__)

SCORE = "SCORE"  # name of the one label of a scalar reward model
DROPOUTS = ("embedding_dropout", "mlp_dropout", "classifier_dropout")


@dataclass
class RewardModelConfig(ClassifierConfig, RewardConfig):
    """TRL's RewardConfig with the defaults that small models want."""

    output_dir: str = field(
        default="runs/reward",
        metadata={"help": "Folder that the run writes to; the model is in it."},
    )
    center_rewards_coefficient: float | None = field(
        default=None,
        metadata={
            "help": "For pairs: weight of the mean square of both scores; keeps them near 0."
        },
    )
    disable_dropout: bool = field(default=False, metadata={"help": "Train without dropout."})
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Old name of activation_checkpointing."}
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "bfloat16 autocast (default: on a GPU that has it)."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Refused: see context_length."})

    def __post_init__(self):
        if self.max_length is not None:
            raise RecipeError(
                "`max_length` would drop the pairs that are longer. Use --context_length, which "
                "cuts them."
            )
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        self.dataloader_pin_memory &= torch.cuda.is_available()  # else torch warns
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
        """The recipe writes one beside the model, with figures.

        Args:
            *args: TRL's, not used.
            **kwargs: TRL's, not used.
        """


def train_reward_model(
    data: Labelled | Pairs,
    output_dir: str | Path,
    config: RewardModelConfig,
    *,
    model_name_or_path: str | None = None,
    sizes: ClassifierSizes | None = None,
    before_training: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Train a reward model from scratch, or a base model on, and save it with its tokenizer.

    Args:
        data: labelled texts or pairs.
        output_dir: folder for both, in the hub's format.
        config: settings; `seed` covers weights, order and fragments.
        model_name_or_path: what `base_model` gave; its head is made anew.
        sizes: sizes from scratch, and of the fragments; the defaults when None.
        before_training: called when all was found fit for training.

    Returns:
        "train_loss", "rows" and "seconds_a_step".

    Raises:
        RecipeError: a base model that cannot be loaded or takes no such head.
    """
    sizes = sizes or ClassifierSizes()
    chosen = {"model_name_or_path": model_name_or_path, "sizes": sizes}
    if isinstance(data, Pairs):
        return _train_pairs(data, output_dir, config, before_training=before_training, **chosen)
    if data.names is None:
        return _train_numbers(data, output_dir, config, before_training=before_training, **chosen)
    return train_classifier(
        data.texts,
        data.labels,
        output_dir,
        config,
        label_names=data.names,
        before_training=before_training,
        **chosen,
    )


def _train_pairs(
    data: Pairs,
    output_dir: str | Path,
    config: RewardModelConfig,
    *,
    model_name_or_path: str | None,
    sizes: ClassifierSizes,
    before_training: Callable[[], Any] | None,
) -> dict[str, float]:
    set_seed(config.seed)
    texts = [*data.chosen, *data.rejected]
    model, tokenizer = _scorer(model_name_or_path, texts, sizes, problem_type=None)
    _warn_of_cut(tokenizer, texts)
    encode = partial(_encode, tokenizer, special=not data.rendered)
    rows = list(zip(encode(data.chosen), encode(data.rejected), strict=True))
    rows = [pair for pair in rows if pair[0] != pair[1]]  # alike once they are cut
    if not rows:
        raise RecipeError(
            f"--context_length: both texts of every pair are the same up to {sizes.context_length} "
            "tokens. Give more."
        )
    if len(rows) < len(data.chosen):
        _log.warning(
            "%d of %d pairs differ only behind the context of %d tokens and are left out.",
            len(data.chosen) - len(rows),
            len(data.chosen),
            tokenizer.model_max_length,
        )
    if data.fragments:
        rows += _fragment_pairs(data, tokenizer, sizes, config.seed)
    columns = {
        "chosen_ids": [chosen for chosen, _ in rows],
        "rejected_ids": [rejected for _, rejected in rows],
        "length": [max(map(len, pair)) for pair in rows],  # what rows of like length are sorted by
    }
    trainer = PairTrainer(
        model, config, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer
    )
    return _fit(trainer, tokenizer, output_dir, len(rows), before_training)


def _train_numbers(
    data: Labelled,
    output_dir: str | Path,
    config: RewardModelConfig,
    *,
    model_name_or_path: str | None,
    sizes: ClassifierSizes,
    before_training: Callable[[], Any] | None,
) -> dict[str, float]:
    """Least squares in units of the labels' spread, which the head's weights then take in."""
    set_seed(config.seed)
    model, tokenizer = _scorer(model_name_or_path, data.texts, sizes, problem_type="regression")
    _warn_of_cut(tokenizer, data.texts)
    spread = float(torch.tensor(data.labels).std())
    draw = random.Random(config.seed)
    rows = [
        {"input_ids": ids, "labels": label / spread}
        for text, label in zip(data.texts, data.labels, strict=True)
        for ids in _with_fragments(text, tokenizer, sizes, draw)
    ]

    def pad(batch: list[dict]) -> dict[str, Tensor]:
        inputs = _pad([row["input_ids"] for row in batch], tokenizer.pad_token_id)
        return inputs | {"labels": torch.tensor([row["labels"] for row in batch])}

    trainer = Trainer(model, config, data_collator=pad, train_dataset=rows)
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1]

    def to_the_labels_unit() -> None:
        for parameter in heads[-1].parameters():
            parameter.data *= spread

    return _fit(trainer, tokenizer, output_dir, len(rows), before_training, to_the_labels_unit)


def _fit(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    rows: int,
    before_training: Callable[[], Any] | None,
    before_saving: Callable[[], Any] = lambda: None,
) -> dict[str, float]:
    """Train, and save model and tokenizer; mean loss over all steps, rows, and time."""
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(LossBar)
    result = train_or_stop(trainer, before_training)
    before_saving()
    save_trained(trainer, tokenizer, output_dir)
    return {
        "train_loss": result.training_loss,
        "rows": rows,
        "seconds_a_step": result.metrics["train_runtime"] / max(1, trainer.state.global_step),
    }


def _scorer(
    name: str | None, texts: Sequence[str], sizes: ClassifierSizes, problem_type: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with one label, new or on a base, whose tokenizer knows where to cut."""
    labels = {"num_labels": 1, "id2label": {0: SCORE}, "label2id": {SCORE: 0}}
    labels["problem_type"] = problem_type
    if name is None:
        tokenizer = train_tokenizer(texts, sizes.vocab_size, kind="classifier")
        model = AutoModelForSequenceClassification.from_config(
            ModernBertConfig(  # the one of `pretrain.train_classifier`
                vocab_size=len(tokenizer),
                hidden_size=sizes.hidden_size,
                intermediate_size=2 * sizes.hidden_size,
                num_hidden_layers=sizes.num_layers,
                num_attention_heads=sizes.num_heads,
                layer_types=["full_attention"] * sizes.num_layers,
                max_position_embeddings=sizes.context_length,
                classifier_pooling="mean",
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
                eos_token_id=None,
                cls_token_id=None,
                sep_token_id=None,
                **dict.fromkeys(DROPOUTS, sizes.dropout),
                **labels,
            )
        )
    else:
        model, tokenizer = load_classifier(name, new_head=True, **labels)
        if tokenizer.pad_token_id is None:  # GPT-2 and its like
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    fits = longest_input(model, tokenizer) or sizes.context_length
    tokenizer.model_max_length = min(sizes.context_length, fits)
    return model, tokenizer


def base_model(name: str | None) -> str | None:
    """Find the base model of a reward model, and refuse one that takes no head that scores texts.

    Args:
        name: folder or hub name; `embedded` for this project's language model; None for none.

    Returns:
        Folder or hub name; None where it starts from scratch.

    Raises:
        RecipeError: there is no such model, or says what it is.
    """
    if name is None:
        return None
    if name == "embedded":
        return str(language_model())
    config = load_config(name)
    if config.is_encoder_decoder:
        raise RecipeError(
            f"--model_name_or_path: `{name}` is an encoder-decoder ({config.model_type}). Give an "
            "encoder such as BERT, or a decoder such as GPT-2."
        )
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise RecipeError(
            f"--model_name_or_path: `{name}` is a {config.model_type}, to which transformers can "
            "put no head that scores texts. Give an encoder such as BERT, or a decoder such as "
            "GPT-2."
        )
    return name


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = True
) -> list[list[int]]:
    """Tokenize as the rewards do: the tokenizer's own special tokens, cut at its longest input."""
    settings = {"truncation": True, "max_length": tokenizer.model_max_length}
    return tokenizer(list(texts), add_special_tokens=special, **settings)["input_ids"]


def _warn_of_cut(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    longest = tokenizer.model_max_length
    cut = sum(len(ids) > longest for ids in tokenizer(list(texts), verbose=False)["input_ids"])
    if cut:
        _log.warning(
            "%d of %d texts are longer than %d tokens and cut there (--context_length).",
            cut,
            len(texts),
            longest,
        )


def _with_fragments(
    text: str, tokenizer: PreTrainedTokenizerBase, sizes: ClassifierSizes, draw: random.Random
) -> list[list[int]]:
    """A text's tokens, and those of fragments of it, special ones included."""
    lengths = (sizes.min_fragment_tokens, sizes.max_fragment_tokens)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    cuts = cut_fragments(ids[: tokenizer.model_max_length], sizes.fragments_per_text, lengths, draw)
    return _encode(tokenizer, [text, *(tokenizer.decode(cut) for cut in cuts)])


def _fragment_pairs(
    data: Pairs, tokenizer: PreTrainedTokenizerBase, sizes: ClassifierSizes, seed: int
) -> list[tuple[list[int], list[int]]]:
    """A fragment of the better text beside one of the worse."""
    draw = random.Random(seed)
    pairs = []
    for texts in zip(data.chosen, data.rejected, strict=True):
        cuts = [_with_fragments(text, tokenizer, sizes, draw)[1:] for text in texts]
        pairs += [pair for pair in zip(*cuts, strict=False) if pair[0] != pair[1]]
    return pairs


def _pad(rows: list[list[int]], pad_token_id: int) -> dict[str, Tensor]:
    """Token ids and mask, padded on the right, (B, longest)."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_token_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}
