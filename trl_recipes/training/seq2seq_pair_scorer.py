"""A reward model of rewrites: one number for a source and an output, read together.

It is a standard sequence classifier of one label, on the pretrained model's weights, so that it is
saved in the hub's format and loads as any other reward model. It reads source and output as a pair
of texts, with what its tokenizer puts between two (`source </s> output </s>` for T5), and
`reads_pairs` in its config.json tells `RewardModelReward` to give them so.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from trl_recipes.callbacks import train_or_stop
from trl_recipes.models.adapters import save_trained
from trl_recipes.models.forward import context_length
from trl_recipes.models.loading import load_classifier
from trl_recipes.rewards.models import encode_pairs, longest_input
from trl_recipes.training.seq2seq_comparisons import Comparison
from trl_recipes.training.seq2seq_pretraining import EVALUATION_BATCH, quiet

HELD_OUT = 10  # every so-manieth comparison is kept to measure on


class ComparisonTrainer(Trainer):
    """transformers' Trainer with the loss of scores or of preferences."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Squared error of scores, or minus the log-probability that the chosen one wins.

        Bradley and Terry 1952: a text of logit a wins over one of logit b with probability
        sigmoid(a - b).

        Args:
            model: the scorer.
            inputs: a batch, as the collator makes it.
            return_outputs: whether to give the logits too.
            num_items_in_batch: transformers', not used.
        """
        rows = inputs["rows"]
        logits = row_logits(model, self.processing_class, rows)
        score = row_scores(rows, logits)
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
        start: the model to start from: the pretrained encoder-decoder, which knows the texts.
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

    trainer = ComparisonTrainer(
        model,
        args,
        data_collator=lambda batch: {"rows": batch},
        train_dataset=rows,
        processing_class=tokenizer,
    )
    quiet(trainer)
    result = train_or_stop(trainer, before_training)
    save_trained(trainer, tokenizer, output_dir)
    return {
        "train_loss": result.training_loss,
        "seconds_a_step": result.metrics["train_runtime"] / trainer.state.global_step,
        **measure(model, tokenizer, held),
        "heldout": len(held),
    }


def row_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Comparison]
) -> Tensor:
    """Let the reward model read comparisons.

    Args:
        model: the reward model, or what averages its gradients over processes around it.
        tokenizer: its own.
        rows: B of one kind.

    Returns:
        Logits of B outputs, (B,), or of B chosen texts and then B rejected ones, (2 B,).
    """
    inner = getattr(model, "module", model)
    kinds = ("output",) if "output" in rows[0] else ("chosen", "rejected")
    sources = [row["source"] for _ in kinds for row in rows]
    outputs = [row[kind] for kind in kinds for row in rows]
    inputs = encode_pairs(tokenizer, sources, outputs, longest_input(inner, tokenizer))
    inputs = {name: tensor.to(inner.device) for name, tensor in inputs.items()}
    return model(**inputs).logits[:, 0]


def row_scores(rows: Sequence[Comparison], like: Tensor) -> Tensor | None:
    """Give the scores of comparisons, (B,); None for preferences.

    Args:
        rows: B of one kind.
        like: a tensor of the device and type wanted.
    """
    if "score" not in rows[0]:
        return None
    return like.new_tensor([float(row["score"]) for row in rows])


@torch.no_grad()
def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Comparison]
) -> dict[str, float]:
    """Hold a reward model to comparisons that it has not seen.

    Args:
        model: the reward model.
        tokenizer: its own.
        rows: of one kind; two or more.

    Returns:
        "correlation" for scores, "accuracy" for preferences.
    """
    model.eval()
    batches = [rows[i : i + EVALUATION_BATCH] for i in range(0, len(rows), EVALUATION_BATCH)]
    logits = [row_logits(model, tokenizer, batch) for batch in batches]
    if "score" not in rows[0]:
        wins = [chosen > rejected for chosen, rejected in (values.chunk(2) for values in logits)]
        return {"accuracy": float(torch.cat(wins).float().mean())}
    scores = [row_scores(batch, logits[0]) for batch in batches]
    both = torch.stack([torch.cat(logits), torch.cat(scores)])
    return {"correlation": float(torch.corrcoef(both)[0, 1])}


def _classifier(start: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A classifier with one label, on the weights of another model, whose head is new."""
    said = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # that a head is new goes without saying here
    try:
        model, tokenizer = load_classifier(start, new_head=True, num_labels=1)
    finally:
        transformers_logging.set_verbosity(said)
    model.config.reads_pairs, model.config.problem_type = True, "regression"
    positions = context_length(model.config)
    longest = positions or 2 * tokenizer.model_max_length  # relative positions take any length
    tokenizer.model_max_length = min(longest, 1_000_000_000)
    return model, tokenizer
