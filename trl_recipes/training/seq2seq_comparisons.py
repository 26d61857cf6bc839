"""What a reward model of rewrites learns from: outputs with scores, or preferences."""

import logging
import random
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState

from trl_recipes.data.files import load_rows
from trl_recipes.errors import RecipeError
from trl_recipes.models.loading import load_run
from trl_recipes.models.sampling import generate_responses
from trl_recipes.rewards.base import RewardFunc
from trl_recipes.training.seq2seq_pairs import Pair, tokenize
from trl_recipes.training.seq2seq_pretraining import longest_text

_log = logging.getLogger(__name__)

# {"source", "output", "score"}, or {"source", "chosen", "rejected"}.
Comparison = dict[str, Any]


def load_comparisons(dataset_name: str) -> list[Comparison]:
    """Load scored outputs (source, output, score) or preferences (source, chosen, rejected).

    Preferences whose two texts are equal say nothing; they are left out and counted.

    Args:
        dataset_name: as in `load_rows`.

    Returns:
        Rows of one of the two kinds.

    Raises:
        RecipeError: as `load_rows`; neither kind's columns are there, a value is of another type,
            or nothing is left.
    """
    rows = load_rows(dataset_name, split="train")
    kinds = (("source", "output", "score"), ("source", "chosen", "rejected"))
    columns = next((kind for kind in kinds if set(kind) <= set(rows.column_names)), None)
    if columns is None:
        raise RecipeError(
            f"--comparisons: `{dataset_name}` has the columns {', '.join(rows.column_names)}. "
            "Give source, output and score, or source, chosen and rejected."
        )
    found = [{name: row[name] for name in columns} for row in rows]
    for number, row in enumerate(found, 1):
        for name, value in row.items():
            fits = isinstance(value, int | float if name == "score" else str)
            if not fits or value != value:
                raise RecipeError(
                    f"--comparisons: row {number} of `{dataset_name}` holds {value!r} in "
                    f"`{name}`. Give a {'number' if name == 'score' else 'text'}."
                )
    told = [row for row in found if row.get("chosen") is None or row["chosen"] != row["rejected"]]
    if len(told) < len(found):
        equal = len(found) - len(told)
        _log.warning("%d of %d preferences have two equal texts: left out.", equal, len(found))
    if len(told) < 2:
        raise RecipeError(f"--comparisons: `{dataset_name}` leaves {len(told)} rows. Give more.")
    return told


def sampled_outputs(start: str, sources: Sequence[str], *, longest: int, seed: int) -> list[str]:
    """Sample what a model makes of each source.

    Args:
        start: folder or hub name of an encoder-decoder.
        sources: texts.
        longest: most tokens of an output.
        seed: of the sampling.
    """
    model, tokenizer = load_run(start)
    model.to(PartialState().device)
    ids = tokenize(sources, tokenizer, longest_text(model, tokenizer), "cut", "source")
    torch.manual_seed(seed)
    outputs = generate_responses(
        model,
        [torch.tensor(row) for row in ids],
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_new_tokens=longest,
        batch_size=256,
    )
    return tokenizer.batch_decode(outputs, skip_special_tokens=True)


def scored(
    sources: Sequence[str], outputs: Sequence[str], judge: RewardFunc, noise: float, seed: int
) -> list[Comparison]:
    """Let a function score outputs, with errors as people make them.

    Args:
        sources: N texts.
        outputs: N texts.
        judge: gives each a number; None leaves it out.
        noise: spread of the errors, in the unit of the score.
        seed: of the errors and of the order.

    Returns:
        Rows {"source", "output", "score"} in an order of chance.
    """
    scores = judge(prompts=list(sources), completions=list(outputs))
    chance = random.Random(seed)
    rows = [
        {"source": source, "output": output, "score": score + chance.gauss(0.0, noise)}
        for source, output, score in zip(sources, outputs, scores, strict=True)
        if score is not None
    ]
    return chance.sample(rows, len(rows))


def preferred(pairs: Sequence[Pair], outputs: Sequence[str], seed: int) -> list[Comparison]:
    """Prefer each pair's own target to other texts: the model's output, the source, another target.

    Args:
        pairs: N of them.
        outputs: what a model made of their sources.
        seed: of the choice of the other targets.
    """
    others = random.Random(seed).sample(range(len(pairs)), len(pairs))
    return [
        {"source": pair["source"], "chosen": pair["target"], "rejected": rejected}
        for pair, output, other in zip(pairs, outputs, others, strict=True)
        for rejected in (output, pair["source"], pairs[other]["target"])
        if rejected != pair["target"]
    ]
