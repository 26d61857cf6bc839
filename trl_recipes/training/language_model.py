"""Language models on whole texts: a small GPT-2 from scratch, or a base model trained further."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trl_recipes.data.prompts import TEXT_COLUMNS
from trl_recipes.data.tokenizers import train_tokenizer
from trl_recipes.errors import RecipeError
from trl_recipes.models.loading import load_language_model, load_tokenizer
from trl_recipes.settings import setting
from trl_recipes.training.fit import fit, mean_token_loss, token_losses


@dataclass
class LanguageModelSizes:
    """Sizes of a GPT-2 from scratch."""

    n_layer: int = setting(2, "Transformer layers.")
    n_head: int = setting(4, "Attention heads per layer.")
    n_embd: int = setting(128, "Width; a multiple of n_head.")
    context_length: int = setting(128, "Longest row in tokens; longer texts are cut.")
    vocab_size: int = setting(4000, "Entries of the tokenizer.")

    def __post_init__(self):
        check_width("n_embd", self.n_embd, "--n_head", self.n_head, self.n_head)


def check_width(name: str, width: int, heads_name: str, heads: int, factor: int) -> None:
    """Refuse a width that is no multiple of `factor`."""
    if width % factor:
        fitting = max(factor, width - width % factor)
        raise RecipeError(
            f"--{name} ({width}) must be a multiple of {heads_name} ({heads}). Use {fitting}."
        )


def read_column(
    rows: Dataset, name: str, flag: str, source: str, advice: str = "Name one of them."
) -> list[Any]:
    """Read a column of a data set; errors name the `flag` and the `source`."""
    if name not in rows.column_names:
        raise RecipeError(
            f"{flag}: {source} has no column `{name}`. Its columns are: "
            f"{', '.join(rows.column_names)}. {advice}"
        )
    return list(rows[name][:])


def check_values(
    values: Sequence[Any], fits: Callable[[Any], bool], flag: str, source: str, fault: str
) -> None:
    """Refuse the first value of a column that does not fit; `fault` says why, and what to do."""
    for row, value in enumerate(values, 1):
        if not fits(value):
            raise RecipeError(f"{flag}: row {row} of {source} holds {value!r} {fault}")


def read_texts(rows: Dataset, column: str | None, source: str) -> list[str]:
    """Read the texts of a data set, from the first of `TEXT_COLUMNS` where none is named."""
    name = column or next((name for name in TEXT_COLUMNS if name in rows.column_names), "text")
    texts = read_column(rows, name, "--text_column", source)
    fault = f"in `{name}`, which is no text. Fix the row, or name another column."
    check_values(texts, lambda text: isinstance(text, str), "--text_column", source, fault)
    return texts


def train_language_model(
    texts: Sequence[str],
    output_dir: str | Path,
    config: TrainingArguments,
    *,
    heldout_texts: Sequence[str] = (),
    model_name_or_path: str | None = None,
    sizes: LanguageModelSizes | None = None,
    before_training: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Train a GPT-2 from scratch, tokenizer included, or a base model further, and save it.

    Returns what `fit` does; "heldout_loss" in nats per token, over "heldout_tokens".
    """
    if not any(text.strip() for text in texts):
        raise RecipeError(f"All {len(texts)} texts to train on are empty. Give at least one.")
    sizes = sizes or LanguageModelSizes()
    set_seed(config.seed)
    if model_name_or_path is None:
        tokenizer = train_tokenizer(texts, sizes.vocab_size, "causal")
        tokenizer.model_max_length = sizes.context_length
        model = AutoModelForCausalLM.from_config(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_positions=sizes.context_length,
                n_embd=sizes.n_embd,
                n_layer=sizes.n_layer,
                n_head=sizes.n_head,
                activation_function="gelu_pytorch_tanh",  # gelu_new, but one quick kernel
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        )
    else:
        tokenizer = load_tokenizer(model_name_or_path)
        model = load_language_model(model_name_or_path, causal=True)
    model.loss_type = "ForCausalLM"  # what transformers falls back to for GPT-2, with a warning
    trainer = Trainer(
        model,
        config,
        DataCollatorForLanguageModeling(pad_token_id=0),  # any: the loss and mask go by lengths
        train_dataset=language_model_rows(texts, tokenizer, sizes.context_length),
        preprocess_logits_for_metrics=partial(token_losses, shift=True),
        compute_metrics=partial(mean_token_loss, shift=True),
    )
    heldout = language_model_rows(heldout_texts, tokenizer, sizes.context_length)
    return fit(trainer, tokenizer, output_dir, heldout=heldout, before_training=before_training)


def language_model_rows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, context_length: int
) -> list[dict[str, list[int]]]:
    """Tokenize texts, end each with eos, and cut those that are too long into windows."""
    cut = windows(texts, tokenizer, context_length, [tokenizer.eos_token_id])
    return [{"input_ids": ids} for _, ids in cut if len(ids) > 1]  # one alone predicts nothing


def windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, end: Sequence[int] = ()
) -> list[tuple[int, list[int]]]:
    """Tokenize texts, add `end`, and cut them into windows, each with the number of its text."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [
        (index, [*ids, *end][start : start + length])
        for index, ids in enumerate(encoded)
        for start in range(0, len(ids) + len(end), length)
    ]
