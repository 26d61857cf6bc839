"""A decoder-only transformer over characters, trained from scratch on random windows of a text."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from trl_recipes.callbacks import LossLog, train_or_stop
from trl_recipes.data.characters import RandomWindows, encode
from trl_recipes.errors import RecipeError
from trl_recipes.models.adapters import save_trained
from trl_recipes.run_folder import RunFolder
from trl_recipes.settings import check_range
from trl_recipes.training.language_model import LossBar, PretrainConfig

INITIAL_SPREAD = 0.06  # of the weights; 0.02, the usual one, learns slower at these widths
MEASURED = 8  # times on the way
MEASURED_WINDOWS = 128  # of the held-out text, on the way; all of it at the end
EVALUATION_BATCH = 64


@dataclass
class BaselineConfig:
    """Sizes of the character-level model, and how it is trained before GRPO."""

    n_layer: int = field(default=2, metadata={"help": "Transformer blocks."})
    n_head: int = field(default=4, metadata={"help": "Attention heads a block; divides n_embd."})
    n_embd: int = field(default=128, metadata={"help": "Width of the model."})
    context_length: int = field(default=96, metadata={"help": "Longest row, in characters."})
    baseline_steps: int = field(default=2000, metadata={"help": "Steps of the baseline."})
    baseline_batch_size: int = field(default=8, metadata={"help": "Windows a step."})
    baseline_learning_rate: float = field(
        default=4e-3, metadata={"help": "Peak learning rate of the baseline."}
    )

    def __post_init__(self):
        for setting in fields(self):
            check_range(setting.name, getattr(self, setting.name))
        if self.n_embd % (2 * self.n_head):
            raise RecipeError(
                f"--n_embd ({self.n_embd}) must be a multiple of twice --n_head ({self.n_head}): "
                "every head gets an equal and even part of the width. Set --n_embd to "
                f"{_numbers(_near_multiples(self.n_embd, 2 * self.n_head))}, or --n_head to "
                f"{_numbers(_near_divisors(self.n_embd // 2, self.n_head))}."
            )

    def training(self, output_dir: str | Path, **shared: Any) -> PretrainConfig:
        """Settings of the training, for transformers' Trainer.

        Args:
            output_dir: the run folder of the baseline.
            **shared: further TrainingArguments, such as `seed`.
        """
        every = max(1, self.baseline_steps // MEASURED)
        return PretrainConfig(
            output_dir=str(output_dir),
            max_steps=self.baseline_steps,
            per_device_train_batch_size=self.baseline_batch_size,
            per_device_eval_batch_size=EVALUATION_BATCH,
            learning_rate=self.baseline_learning_rate,
            train_sampling_strategy="random",
            logging_steps=max(1, self.baseline_steps // 100),
            eval_strategy="steps",
            eval_steps=every,
            prediction_loss_only=True,
            dataloader_pin_memory=torch.accelerator.is_available(),  # else torch warns
            **shared,
        )


def _near_multiples(number: int, factor: int) -> list[int]:
    below = number // factor * factor
    return [multiple for multiple in (below, below + factor) if multiple]


def _near_divisors(number: int, wanted: int) -> list[int]:
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return sorted(sorted(divisors, key=lambda n: abs(n - wanted))[:3])


def _numbers(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))


def new_model(
    sizes: BaselineConfig, tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    """Make a transformer with random weights.

    A Llama: embedding, blocks of multi-head self-attention and feed-forward, each behind a layer
    norm (its root-mean-square kind), a last norm and a linear head. Its rotary positions know
    distances rather than places, which is what windows cut out of a text anywhere need: a GPT-2 of
    the same size is at 2.20 nats where this is at 1.46 (200 steps of 16 windows of 128).

    Args:
        sizes: layers, heads, width, context.
        tokenizer: of characters.
        seed: of the weights.
    """
    set_seed(seed)
    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=sizes.context_length,
            num_hidden_layers=sizes.n_layer,
            num_attention_heads=sizes.n_head,
            hidden_size=sizes.n_embd,
            intermediate_size=8 * sizes.n_embd // 3,
            initializer_range=INITIAL_SPREAD,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train_baseline(
    text: str,
    heldout_text: str,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    config: TrainingArguments,
    *,
    sizes: BaselineConfig,
    before_training: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Train a model from scratch with cross-entropy on random windows, and save it.

    Args:
        text: what to learn.
        heldout_text: what the loss is measured on, never trained on.
        tokenizer: of characters.
        output_dir: folder for model and tokenizer.
        config: of the training; `output_dir` is the run folder that gets the losses.
        sizes: of the model.
        before_training: called when all was found fit for training.

    Returns:
        "train_loss" (mean over the run), "heldout_loss" in nats a character, "heldout_characters",
        "rows" and "seconds_a_step".

    Raises:
        RunStopped: SIGTERM or Ctrl-C came, and a checkpoint was written.
    """
    model = new_model(sizes, tokenizer, config.seed)
    length, batch = sizes.context_length, config.per_device_train_batch_size
    ids, heldout_ids = encode(text, tokenizer), encode(heldout_text, tokenizer)
    rows = RandomWindows(ids, length, config.max_steps * batch * config.world_size, config.seed)
    heldout = heldout_ids[: len(heldout_ids) // length * length].view(-1, length)
    some = [{"input_ids": window} for window in heldout[:MEASURED_WINDOWS]]
    curve = LossLog(RunFolder(Path(config.output_dir)).all_stats)
    trainer = Trainer(model, config, _stack, train_dataset=rows, eval_dataset=some)
    trainer.add_callback(curve)
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(LossBar)
    result = train_or_stop(trainer, before_training)
    heldout_loss = mean_loss(model, heldout)
    save_trained(trainer, tokenizer, output_dir)
    return {
        "train_loss": result.training_loss,
        "heldout_loss": heldout_loss,
        "heldout_characters": heldout.numel() - len(heldout),
        "rows": len(rows),
        "seconds_a_step": result.metrics["train_runtime"] / trainer.state.global_step,
    }


@torch.no_grad()
def mean_loss(model: PreTrainedModel, windows: Tensor) -> float:
    """Cross-entropy of a model on windows of characters.

    Args:
        model: put into eval mode.
        windows: token ids, (N, length).

    Returns:
        Nats a character, over all but the first of each window.
    """
    model.eval()
    total = 0.0
    for batch in windows.split(EVALUATION_BATCH):
        ids = batch.to(model.device)
        total += float(model(input_ids=ids, labels=ids).loss) * len(batch)
    return total / len(windows)


def _stack(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Windows of one length into input_ids and labels, (B, length)."""
    ids = torch.stack([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": ids}
