"""A reward model of rewrites: one number for a source and an output, read together.

It is a sequence classifier of one label on the pretrained model's weights, and loads as any other
reward model. It reads a pair of texts (`source </s> output </s>` for T5); `reads_pairs` in its
config.json tells `RewardModelReward` to give them so.
"""

import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from trl_recipes.data.files import load_rows
from trl_recipes.errors import RecipeError
from trl_recipes.models.forward import context_length
from trl_recipes.models.loading import load_classifier, load_run
from trl_recipes.models.sampling import generate_responses
from trl_recipes.rewards import RewardFunc, RewardModelReward
from trl_recipes.rewards.models import encode_pairs, longest_input
from trl_recipes.training.fit import fit
from trl_recipes.training.language_model import check_values
from trl_recipes.training.reward_data import is_number
from trl_recipes.training.reward_model import RewardModelConfig, Row, score_trainer
from trl_recipes.training.seq2seq import Pair, longest_text, tokenize

_log = logging.getLogger(__name__)

HELD_OUT = 10  # each tenth comparison is kept to measure on

# {"source", "output", "score"}, or {"source", "chosen", "rejected"}.
Comparison = dict[str, Any]


def load_comparisons(dataset_name: str) -> list[Comparison]:
    """Load scored outputs or preferences; of the latter, those of two equal texts are left out."""
    rows = load_rows(dataset_name, split="train")
    kinds = (("source", "output", "score"), ("source", "chosen", "rejected"))
    columns = next((kind for kind in kinds if set(kind) <= set(rows.column_names)), None)
    if columns is None:
        raise RecipeError(
            f"--comparisons: `{dataset_name}` has the columns {', '.join(rows.column_names)}. "
            "Give source, output and score, or source, chosen and rejected."
        )
    for name in columns:
        fits = is_number if name == "score" else lambda value: isinstance(value, str)
        fault = f"in `{name}`. Give a {'number' if name == 'score' else 'text'}."
        check_values(rows[name][:], fits, "--comparisons", f"`{dataset_name}`", fault)
    found = list(rows.select_columns(list(columns)))
    told = [row for row in found if row.get("chosen") is None or row["chosen"] != row["rejected"]]
    if len(told) < len(found):
        equal = len(found) - len(told)
        _log.warning("%d of %d preferences have two equal texts: left out.", equal, len(found))
    if len(told) < 2:
        raise RecipeError(f"--comparisons: `{dataset_name}` leaves {len(told)} rows. Give more.")
    return told


def sampled_outputs(start: str, sources: Sequence[str], *, longest: int, seed: int) -> list[str]:
    """Sample what an encoder-decoder, by folder or hub name, makes of each source."""
    model, tokenizer = load_run(start)
    model.to(PartialState().device)
    ids = tokenize(sources, tokenizer, longest_text(model, tokenizer), "cut", "source")
    torch.manual_seed(seed)
    queries = [torch.tensor(row) for row in ids]
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    outputs = generate_responses(model, queries, max_new_tokens=longest, batch_size=256, **ends)
    return tokenizer.batch_decode(outputs, skip_special_tokens=True)


def swap_sources(
    sources: Sequence[str], outputs: Sequence[str], fraction: float
) -> tuple[list[str], list[str]]:
    """Add a fraction of the outputs once more, beside another source."""
    swapped = round(len(outputs) * fraction)
    others = [*sources[swapped:], *sources[:swapped]][:swapped]
    return [*sources, *others], [*outputs, *outputs[:swapped]]


def scored(
    sources: Sequence[str], outputs: Sequence[str], judge: RewardFunc, noise: float, seed: int
) -> list[Comparison]:
    """Let a function score outputs, with errors as people make them, in random order.

    `judge`: an output that it gives None is left out. `noise`: standard deviation of the errors, in
    the unit of the score.
    """
    scores = judge(prompts=list(sources), completions=list(outputs))
    draw = random.Random(seed)
    rows = [
        {"source": source, "output": output, "score": score + draw.gauss(0.0, noise)}
        for source, output, score in zip(sources, outputs, scores, strict=True)
        if score is not None
    ]
    return draw.sample(rows, len(rows))


def preferred(pairs: Sequence[Pair], outputs: Sequence[str], seed: int) -> list[Comparison]:
    """Prefer each pair's target to the model's output, the source, and another pair's target."""
    others = random.Random(seed).sample(range(len(pairs)), len(pairs))
    return [
        {"source": pair["source"], "chosen": pair["target"], "rejected": rejected}
        for pair, output, other in zip(pairs, outputs, others, strict=True)
        for rejected in (output, pair["source"], pairs[other]["target"])
        if rejected != pair["target"]
    ]


def train_pair_scorer(
    comparisons: Sequence[Comparison],
    start: str | Path,
    output_dir: str | Path,
    config: RewardModelConfig,
    *,
    before_training: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Train a reward model on comparisons of one kind, each tenth held out, and save it.

    `start` is the pretrained encoder-decoder, which knows the texts. Returns what `fit` does; of
    the "heldout" rows "correlation" of logits and scores (Pearson's r), or "accuracy", the fraction
    of preferences whose chosen text wins.
    """
    set_seed(config.seed)
    model, tokenizer = _start_scorer(str(start))
    held = comparisons[1::HELD_OUT]
    rows = [row for number, row in enumerate(comparisons) if number % HELD_OUT != 1]
    trainer = score_trainer(model, tokenizer, _encode(rows, model, tokenizer), config)
    figures = fit(trainer, tokenizer, output_dir, before_training=before_training)
    reward = RewardModelReward(output_dir)

    def scores(kind: str) -> torch.Tensor:
        return torch.tensor(reward([row["source"] for row in held], [row[kind] for row in held]))

    if "score" in held[0]:
        true = torch.tensor([float(row["score"]) for row in held])
        figures["correlation"] = float(torch.corrcoef(torch.stack([scores("output"), true]))[0, 1])
    else:
        figures["accuracy"] = float((scores("chosen") > scores("rejected")).float().mean())
    return figures | {"heldout": len(held)}


def _encode(
    rows: Sequence[Comparison], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[Row]:
    """Tokenize comparisons for `score_trainer`, as `RewardModelReward` does."""
    sources, longest = [row["source"] for row in rows], longest_input(model, tokenizer)

    def ids(kind: str) -> list[list[int]]:
        found = encode_pairs(tokenizer, sources, [row[kind] for row in rows], longest)
        pairs = zip(found["input_ids"], found["attention_mask"], strict=True)
        return [row[mask.bool()].tolist() for row, mask in pairs]

    if "score" in rows[0]:
        scores = [float(row["score"]) for row in rows]
        columns = {"input_ids": ids("output"), "labels": scores}
    else:
        columns = {"chosen_ids": ids("chosen"), "rejected_ids": ids("rejected")}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _start_scorer(start: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Put a new head with one label on the weights of another model."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # that a head is new goes without saying here
    try:
        model, tokenizer = load_classifier(start, new_head=True, num_labels=1)
    finally:
        transformers_logging.set_verbosity(verbosity)
    model.config.reads_pairs, model.config.problem_type = True, "regression"
    positions = context_length(model.config)
    longest = positions or 2 * tokenizer.model_max_length  # relative positions take any length
    tokenizer.model_max_length = min(longest, 1_000_000_000)
    return model, tokenizer
