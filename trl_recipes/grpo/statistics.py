"""What a sampled batch of GRPO and RLOO looks like, in numbers."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trl_recipes.stats import distinct_n

ROUNDING = 1e-6  # of float32, beside the size of the scores


def weighted_totals(by_function: Tensor, weights: Tensor) -> Tensor:
    """Sum the values of reward functions, (B, functions), to (B,); nan where none scored."""
    totals = (by_function * weights.to(by_function.device)).nansum(1)
    return totals.masked_fill(by_function.isnan().all(1), torch.nan)


def batch_statistics(
    totals: Tensor,
    num_generations: int,
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    metrics: Mapping[str, Sequence[float]],
) -> dict[str, float]:
    """Measure score, variety and length of a batch, and how many groups have equal scores.

    `totals` (B,), `texts`, `ids` and what each of the `metrics` gave are of all processes.
    """
    scored = totals[~totals.isnan()]
    groups = totals.view(-1, num_generations)
    groups = torch.where(groups.isnan(), groups.nanmean(1, keepdim=True), groups).nan_to_num()
    ranges = groups.amax(1) - groups.amin(1)
    equal = ranges <= ROUNDING * groups.abs().amax(1).clamp(min=1.0)
    found = {
        "env/reward_mean": scored.mean().item(),
        "env/reward_std": scored.std(correction=0).item(),
        "groups/reward_std": groups.std(1, correction=0).mean().item(),
        "groups/equal": equal.float().mean().item(),
        "tokens/responses_len_mean": torch.tensor([float(len(row)) for row in ids]).mean().item(),
        "samples/distinct_2": distinct_n(ids, 2),
        "samples/unique": len(set(texts)) / len(texts),
    }
    for name, values in metrics.items():
        known = torch.tensor([value for value in values if not math.isnan(value)])
        if len(known):
            found[f"metrics/{name}/mean"] = known.mean().item()
            found[f"metrics/{name}/std"] = known.std(correction=0).item()
    return found
