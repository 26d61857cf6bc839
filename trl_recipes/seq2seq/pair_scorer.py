"""A reward model of rewrites: one number for a source and an output, read together.

It is a standard sequence classifier with one label, so that it loads as any other reward model. It
reads the source and the output as a pair of texts, with the separator that its tokenizer puts
between two (`source </s> output </s>` for T5), and `reads_pairs` in its config.json tells
`RewardModelReward` to give them so.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from trl_recipes import hub
from trl_recipes.forward import context_length
from trl_recipes.rewards.scorer import encode_pairs
from trl_recipes.seq2seq.comparisons import Comparison
from trl_recipes.seq2seq.pretraining import EVALUATION_BATCH, quiet
from trl_recipes.stopping import train_or_stop

HELD_OUT = 10  # every so-manieth comparison is kept to measure on


class ComparisonTrainer(Trainer):
    """transformers' Trainer with the loss of scores or of preferences."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Squared error of scores, or minus the log-probability that the chosen one wins.

        Bradley and Terry 1952: a text of logit a wins over one of logit b with probability
        sigmoid(a - b).
        """
        score = inputs.pop("score", None)
        logits = model(**inputs).logits[:, 0]
        if score is None:
            chosen, rejected = logits.chunk(2)
            loss = -nn.functional.logsigmoid(chosen - rejected).mean()
        else:
            loss = nn.functional.mse_loss(logits, score)
        return (loss, {"logits": logits}) if return_outputs else loss


def train_pair_scorer(
    comparisons: Sequence[Comparison],
    start: str | Path,
    output_dir: Path,
    args: TrainingArguments,
    *,
    before_training: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Train a reward model on scored outputs or preferences, and save it.

    Args:
        comparisons: rows of one kind; every tenth is held out.
        start: the model to start from: the pretrained encoder-decoder, which knows the texts, or
            any other that has a sequence-classification class.
        output_dir: folder for the model and its tokenizer.
        args: transformers' settings.
        before_training: called when all was found fit for training.

    Returns:
        "train_loss" and "seconds_a_step"; on the held-out rows "correlation" of logits and scores
        (Pearson's r), or "accuracy", the share of preferences whose chosen text wins; and
        "heldout", the number of these rows.

    Raises:
        RecipeError: the model cannot be loaded.
    """
    set_seed(args.seed)
    model, tokenizer = _classifier(str(start))
    held = [row for number, row in enumerate(comparisons) if number % HELD_OUT == 1]
    rows = [row for number, row in enumerate(comparisons) if number % HELD_OUT != 1]
    args.remove_unused_columns, args.train_sampling_strategy = False, "random"  # rows are texts

    def pad(batch: list[Comparison]) -> dict[str, Tensor]:
        return pad_comparisons(batch, tokenizer)

    trainer = quiet(ComparisonTrainer(model, args, data_collator=pad, train_dataset=rows))
    result = train_or_stop(trainer, before_training)
    if trainer.is_world_process_zero():
        model.save_pretrained(output_dir)
        tokenizer.save_pretrained(output_dir)
    trainer.accelerator.wait_for_everyone()
    return {
        "train_loss": result.training_loss,
        "seconds_a_step": result.metrics["train_runtime"] / trainer.state.global_step,
        **measure(model, held, pad),
        "heldout": len(held),
    }


def pad_comparisons(
    rows: Sequence[Comparison], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Tensor]:
    """Tokenize and pad: B scored outputs with their scores, or B chosen before B rejected texts.

    Args:
        rows: of one kind.
        tokenizer: the reward model's.
    """
    kinds = ("output",) if "output" in rows[0] else ("chosen", "rejected")
    sources = [row["source"] for _ in kinds for row in rows]
    outputs = [row[kind] for kind in kinds for row in rows]
    inputs = dict(encode_pairs(tokenizer, sources, outputs, tokenizer.model_max_length))
    if "score" in rows[0]:
        inputs["score"] = torch.tensor([float(row["score"]) for row in rows])
    return inputs


@torch.no_grad()
def measure(
    model: PreTrainedModel, rows: Sequence[Comparison], pad: Callable[..., dict[str, Tensor]]
) -> dict[str, float]:
    """Hold a reward model to comparisons that it has not seen.

    Args:
        model: the reward model.
        rows: of one kind; two or more.
        pad: makes a batch of them.

    Returns:
        "correlation" for scores, "accuracy" for preferences.
    """
    model.eval()
    logits, scores, wins = [], [], []
    for start in range(0, len(rows), EVALUATION_BATCH):
        batch = {
            k: v.to(model.device) for k, v in pad(rows[start : start + EVALUATION_BATCH]).items()
        }
        score = batch.pop("score", None)
        values = model(**batch).logits[:, 0]
        if score is None:
            chosen, rejected = values.chunk(2)
            wins.append((chosen > rejected).float())
        else:
            logits.append(values)
            scores.append(score)
    if wins:
        return {"accuracy": float(torch.cat(wins).mean())}
    both = torch.stack([torch.cat(logits), torch.cat(scores)])
    return {"correlation": float(torch.corrcoef(both)[0, 1])}


def _classifier(start: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A classifier with one label, on the weights of another model, whose head is new."""
    name = hub.resolve(start, "model")
    said = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # that a head is new goes without saying here
    try:
        with hub.loading(name, "model"):
            tokenizer = AutoTokenizer.from_pretrained(name)
            model = AutoModelForSequenceClassification.from_pretrained(
                name, num_labels=1, dtype=torch.float32
            )
    finally:
        transformers_logging.set_verbosity(said)
    model.config.reads_pairs, model.config.problem_type = True, "regression"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    positions = context_length(model.config)
    longest = positions or 2 * tokenizer.model_max_length  # relative positions take any length
    tokenizer.model_max_length = min(longest, 1_000_000_000)
    return model, tokenizer
