"""Small models from scratch, or base models trained on: language models and text classifiers.

Both train on transformers' Trainer and are saved in the hub's format, so that every recipe takes
them by the name of their folder. A language model reads whole texts, each ended by the eos token; a
text longer than its context is cut into windows. A classifier also reads fragments cut out of the
texts, because in PPO it scores a prompt and a few sampled tokens, ended in mid-sentence.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    ModernBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from trl_recipes.callbacks import train_or_stop
from trl_recipes.data.prompts import TEXT_COLUMNS
from trl_recipes.data.tokenizers import train_tokenizer
from trl_recipes.errors import RecipeError
from trl_recipes.models.adapters import save_trained
from trl_recipes.models.loading import load_classifier, load_language_model, load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100  # label of a padded position, which the loss leaves out
EVALUATION_BATCH = 64

Row = dict[str, list[int] | int]


@dataclass
class PretrainConfig(TrainingArguments):
    """transformers' TrainingArguments with the defaults that small models from scratch want."""

    output_dir: str = field(
        default="runs/lm", metadata={"help": "Folder that the run writes to; the model is in it."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace the run that the output folder holds."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the texts."})
    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "Rows (texts, windows or fragments) a process and step."}
    )
    adam_beta2: float = field(
        default=0.99, metadata={"help": "How long AdamW remembers squared gradients."}
    )
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "How the learning rate falls after the warm-up."}
    )
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Steps of rising learning rate; below 1 a share of all."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={"help": "Rows of like length share a batch, which saves padding."},
    )
    save_strategy: str = field(
        default="steps", metadata={"help": "Checkpoints on the way: no, steps or epoch."}
    )
    save_steps: float = field(
        default=500, metadata={"help": "Steps from one checkpoint to the next."}
    )
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints to keep."})
    check: bool = field(
        default=False,
        metadata={
            "help": "Check everything, try a few steps, say what the run takes; write nothing."
        },
    )
    report_to: str = field(default="none", metadata={"help": "Trackers to report to."})

    def describe(self) -> str:
        """Say in words how long training is and what a step takes."""
        steps = f"{self.max_steps} steps" if self.max_steps > 0 else None
        length = steps or f"{self.num_train_epochs:g} pass(es) over the texts"
        rows = self.per_device_train_batch_size * self.gradient_accumulation_steps
        return f"{length}; a step takes {rows} rows on each of {self.world_size} process(es)."


@dataclass
class ClassifierConfig(PretrainConfig):
    """The same, with what suits a classifier of few texts."""

    output_dir: str = field(
        default="runs/classifier",
        metadata={"help": "Folder that the run writes to; the model is in it."},
    )
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Rows (texts, windows or fragments) a process and step."}
    )
    adam_beta2: float = field(
        default=0.999, metadata={"help": "How long AdamW remembers squared gradients."}
    )
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the texts."})


@dataclass
class LanguageModelSizes:
    """Sizes of a GPT-2 from scratch."""

    n_layer: int = field(default=2, metadata={"help": "Transformer layers."})
    n_head: int = field(default=4, metadata={"help": "Attention heads a layer."})
    n_embd: int = field(default=128, metadata={"help": "Width; a multiple of n_head."})
    context_length: int = field(
        default=128,
        metadata={"help": "Longest row in tokens; longer texts are cut, for base models too."},
    )
    vocab_size: int = field(default=4000, metadata={"help": "Entries of the tokenizer."})

    def __post_init__(self):
        if self.n_embd % self.n_head:
            fitting = max(self.n_head, self.n_embd - self.n_embd % self.n_head)
            raise RecipeError(
                f"--n_embd ({self.n_embd}) must be a multiple of --n_head ({self.n_head})."
                f" Use {fitting}."
            )


@dataclass
class ClassifierSizes:
    """Sizes of a classifier from scratch, and of the fragments that it learns from."""

    num_layers: int = field(default=2, metadata={"help": "Transformer layers."})
    num_heads: int = field(default=4, metadata={"help": "Attention heads a layer."})
    hidden_size: int = field(
        default=128, metadata={"help": "Width; a multiple of twice num_heads."}
    )
    dropout: float = field(default=0.3, metadata={"help": "Share of activations dropped."})
    vocab_size: int = field(default=8000, metadata={"help": "Entries of the tokenizer."})
    context_length: int = field(
        default=128,
        metadata={"help": "Longest row in tokens; longer texts are cut, for base models too."},
    )
    fragments_per_text: int = field(
        default=2,
        metadata={"help": "Fragments cut out of each text or window, to learn from beside it."},
    )
    min_fragment_tokens: int = field(default=4, metadata={"help": "Shortest fragment, in tokens."})
    max_fragment_tokens: int = field(default=24, metadata={"help": "Longest fragment, in tokens."})

    def __post_init__(self):
        twice = 2 * self.num_heads
        if self.hidden_size % twice:
            fitting = max(twice, self.hidden_size - self.hidden_size % twice)
            raise RecipeError(
                f"--hidden_size ({self.hidden_size}) must be a multiple of twice --num_heads"
                f" ({self.num_heads}). Use {fitting}."
            )
        if not 1 <= self.min_fragment_tokens <= self.max_fragment_tokens:
            raise RecipeError(
                f"--min_fragment_tokens is {self.min_fragment_tokens} and --max_fragment_tokens"
                f" {self.max_fragment_tokens}. Use 1 or more, the smaller one first."
            )


def read_texts(rows: "Dataset", column: str | None, source: str) -> list[str]:
    """Take the texts out of a data set.

    Args:
        rows: what `load_rows` gave.
        column: where the texts are; None takes the first of `TEXT_COLUMNS` that is there.
        source: name of the data set, for messages.

    Raises:
        RecipeError: no such column, or a value in it that is no text.
    """
    name = column or next((name for name in TEXT_COLUMNS if name in rows.column_names), None)
    texts = list(_column(rows, name or "text", "--text_column", source))
    for row, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise RecipeError(
                f"--text_column: row {row} of {source} holds {text!r} in `{name}`, which is no"
                " text. Mend the row, or name another column."
            )
    return texts


def read_labels(rows: "Dataset", column: str, names: Sequence[str], source: str) -> list[int]:
    """Take the labels out of a data set, as numbers: values may be numbers or the names.

    Args:
        rows: what `load_rows` gave.
        column: where the labels are.
        names: name of label 0, label 1 and so on; case does not matter.
        source: name of the data set, for messages.

    Raises:
        RecipeError: no such column, or a value in it that is none of the labels.
    """
    numbers = {value: i for i, name in enumerate(names) for value in (i, str(i), name.lower())}
    labels = []
    for row, value in enumerate(_column(rows, column, "--label_column", source), 1):
        known = value.strip().lower() if isinstance(value, str) else value
        if known not in numbers:
            raise RecipeError(
                f"--class_names: row {row} of {source} has the label {value!r}, which is neither a"
                f" name ({', '.join(names)}) nor a number from 0 to {len(names) - 1}. Name all"
                " labels in the order of their numbers."
            )
        labels.append(numbers[known])
    return labels


def _column(rows: "Dataset", name: str, flag: str, source: str) -> Iterable:
    if name not in rows.column_names:
        raise RecipeError(
            f"{flag}: {source} has no column `{name}`. Its columns are:"
            f" {', '.join(rows.column_names)}. Name one of them."
        )
    return rows[name]


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
    """Train a GPT-2 from scratch, or a base model on, and save it in the hub's format.

    Args:
        texts: what to learn.
        output_dir: folder for the model and its tokenizer.
        config: transformers' TrainingArguments; `seed` covers initial weights and order.
        heldout_texts: texts to measure the loss on, never trained on.
        model_name_or_path: base model to train on; None starts from scratch, tokenizer included.
        sizes: sizes from scratch; the defaults when None.
        before_training: called when all was found fit for training.

    Returns:
        "train_loss", "rows" and "seconds_a_step", and with held-out texts "heldout_loss" and
        "heldout_tokens"; losses in nats per token.

    Raises:
        RecipeError: no texts, or a base model that cannot be loaded.
    """
    _check_texts(texts)
    sizes = sizes or LanguageModelSizes()
    set_seed(config.seed)
    if model_name_or_path is None:
        tokenizer = train_tokenizer(texts, sizes.vocab_size)
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
    rows = language_model_rows(texts, tokenizer, sizes.context_length)
    pad = _pad_language_model_rows
    metrics = _train(model, tokenizer, rows, output_dir, config, pad, before_training)
    if heldout_texts:
        heldout = language_model_rows(heldout_texts, tokenizer, sizes.context_length)
        metrics |= _language_model_loss(model, heldout)
    return metrics


def train_classifier(
    texts: Sequence[str],
    labels: Sequence[int],
    output_dir: str | Path,
    config: TrainingArguments,
    *,
    heldout_texts: Sequence[str] = (),
    heldout_labels: Sequence[int] = (),
    label_names: Sequence[str] = ("NEGATIVE", "POSITIVE"),
    model_name_or_path: str | None = None,
    sizes: ClassifierSizes | None = None,
    before_training: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Train a text classifier from scratch, or a base model on, and save it.

    From scratch it is a small ModernBERT whose classifier reads the mean over all tokens, which
    learns from little text what one summary token does not.

    Args:
        texts: what to classify.
        labels: the number of each text's label.
        output_dir: folder for the model and its tokenizer, in the hub's format.
        config: transformers' TrainingArguments; `seed` covers weights, order and fragments.
        heldout_texts: texts to measure the accuracy on, never trained on.
        heldout_labels: their labels.
        label_names: name of label 0, label 1 and so on.
        model_name_or_path: base model to train on; None starts from scratch, tokenizer included.
        sizes: sizes from scratch, and of the fragments; the defaults when None.
        before_training: called when all was found fit for training.

    Returns:
        "train_loss" in nats per row; with held-out texts "heldout_accuracy" on whole texts (the
        sum over a text's windows decides) and "heldout_texts", how many.

    Raises:
        RecipeError: no texts, a label without a name, or a base model that cannot be loaded.
    """
    _check_texts(texts)
    sizes = sizes or ClassifierSizes()
    _check_labels(labels, len(texts), label_names)
    _check_labels(heldout_labels, len(heldout_texts), label_names)
    set_seed(config.seed)
    names = dict(enumerate(label_names))
    label_map = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    if model_name_or_path is None:
        tokenizer = train_tokenizer(texts, sizes.vocab_size, kind="classifier")
        tokenizer.model_max_length = sizes.context_length
        model = AutoModelForSequenceClassification.from_config(
            ModernBertConfig(
                vocab_size=len(tokenizer),
                hidden_size=sizes.hidden_size,
                intermediate_size=2 * sizes.hidden_size,
                num_hidden_layers=sizes.num_layers,
                num_attention_heads=sizes.num_heads,
                layer_types=["full_attention"] * sizes.num_layers,
                max_position_embeddings=sizes.context_length,
                classifier_pooling="mean",
                embedding_dropout=sizes.dropout,
                mlp_dropout=sizes.dropout,
                classifier_dropout=sizes.dropout,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
                eos_token_id=None,
                cls_token_id=None,
                sep_token_id=None,
                **label_map,
            )
        )
    else:
        model, tokenizer = load_classifier(model_name_or_path, new_head=True, **label_map)
        if model.config.is_encoder_decoder:
            raise RecipeError(
                f"--model_name_or_path: `{model_name_or_path}` is an encoder-decoder. Give an "
                "encoder such as BERT, or a decoder such as GPT-2."
            )
        if tokenizer.pad_token_id is None:  # GPT-2 and its like
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    before, after = _special_frame(tokenizer)

    def row(ids: list[int], label: int) -> Row:
        return {"input_ids": [*before, *ids, *after], "labels": label}

    def pad(batch: list[Row]) -> dict[str, Tensor]:
        return _pad_classifier_rows(batch, tokenizer.pad_token_id)

    draw = random.Random(config.seed)
    lengths = (sizes.min_fragment_tokens, sizes.max_fragment_tokens)
    rows = []
    for index, window in classifier_windows(texts, tokenizer, sizes.context_length):
        cuts = cut_fragments(window, sizes.fragments_per_text, lengths, draw)
        rows += [row(ids, labels[index]) for ids in (window, *cuts)]
    metrics = _train(model, tokenizer, rows, output_dir, config, pad, before_training)
    if heldout_texts:
        windows = classifier_windows(heldout_texts, tokenizer, sizes.context_length)
        owners = [index for index, _ in windows]
        whole = [row(ids, heldout_labels[index]) for index, ids in windows]
        metrics["heldout_accuracy"] = _accuracy(model, whole, owners, heldout_labels, pad)
        metrics["heldout_texts"] = len(heldout_texts)
    return metrics


def language_model_rows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, context_length: int
) -> list[Row]:
    """Tokenize texts, end each with eos, and cut those that are too long into windows.

    Args:
        texts: any number.
        tokenizer: with an eos token.
        context_length: most tokens of a row.
    """
    return [
        {"input_ids": window}
        for ids in _encode(texts, tokenizer)
        for window in _windows([*ids, tokenizer.eos_token_id], context_length)
        if len(window) > 1  # one token alone has nothing to predict
    ]


def classifier_windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, context_length: int
) -> list[tuple[int, list[int]]]:
    """Tokenize texts and cut those that are too long into windows.

    Args:
        texts: N texts.
        tokenizer: the classifier's.
        context_length: longest row, in tokens, the classifier's special tokens included.

    Returns:
        For each window the index of its text and its tokens, still without special ones.
    """
    room = context_length - tokenizer.num_special_tokens_to_add()
    return [
        (index, window)
        for index, ids in enumerate(_encode(texts, tokenizer))
        for window in _windows(ids, room)
    ]


def cut_fragments(
    ids: list[int], count: int, lengths: tuple[int, int], draw: random.Random
) -> list[list[int]]:
    """Cut fragments out of a text, shorter than the text itself.

    Args:
        ids: the tokens of the text.
        count: how many; fewer where the text is not longer than the shortest fragment.
        lengths: shortest and longest fragment, in tokens.
        draw: where chance comes from.

    Returns:
        Fragments; the first, third and so on are beginnings, the others start anywhere.
    """
    shortest, longest = lengths[0], min(lengths[1], len(ids) - 1)
    if longest < shortest:
        return []
    fragments = []
    for number in range(count):
        length = draw.randint(shortest, longest)
        start = draw.randint(0, len(ids) - length) if number % 2 else 0
        fragments.append(ids[start : start + length])
    return fragments


def _encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    return encoded["input_ids"]


def _windows(ids: list[int], length: int) -> list[list[int]]:
    return [ids[start : start + length] for start in range(0, len(ids), length)]


def _special_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
    return ids[: mask.index(0)], ids[len(mask) - mask[::-1].index(0) :]


def _padded(rows: list[list[int]], fill: int) -> Tensor:
    """Rows of token ids, padded on the right, (B, longest)."""
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def _pad_language_model_rows(rows: list[Row]) -> dict[str, Tensor]:
    """Pad by lengths, because GPT-2 has no pad token: input_ids, mask and labels, (B, longest)."""
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": _padded(ids, fill=0),
        "attention_mask": _padded([[1] * len(row) for row in ids], fill=0),
        "labels": _padded(ids, fill=IGNORED),
    }


def _pad_classifier_rows(rows: list[Row], pad_token_id: int) -> dict[str, Tensor]:
    """Pad input_ids and mask to (B, longest); labels are (B,)."""
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": _padded(ids, fill=pad_token_id),
        "attention_mask": _padded([[1] * len(row) for row in ids], fill=0),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


class LossBar(ProgressCallback):
    """transformers' progress bar with the loss at its end, instead of a line for each log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the loss."""
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    output_dir: str | Path,
    config: TrainingArguments,
    pad: Callable[[list[Row]], dict[str, Tensor]],
    before_training: Callable[[], Any] | None,
) -> dict[str, float]:
    """Train, save model and tokenizer; mean loss over all steps, rows, and time."""
    trainer = Trainer(model, config, data_collator=pad, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(LossBar)
    result = train_or_stop(trainer, before_training)
    save_trained(trainer, tokenizer, output_dir)
    return {
        "train_loss": result.training_loss,
        "rows": len(rows),
        "seconds_a_step": result.metrics["train_runtime"] / trainer.state.global_step,
    }


@torch.no_grad()
def _language_model_loss(model: PreTrainedModel, rows: list[Row]) -> dict[str, float]:
    """Mean loss in nats over all predicted tokens, and how many those are."""
    model.eval()
    total, count = 0.0, 0
    for batch in _batches(rows, _pad_language_model_rows, model.device):
        tokens = int((batch["labels"][:, 1:] != IGNORED).sum())
        total += float(model(**batch).loss) * tokens
        count += tokens
    return {"heldout_loss": total / count, "heldout_tokens": count}


@torch.no_grad()
def _accuracy(
    model: PreTrainedModel,
    rows: list[Row],
    owners: Sequence[int],
    labels: Sequence[int],
    pad: Callable[[list[Row]], dict[str, Tensor]],
) -> float:
    """Share of texts whose label wins by the sum of its logits over the text's windows."""
    model.eval()
    logits = torch.cat([model(**batch).logits.cpu() for batch in _batches(rows, pad, model.device)])
    sums = torch.zeros(len(labels), logits.shape[1]).index_add_(0, torch.tensor(owners), logits)
    return float((sums.argmax(1) == torch.tensor(list(labels))).float().mean())


def _batches(
    rows: list[Row], pad: Callable[[list[Row]], dict[str, Tensor]], device: torch.device
) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(rows), EVALUATION_BATCH):
        batch = pad(rows[start : start + EVALUATION_BATCH])
        yield {key: tensor.to(device) for key, tensor in batch.items()}


def _check_texts(texts: Sequence[str]) -> None:
    if not any(text.strip() for text in texts):
        raise RecipeError(f"All {len(texts)} texts to train on are empty. Give at least one.")


def _check_labels(labels: Sequence[int], texts: int, names: Sequence[str]) -> None:
    if len(labels) != texts:
        raise RecipeError(f"Expected one label for each of {texts} texts, got {len(labels)}.")
    for row, label in enumerate(labels, 1):
        if label not in range(len(names)):
            raise RecipeError(
                f"The label of text {row} is {label!r}, but the labels are 0 to {len(names) - 1}"
                f" ({', '.join(names)}). Mend the row, or give every label a name."
            )
