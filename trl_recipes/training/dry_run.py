"""Trying out a training on transformers' Trainer: a few steps, an estimate, nothing left behind."""

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

from transformers import TrainingArguments

from trl_recipes.describe import duration, peak_memory

STEPS = 20


def rehearse(train: Callable[..., dict[str, float]], config: TrainingArguments) -> str:
    """Train for a few steps into a folder that is removed again.

    Args:
        train: `train_language_model` or `train_classifier` with all but `output_dir` and `config`.
        config: of the whole training.

    Returns:
        What was checked, and the time and memory that the whole training will take.

    Raises:
        RecipeError: as `train`.
    """
    with tempfile.TemporaryDirectory() as folder:
        short = copy.copy(config)
        short.max_steps = STEPS if config.max_steps <= 0 else min(STEPS, config.max_steps)
        short.output_dir, short.save_strategy, short.resume_from_checkpoint = folder, "no", None
        tried = train(output_dir=Path(folder) / "model", config=short)
    step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    step *= config.world_size
    steps = math.ceil(math.ceil(tried["rows"] / step) * config.num_train_epochs)
    steps = config.max_steps if config.max_steps > 0 else steps
    return (
        f"Checked with {short.max_steps} steps, nothing kept: the data, the model, its loss "
        f"({tried['train_loss']:.2f} nats) and how it is saved.\n"
        f"The whole training will take about {duration(steps * tried['seconds_a_step'])} ({steps} "
        f"steps of {tried['seconds_a_step']:.2g} s) and {peak_memory():.1f} GB of memory."
    )
