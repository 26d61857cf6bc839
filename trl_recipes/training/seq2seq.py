"""Encoder-decoders on source-target pairs: a small T5 from scratch, or a model trained further."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    set_seed,
)

from trl_recipes.data.files import load_rows
from trl_recipes.data.tokenizers import train_tokenizer
from trl_recipes.models.forward import context_length
from trl_recipes.models.loading import load_language_model, load_tokenizer
from trl_recipes.settings import setting
from trl_recipes.training.fit import fit, mean_token_loss, token_losses
from trl_recipes.training.language_model import check_values, check_width, read_column

_log = logging.getLogger(__name__)

Pair = dict[str, str]  # "source" and "target"


@dataclass
class PairArguments:
    """Where the pairs are."""

    dataset_name: str | None = setting(None, "Pairs: file, folder or hub name; else embedded.")
    source_column: str = setting("source", "Column of the sources.")
    target_column: str = setting("target", "Column of the targets.")
    eval_prompts: int = setting(256, "Held-out sources to judge by.")


@dataclass
class Seq2SeqSizes:
    """Sizes of a T5 from scratch."""

    num_layers: int = setting(2, "Layers of encoder and of decoder.")
    num_heads: int = setting(4, "Attention heads per layer.")
    hidden_size: int = setting(128, "Width; a multiple of num_heads.")
    vocab_size: int = setting(2000, "Entries of the tokenizer.")
    context_length: int = setting(64, "Most tokens of a source and of a target.")

    def __post_init__(self):
        heads = self.num_heads
        check_width("hidden_size", self.hidden_size, "--num_heads", heads, heads)


def load_pairs(args: PairArguments, split: str) -> list[Pair]:
    """Load source-target pairs of the split "train" or "test"; no text is empty."""
    if args.dataset_name is None:
        from trl_recipes.embedded.rewrites import rewrites

        return rewrites("heldout" if split == "test" else split)
    rows, where = load_rows(args.dataset_name, split=split), f"{args.dataset_name} ({split})"

    def texts(flag: str, column: str) -> list[str]:
        found = read_column(rows, column, flag, where)
        fault = f"in `{column}`, which is empty or no text. Fix or delete the row."
        check_values(found, lambda t: isinstance(t, str) and t.strip() != "", flag, where, fault)
        return found

    sources = texts("--source_column", args.source_column)
    targets = texts("--target_column", args.target_column)
    return [{"source": s, "target": t} for s, t in zip(sources, targets, strict=True)]


def load_sources(args: PairArguments, pairs: Sequence[Pair]) -> list[str]:
    """Load the sources to sample outputs for: of the embedded rewrites those set aside."""
    rows = load_pairs(args, "prompts") if args.dataset_name is None else pairs
    return [row["source"] for row in rows]


def tokenize(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int | None, what: str
) -> list[list[int]]:
    """Tokenize texts, and cut those of more than `limit` tokens before the end token.

    `limit` counts special tokens; None takes any. `what`: "source" or "target", for the warning.
    """
    ids = tokenizer(list(texts), verbose=False)["input_ids"]
    long = sum(limit is not None and len(tokens) > limit for tokens in ids)
    if not long:
        return ids
    _log.warning("%d of %d %ss are cut to %d tokens.", long, len(ids), what, limit)
    return tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]


def prompt_rows(
    sources: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> Dataset:
    """Make PPO's data set of sources: columns `query` and `input_ids`; see `tokenize`."""
    ids = tokenize(sources, tokenizer, limit, "source")
    return Dataset.from_dict({"query": list(sources), "input_ids": ids})


def longest_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Find the most tokens of a source or target; None where neither model nor tokenizer says."""
    limit = min(context_length(model.config) or math.inf, tokenizer.model_max_length)
    return int(limit) if limit < 1e9 else None


def start_seq2seq(
    model_name_or_path: str | None, texts: Sequence[str], sizes: Seq2SeqSizes, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make a small T5 from scratch, tokenizer included, or load an encoder-decoder, in float32."""
    set_seed(seed)
    if model_name_or_path is not None:
        model = load_language_model(model_name_or_path, causal=False)
        return model, load_tokenizer(model_name_or_path)
    tokenizer = train_tokenizer(texts, sizes.vocab_size, "seq2seq")
    tokenizer.model_max_length = sizes.context_length
    config = T5Config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        d_model=sizes.hidden_size,
        d_kv=sizes.hidden_size // sizes.num_heads,
        d_ff=4 * sizes.hidden_size,
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        dropout_rate=0.0,
    )
    return T5ForConditionalGeneration(config), tokenizer


def train_seq2seq(
    pairs: Sequence[Pair],
    heldout: Sequence[Pair],
    output_dir: str | Path,
    config: TrainingArguments,
    *,
    sizes: Seq2SeqSizes,
    model_name_or_path: str | None = None,
    before_training: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Train an encoder-decoder on pairs from scratch, or a base model further, and save it.

    Returns what `fit` does; "heldout_loss" in nats per target token, over "heldout_tokens".
    """
    texts = [text for pair in pairs for text in pair.values()]
    model, tokenizer = start_seq2seq(model_name_or_path, texts, sizes, config.seed)
    limit = longest_text(model, tokenizer)

    def tokenized(pairs: Sequence[Pair]) -> list[dict[str, list[int]]]:
        sources = tokenize([pair["source"] for pair in pairs], tokenizer, limit, "source")
        targets = tokenize([pair["target"] for pair in pairs], tokenizer, limit, "target")
        return [{"input_ids": s, "labels": t} for s, t in zip(sources, targets, strict=True)]

    trainer = Trainer(
        model,
        config,
        DataCollatorForSeq2Seq(tokenizer),
        train_dataset=tokenized(pairs),
        preprocess_logits_for_metrics=partial(token_losses, shift=False),
        compute_metrics=partial(mean_token_loss, shift=False),
    )
    rows = tokenized(heldout)
    return fit(trainer, tokenizer, output_dir, heldout=rows, before_training=before_training)
