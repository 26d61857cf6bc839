"""Encoder-decoders on source-target pairs: a small T5 or BART, or a model trained further."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
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
from trl_recipes.errors import RecipeError
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
    target_file: str | None = setting(None, "Targets, line by line; dataset_name has sources then.")
    eval_prompts: int = setting(256, "Held-out sources to judge by.")

    def __post_init__(self):
        if self.target_file is not None and self.dataset_name is None:
            raise RecipeError(
                "--target_file needs --dataset_name: the text file of the sources, line by line."
            )


@dataclass
class Seq2SeqSizes:
    """An encoder-decoder from scratch, and what becomes of long texts."""

    architecture: Literal["t5", "bart"] = setting("t5", "From scratch: t5 or bart.")
    num_layers: int = setting(2, "Layers of encoder and of decoder.")
    num_heads: int = setting(4, "Attention heads per layer.")
    hidden_size: int = setting(128, "Width; a multiple of num_heads.")
    vocab_size: int = setting(2000, "Entries of the tokenizer.")
    context_length: int = setting(64, "From scratch: most tokens of a source and of a target.")
    too_long: Literal["cut", "error"] = setting("cut", "What to do with long texts: cut, or error.")

    def __post_init__(self):
        heads = self.num_heads
        check_width("hidden_size", self.hidden_size, "--num_heads", heads, heads)


def load_pairs(args: PairArguments, split: str) -> list[Pair]:
    """Load source-target pairs of the split "train" or "test"; no text is empty."""
    if args.dataset_name is None:
        from trl_recipes.embedded.rewrites import rewrites

        return rewrites("heldout" if split == "test" else split)
    if args.target_file is not None:
        return _split_lines(_two_files(args.dataset_name, args.target_file), split)
    rows = load_rows(args.dataset_name, split=split)
    where = f"{args.dataset_name} ({split})"
    sources = _texts(rows, args.source_column, "--source_column", where)
    targets = _texts(rows, args.target_column, "--target_column", where)
    return [{"source": s, "target": t} for s, t in zip(sources, targets, strict=True)]


def load_sources(args: PairArguments, pairs: Sequence[Pair]) -> list[str]:
    """Load the sources to sample outputs for: of the embedded rewrites those set aside."""
    rows = load_pairs(args, "prompts") if args.dataset_name is None else pairs
    return [row["source"] for row in rows]


def tokenize(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    too_long: Literal["cut", "error"],
    what: str,
) -> list[list[int]]:
    """Tokenize texts; those of more than `limit` tokens are cut before the end token, or refused.

    `limit` counts special tokens; None takes any. `what`: "source" or "target", for messages.
    """
    ids = tokenizer(list(texts), verbose=False)["input_ids"]
    long = [row for row, tokens in enumerate(ids) if limit is not None and len(tokens) > limit]
    if long and too_long == "error":
        raise RecipeError(
            f"--too_long error: {what} {long[0] + 1} has {len(ids[long[0]])} tokens, as have "
            f"{len(long) - 1} more than the {limit} that the model takes. Shorten them, raise "
            "--context_length where the model is from scratch, or use --too_long cut."
        )
    if long:
        _log.warning("%d of %d %ss are cut to %d tokens.", len(long), len(ids), what, limit)
        ids = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
    return ids


def prompt_rows(
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    too_long: Literal["cut", "error"],
) -> Dataset:
    """Make PPO's data set of sources: columns `query` and `input_ids`; see `tokenize`."""
    ids = tokenize(sources, tokenizer, limit, too_long, "source")
    return Dataset.from_dict({"query": list(sources), "input_ids": ids})


def longest_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Find the most tokens of a source or target; None where neither model nor tokenizer says."""
    limits = [context_length(model.config) or math.inf, tokenizer.model_max_length]
    return int(min(limits)) if min(limits) < 1e9 else None


def start_seq2seq(
    model_name_or_path: str | None, texts: Sequence[str], sizes: Seq2SeqSizes, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make a small encoder-decoder from scratch, tokenizer included, or load one, in float32."""
    set_seed(seed)
    if model_name_or_path is not None:
        model = load_language_model(model_name_or_path, causal=False)
        return model, load_tokenizer(model_name_or_path)
    tokenizer = train_tokenizer(texts, sizes.vocab_size, "seq2seq")
    tokenizer.model_max_length = sizes.context_length
    width, layers, heads = sizes.hidden_size, sizes.num_layers, sizes.num_heads
    common = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
        "d_model": width,
    }
    if sizes.architecture == "t5":
        shape = {"d_kv": width // heads, "d_ff": 4 * width, "num_layers": layers}
        config = T5Config(**common, **shape, num_heads=heads, dropout_rate=0.0)
        return T5ForConditionalGeneration(config), tokenizer
    config = BartConfig(
        **common,
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
    limits = (tokenizer, longest_text(model, tokenizer), sizes.too_long)

    def tokenized(pairs: Sequence[Pair]) -> list[dict[str, list[int]]]:
        sources = tokenize([pair["source"] for pair in pairs], *limits, "source")
        targets = tokenize([pair["target"] for pair in pairs], *limits, "target")
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


def _texts(rows: Dataset, column: str, flag: str, where: str) -> list[str]:
    texts = read_column(rows, column, flag, where)
    fault = f"in `{column}`, which is empty or no text. Fix or delete the row."
    check_values(texts, lambda t: isinstance(t, str) and t.strip() != "", flag, where, fault)
    return texts


def _two_files(sources: str, targets: str) -> list[Pair]:
    """Read the lines of two files side by side; an empty one in the middle is a mistake."""
    first, second = _lines(sources, "--dataset_name"), _lines(targets, "--target_file")
    if len(first) != len(second):
        raise RecipeError(
            f"--target_file: `{sources}` has {len(first)} lines and `{targets}` has {len(second)}. "
            "Each source needs the target of the same line: give files of equal length."
        )
    return [{"source": s, "target": t} for s, t in zip(first, second, strict=True)]


def _lines(name: str, flag: str) -> list[str]:
    try:
        lines = Path(name).expanduser().read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RecipeError(
            f"{flag}: `{name}` could not be read ({reason}). Give a text file of one text a line."
        ) from error
    empty = next((row for row, line in enumerate(lines, 1) if not line.strip()), None)
    if empty is not None:
        raise RecipeError(
            f"{flag}: line {empty} of `{name}` is empty. Fix it, or delete it in both files."
        )
    return lines


def _split_lines(pairs: list[Pair], split: str) -> list[Pair]:
    """Take the train or the test split; every tenth pair is for the test."""
    if len(pairs) < 2:
        raise RecipeError(
            f"--dataset_name: {len(pairs)} pair(s) are too few: every tenth is held out. Give more."
        )
    return [pair for row, pair in enumerate(pairs) if (row % 10 == 1) == (split == "test")]
