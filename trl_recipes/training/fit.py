"""One way to fit a model with transformers' Trainer: train, evaluate, save, or try a few steps."""

import copy
import math
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from trl_recipes.callbacks import show_progress, train_or_stop
from trl_recipes.describe import duration, peak_memory
from trl_recipes.embedded import language_model
from trl_recipes.models.adapters import save_trained
from trl_recipes.models.sharding import check_embeddings, wrap_by_layer
from trl_recipes.settings import OwnArguments, setting

IGNORED = -100  # label of a position that the loss leaves out
DRY_RUN_STEPS = 20
# How a stage names a setting of the Trainer's, behind its own name.
_STAGE_SETTINGS = {"steps": "max_steps", "epochs": "num_train_epochs"}
_STAGE_SETTINGS |= {"batch_size": "per_device_train_batch_size", "learning_rate": "learning_rate"}


@dataclass
class PretrainConfig(OwnArguments, TrainingArguments):
    """transformers' TrainingArguments with the defaults that small models from scratch want."""

    output_dir: str = setting("runs/lm", "Folder that the run writes to; the model is in it.")
    overwrite_output_dir: bool = setting(False, "Replace the run that the output folder holds.")
    learning_rate: float | None = setting(
        None, "Peak learning rate of AdamW (default: 5e-5 from a base model of yours, else 1e-3)."
    )
    num_train_epochs: float = setting(1.0, "Passes over the texts.")
    per_device_train_batch_size: int = setting(8, "Rows per process and step.")
    per_device_eval_batch_size: int = setting(64, "Held-out rows per process in one forward pass.")
    adam_beta2: float = setting(0.99, "How long AdamW remembers squared gradients.")
    lr_scheduler_type: str = setting("cosine", "How the learning rate falls after the warm-up.")
    warmup_steps: float = setting(0.05, "Steps of rising learning rate; below 1 a fraction of all.")
    weight_decay: float = setting(0.01, "Weight decay of AdamW.")
    train_sampling_strategy: str = setting("group_by_length", "Rows of like length share a batch.")
    save_strategy: str = setting("steps", "Checkpoints on the way: no, steps or epoch.")
    save_steps: float = setting(500, "Steps from one checkpoint to the next.")
    save_total_limit: int | None = setting(1, "Checkpoints to keep.")
    check: bool = setting(False, "Check all and try a few steps; write nothing.")
    report_to: str | list[str] | None = setting("none", "Trackers to report to.")


def with_learning_rate(config: TrainingArguments, model: PreTrainedModel) -> TrainingArguments:
    """Choose the learning rate where none was given, in a copy: good weights want a small one."""
    config = copy.copy(config)
    if config.learning_rate is None:  # a model from scratch has no name
        config.learning_rate = 1e-3 if model.name_or_path in ("", str(language_model())) else 5e-5
    return config


def stage_settings(args: Any, stage: str, config: TrainingArguments) -> dict[str, Any]:
    """Collect a stage's settings: those of `args` named after it, and what it has of `config`."""
    own = {f"{stage}_{flag}": name for flag, name in _STAGE_SETTINGS.items()}
    settings = {name: getattr(args, flag) for flag, name in own.items() if hasattr(args, flag)}
    shared = ("seed", "use_cpu", "bf16", "report_to", "disable_tqdm", "check")
    return settings | {name: getattr(config, name) for name in shared}


def fit(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    *,
    heldout: Any = None,
    before_training: Callable[[], AbstractContextManager] | None = None,
    before_saving: Callable[[], Any] = lambda: None,
) -> dict[str, float]:
    """Train a model, evaluate it on held-out rows, and save it with its tokenizer.

    Both go to `output_dir`; the run folder is that of `trainer.args`. `before_training` returns a
    context that is entered around the training; see `train_or_stop`. Returns "train_loss" (mean
    over the run), "rows", "seconds" and "seconds_per_step"; with held-out rows also "heldout_loss"
    and the trainer's own metrics with the same prefix.
    """
    trainer.args = with_learning_rate(trainer.args, trainer.model)
    show_progress(trainer)
    check_embeddings(trainer.model, trainer.accelerator)
    wrap_by_layer(trainer.model, trainer.accelerator)
    result = train_or_stop(trainer, before_training)
    figures = {
        "train_loss": _mean_loss(trainer, result.training_loss),
        "rows": len(trainer.train_dataset),
        "seconds": result.metrics["train_runtime"],
        "seconds_per_step": result.metrics["train_runtime"] / max(1, trainer.state.global_step),
    }
    before_saving()
    save_trained(trainer, tokenizer, output_dir)
    if heldout:
        trainer.args.train_sampling_strategy = "random"  # else rows are evaluated out of order
        found = trainer.evaluate(heldout, metric_key_prefix="heldout")
        timed = ("_runtime", "_per_second", "_time")
        names = (n for n in found if n.startswith("heldout_") and not n.endswith(timed))
        figures |= {name: found[name] for name in names}
    return figures


def _mean_loss(trainer: Trainer, of_session: float) -> float:
    """Average the loss over the run: what was logged up to its checkpoint, and the session."""
    state, began = trainer.state, trainer._initial_global_step
    logged = [row for row in state.log_history if "loss" in row and row["step"] <= began]
    steps = [0, *(row["step"] for row in logged)]
    total = of_session * (state.global_step - began)
    total += sum(
        row["loss"] * (row["step"] - step) for row, step in zip(logged, steps, strict=False)
    )
    counted = state.global_step - began + steps[-1]
    return total / counted if counted else math.nan


def dry_run(
    train: Callable[..., dict[str, float]], config: TrainingArguments, folder: Path | None = None
) -> str:
    """Train for a few steps, and say what the whole training will take.

    `train` is called with `output_dir` and `config`, and returns what `fit` does. Only a `folder`
    that is given keeps the model.
    """
    with tempfile.TemporaryDirectory() as passing:
        short = copy.copy(config)
        short.max_steps = min(DRY_RUN_STEPS, config.max_steps if config.max_steps > 0 else math.inf)
        short.output_dir, short.save_strategy, short.resume_from_checkpoint = passing, "no", None
        tried = train(output_dir=folder or Path(passing) / "model", config=short)
    step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    step *= config.world_size
    steps = math.ceil(math.ceil(tried["rows"] / step) * config.num_train_epochs)
    steps = config.max_steps if config.max_steps > 0 else steps
    return (
        f"Checked with {short.max_steps} steps, nothing kept: the data, the model, its loss "
        f"({tried['train_loss']:.2f} nats) and how it is saved.\n"
        f"The whole training will take about {duration(steps * tried['seconds_per_step'])} ({steps}"
        f" steps of {tried['seconds_per_step']:.2g} s) and {peak_memory():.1f} GB of memory."
    )


def token_losses(logits: Tensor | tuple[Tensor, ...], labels: Tensor, shift: bool) -> Tensor:
    """Compute the cross-entropy of each token, (B, T), 0 where its label is ignored.

    `logits`: (B, T, V), or what an encoder-decoder returns beside them. `labels`: (B, T). `shift`:
    whether logits predict the next position, as a decoder's do.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    if shift:
        labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), labels, reduction="none", ignore_index=IGNORED
    )


def mean_token_loss(found: EvalPrediction, shift: bool) -> dict[str, float]:
    """Average what `token_losses` gave over all tokens: "loss" in nats per token, and "tokens"."""
    tokens = int((found.label_ids[:, shift:] != IGNORED).sum())
    losses = found.predictions[found.predictions != IGNORED]  # the Trainer pads with it
    return {"loss": float(losses.sum(dtype=float)) / tokens, "tokens": tokens}
