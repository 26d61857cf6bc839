"""What healthy runs show: the ranges, where they come from, and whether a run's end lies in them.

They are rules of thumb. One that a run leaves is a reason to look at its samples, not a verdict.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

OURS = "trl_recipes, STAT_KEYS and alarms"
CLASSIC = "TRL 0.11.4, docs/source/logging.mdx"
CLASSIC_TRAINER = "TRL 0.11.4, ppo_trainer.py, which warns below -1"
AXOLOTL = "axolotl, docs/training_stability.qmd"
DEFINITION = "its definition"


class Healthy(NamedTuple):
    """One measure's healthy range.

    Attributes:
        key: in all_stats.
        name: of the measure, with its unit.
        low: least healthy value; None: no limit.
        high: greatest healthy value; None: no limit.
        why: what it tells.
        source: where the range comes from.
        of_start: whether the limits are shares of what the run began with.
    """

    key: str
    name: str
    low: float | None
    high: float | None
    why: str
    source: str
    of_start: bool = False


HEALTHY = (
    Healthy(
        "env/reward_std",
        "spread of the scores",
        1e-6,
        None,
        "At 0 all responses are worth the same, and there is nothing to learn from.",
        OURS,
    ),
    Healthy(
        "objective/kl",
        "KL from the reference, nats a response",
        -1,
        None,
        "Rises from 0. Clearly below 0, sampling and training disagree; far above what the score "
        "gained is worth, the texts are no longer the model's.",
        CLASSIC_TRAINER,
    ),
    Healthy(
        "ppo/policy/clipfrac",
        "clipped ratios, share of tokens",
        0,
        0.3,
        "More means that the policy moves too far on one batch: a learning rate that is too high.",
        OURS,
    ),
    Healthy(
        "ppo/policy/approxkl",
        "movement in one step, nats a token",
        0,
        0.1,
        "The same, measured as a distance.",
        OURS,
    ),
    Healthy(
        "ppo/val/clipfrac",
        "clipped values, share of tokens",
        0,
        0.6,
        "Often 0.3 to 0.6 where rewards are large; less is well.",
        CLASSIC,
    ),
    Healthy(
        "ppo/val/var_explained",
        "variance that the value head explains",
        0,
        1,
        "Rises towards 1. Below 0 a constant would predict better, as it does in the first steps.",
        DEFINITION,
    ),
    Healthy("ppo/skipped_minibatches", "skipped minibatches", 0, 0, "Each was too far off.", OURS),
    Healthy(
        "groups/equal",
        "groups with equal scores",
        0,
        0.8,
        "Such a group teaches nothing: too easy, too hard, or always the same response.",
        AXOLOTL,
    ),
    Healthy(
        "kl", "KL as the algorithm uses it, nats a token", 0, 0.5, "Above 2: far off.", AXOLOTL
    ),
    Healthy(
        "clip_ratio/region_mean",
        "clipped ratios",
        0,
        0.3,
        "Above it most of a step's work is thrown away.",
        AXOLOTL,
    ),
    Healthy(
        "completions/clipped_ratio",
        "responses cut at their longest",
        0,
        0.3,
        "Where openings are all that is wanted, nothing is wrong.",
        AXOLOTL,
    ),
    Healthy("skipped_steps", "skipped steps", 0, 0, "No finite gradient.", OURS),
    Healthy(
        "ppo/policy/entropy",
        "entropy of the next token, nats",
        0.01,
        None,
        "Falls slowly; near 0 every prompt gets one answer.",
        AXOLOTL,
    ),
    Healthy(
        "entropy",
        "entropy of the next token, nats",
        0.01,
        None,
        "Falls slowly; near 0 every prompt gets one answer.",
        AXOLOTL,
    ),
    Healthy(
        "samples/distinct_2",
        "distinct pairs of tokens, beside the start",
        0.5,
        None,
        "A steep fall while the score rises is repetition.",
        OURS,
        of_start=True,
    ),
    Healthy(
        "grad_norm",
        "norm of the gradient",
        0.001,
        10,
        "Above it training is unstable, unless gradients are clipped.",
        AXOLOTL,
    ),
    Healthy(
        "loss/heldout",
        "held-out loss, beside the start",
        None,
        1,
        "Falls with the training loss; where it rises the model learns by heart.",
        AXOLOTL,
        of_start=True,
    ),
)


class Judged(NamedTuple):
    """A range, and where a run ended.

    Attributes:
        healthy: the range.
        last: mean at the end, or its share of the start.
        within: whether that lies in the range.
    """

    healthy: Healthy
    last: float
    within: bool


def judge(all_stats: Sequence[Mapping[str, Any]]) -> list[Judged]:
    """Hold the end of a run to the healthy ranges.

    Args:
        all_stats: one row a step.

    Returns:
        An entry for each range whose measure the run has, with the mean of its last tenth of rows
        (three rows at least), over that of its first where the range is one of shares.
    """
    found = []
    for healthy in HEALTHY:
        values = [row.get(healthy.key) for row in all_stats]
        known = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
        if not known or (healthy.of_start and len(known) < 2):
            continue
        window = min(len(known), max(3, len(known) // 10))
        last = math.fsum(known[-window:]) / window
        if healthy.of_start:
            start = math.fsum(known[:window]) / window
            if start == 0:
                continue
            last /= start
        low = -math.inf if healthy.low is None else healthy.low
        high = math.inf if healthy.high is None else healthy.high
        found.append(Judged(healthy, last, low <= last <= high))
    return found


def range_of(healthy: Healthy) -> str:
    """Say a range in a few words.

    Args:
        healthy: one of `HEALTHY`.

    >>> range_of(HEALTHY[2])
    '0 to 0.3'
    """
    low, high = healthy.low, healthy.high
    if low == high:
        return f"{low:g}"
    if high is None:
        return f"above {0 if low < 1e-3 and low > 0 else low:g}"
    return f"up to {high:g}" if low is None else f"{low:g} to {high:g}"
