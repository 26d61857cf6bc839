"""Encoder-decoders on source-target pairs: a small T5 or BART from scratch, or a model trained on.

Trained by transformers' Seq2SeqTrainer and saved in the hub's format.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from trl_recipes.callbacks import train_or_stop
from trl_recipes.data.tokenizers import train_tokenizer
from trl_recipes.errors import RecipeError
from trl_recipes.models.adapters import save_trained
from trl_recipes.models.forward import context_length
from trl_recipes.models.loading import load_language_model, load_tokenizer
from trl_recipes.models.packing import pad_rows
from trl_recipes.training.language_model import IGNORED, LossBar
from trl_recipes.training.seq2seq_pairs import Pair, tokenize

EVALUATION_BATCH = 64


@dataclass
class Seq2SeqSizes:
    """An encoder-decoder from scratch, and what becomes of long texts."""

    architecture: Literal["t5", "bart"] = field(
        default="t5", metadata={"help": "From scratch: t5 or bart."}
    )
    num_layers: int = field(default=2, metadata={"help": "Layers of encoder and of decoder."})
    num_heads: int = field(default=4, metadata={"help": "Attention heads a layer."})
    hidden_size: int = field(default=128, metadata={"help": "Width; a multiple of num_heads."})
    vocab_size: int = field(default=2000, metadata={"help": "Entries of the tokenizer."})
    context_length: int = field(
        default=64, metadata={"help": "From scratch: most tokens of a source and of a target."}
    )
    too_long: Literal["cut", "error"] = field(
        default="cut", metadata={"help": "Sources and targets that are too long: cut, or error."}
    )

    def __post_init__(self):
        if self.hidden_size % self.num_heads:
            fitting = max(self.num_heads, self.hidden_size - self.hidden_size % self.num_heads)
            raise RecipeError(
                f"--hidden_size ({self.hidden_size}) must be a multiple of --num_heads"
                f" ({self.num_heads}). Use {fitting}."
            )


def training_arguments(
    output_dir: Path, *, steps: int, batch_size: int, learning_rate: float, seed: int, quiet: bool
) -> Seq2SeqTrainingArguments:
    """Give transformers' settings of one stage.

    Args:
        output_dir: the stage's folder.
        steps: optimizer steps.
        batch_size: rows a step.
        learning_rate: highest of the run, after a warm-up and before a cosine's fall.
        seed: of the order of rows.
        quiet: no progress bar.
    """
    return Seq2SeqTrainingArguments(
        output_dir=str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        adam_beta2=0.99,
        weight_decay=0.01,
        train_sampling_strategy="group_by_length",
        save_strategy="steps",
        save_steps=max(1, steps // 4),
        save_total_limit=1,
        seed=seed,
        disable_tqdm=quiet,
        dataloader_pin_memory=torch.accelerator.is_available(),
        report_to="none",
    )


def start_model(
    model_name_or_path: str | None, texts: Sequence[str], sizes: Seq2SeqSizes, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make a small encoder-decoder, or load one to train on.

    Args:
        model_name_or_path: None makes one from scratch, tokenizer included.
        texts: that a tokenizer from scratch learns from.
        sizes: from scratch.
        seed: of the weights from scratch.

    Returns:
        Model, in float32, and tokenizer.

    Raises:
        RecipeError: the model is no encoder-decoder, or cannot be loaded.
    """
    set_seed(seed)
    if model_name_or_path is not None:
        tokenizer = load_tokenizer(model_name_or_path)
        return load_language_model(model_name_or_path, causal=False), tokenizer
    tokenizer = train_tokenizer(texts, sizes.vocab_size, kind="seq2seq")
    tokenizer.model_max_length = sizes.context_length
    tokens = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    width, layers, heads = sizes.hidden_size, sizes.num_layers, sizes.num_heads
    if sizes.architecture == "t5":
        config = T5Config(
            **tokens,
            d_model=width,
            d_kv=width // heads,
            d_ff=4 * width,
            num_layers=layers,
            num_heads=heads,
            dropout_rate=0.0,
        )
        return T5ForConditionalGeneration(config), tokenizer
    config = BartConfig(
        **tokens,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_position_embeddings=2 * sizes.context_length,  # a reward model reads two texts
        bos_token_id=None,
        forced_eos_token_id=None,
        dropout=0.0,
    )
    return BartForConditionalGeneration(config), tokenizer


def longest_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Give the most tokens of a source or target; None where neither model nor tokenizer says.

    Args:
        model: encoder-decoder.
        tokenizer: its own.
    """
    limits = [context_length(model.config), tokenizer.model_max_length]
    return min((int(limit) for limit in limits if limit is not None and limit < 1e9), default=None)


def pretrain(
    pairs: Sequence[Pair],
    heldout: Sequence[Pair],
    output_dir: Path,
    args: Seq2SeqTrainingArguments,
    *,
    sizes: Seq2SeqSizes,
    model_name_or_path: str | None = None,
    before_training: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Train an encoder-decoder on pairs and save it.

    Args:
        pairs: to learn from.
        heldout: to measure the loss on, never trained on.
        output_dir: folder for the model and its tokenizer.
        args: transformers' settings.
        sizes: from scratch.
        model_name_or_path: model to train on; None starts from scratch.
        before_training: called when all was found fit for training.

    Returns:
        "train_loss" (mean over the run) and "heldout_loss", nats per target token;
        "seconds_a_step".

    Raises:
        RecipeError: as `start_model` and `tokenize`.
    """
    texts = [text for pair in pairs for text in pair.values()]
    model, tokenizer = start_model(model_name_or_path, texts, sizes, args.seed)
    limit = longest_text(model, tokenizer)
    rows, held = (pair_rows(part, tokenizer, limit, sizes.too_long) for part in (pairs, heldout))

    def pad(batch: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        return pad_pairs(batch, tokenizer.pad_token_id)

    trainer = quiet(Seq2SeqTrainer(model, args, data_collator=pad, train_dataset=rows))
    result = train_or_stop(trainer, before_training)
    save_trained(trainer, tokenizer, output_dir)
    return {
        "train_loss": result.training_loss,
        "heldout_loss": _loss(model, held, pad),
        "seconds_a_step": result.metrics["train_runtime"] / trainer.state.global_step,
    }


def pair_rows(
    pairs: Sequence[Pair],
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    too_long: Literal["cut", "error"],
) -> list[dict[str, list[int]]]:
    """Tokenize pairs: rows of `input_ids` and `labels`.

    Args:
        pairs: N of them.
        tokenizer: the model's.
        limit: as for `tokenize`.
        too_long: as for `tokenize`.
    """
    sources, targets = (
        tokenize([pair[part] for pair in pairs], tokenizer, limit, too_long, part)
        for part in ("source", "target")
    )
    return [{"input_ids": s, "labels": t} for s, t in zip(sources, targets, strict=True)]


def pad_pairs(rows: list[dict[str, list[int]]], pad_token_id: int) -> dict[str, Tensor]:
    """Pad rows at the right: input_ids and attention_mask (B, S), labels (B, T).

    Args:
        rows: token ids under `input_ids` and `labels`.
        pad_token_id: fills the sources; labels are filled with what the loss leaves out.
    """
    ids, mask = pad_rows([torch.tensor(row["input_ids"]) for row in rows], pad_token_id, "right")
    labels, _ = pad_rows([torch.tensor(row["labels"]) for row in rows], IGNORED, "right")
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def quiet(trainer: Any) -> Any:
    """Leave one progress bar, with the loss at its end, of what a transformers trainer prints.

    Args:
        trainer: transformers' or TRL's.
    """
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(LossBar)
    return trainer


@torch.no_grad()
def _loss(model: PreTrainedModel, rows: list[dict], pad: Callable) -> float:
    """Mean loss in nats over all target tokens."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(rows), EVALUATION_BATCH):
        batch = pad(rows[start : start + EVALUATION_BATCH])
        tokens = int((batch["labels"] != IGNORED).sum())
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        total += float(model(**batch).loss) * tokens
        count += tokens
    return total / count
