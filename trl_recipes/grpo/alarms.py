"""Alarms: what goes wrong in GRPO and RLOO without any error, each with its usual cause."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Rows running before an alarm rings: one odd batch is chance, three alike are a state.
RUNNING = 3
# Rows in the windows at the start and now: long enough to average out the batches' noise.
WINDOW = 5
# Share of the variety at the start that must be left, as for PPO.
VARIETY = 0.5
# Share of a step's tokens whose ratio was clipped, above which it learns next to nothing more.
CLIPPED = 0.5

Rows = Sequence[Mapping[str, Any]]


def alarms(rows: Rows) -> dict[str, str]:
    """Look at a run's statistics up to now.

    Args:
        rows: all_stats, the last of them just logged.

    Returns:
        A sentence for each alarm that rings, by its name: what was seen, at which step, the usual
        causes, and what to do. One whose keys are missing keeps silent.
    """
    found = {
        "equal groups": _equal_groups(rows),
        "all masked": _all_masked(rows),
        "clipping": _clipping(rows),
        "skipped steps": _skipped(rows),
        "falling diversity": _falling_diversity(rows),
    }
    step = rows[-1].get("step", len(rows)) if rows else 0
    return {name: f"Step {step}: {what}" for name, what in found.items() if what}


def _equal_groups(rows: Rows) -> str | None:
    shares, means = _running(rows, "groups/equal"), _running(rows, "env/reward_mean")
    if not shares or min(shares) < 1:
        return None
    mean = f" (mean {means[-1]:.4g})" if means else ""
    return (
        f"in every group all responses to one prompt have had the same score{mean} for {RUNNING} "
        "batches. Responses are judged against the others of their group, so there is nothing to "
        "learn from. Usual causes: a reward function that ignores the completion, is never "
        "reached or has reached its ceiling; responses that are all the same; too few "
        "num_generations for a rare reward. Look at samples.jsonl, and call the function on two "
        "texts that it should tell apart."
    )


def _all_masked(rows: Rows) -> str | None:
    shares = _running(rows, "tokens/masked_share")
    if not shares or min(shares) < 1:
        return None
    return (
        f"every response has been cut at its longest length for {RUNNING} batches, and "
        "mask_truncated_completions leaves such out: nothing is learnt. Raise response_length, or "
        "set mask_truncated_completions to false; where openings are all that is wanted, false is "
        "right."
    )


def _clipping(rows: Rows) -> str | None:
    shares = _running(rows, "clip_ratio/region_mean")
    if not shares or min(shares) <= CLIPPED:
        return None
    return (
        f"{shares[-1]:.0%} of the probability ratios have been clipped for {RUNNING} steps: the "
        "policy moves far on one batch. Usual cause: a learning rate that is too high; lower "
        "learning_rate or num_iterations."
    )


def _skipped(rows: Rows) -> str | None:
    if not rows or not rows[-1].get("skipped_steps", 0) > 0:
        return None
    return (
        "an optimizer step was left out, because its gradient was not finite. Usual causes: a "
        "learning rate that is too high, or rewards of very different size."
    )


def _falling_diversity(rows: Rows) -> str | None:
    first, last = _fresh(rows), _fresh(reversed(rows))[::-1]
    if len(first) < WINDOW or last[0]["step"] <= first[-1]["step"]:
        return None
    scores = [_mean(part, "env/reward_mean") for part in (first, last)]
    if not scores[1] > scores[0]:
        return None
    for key, what in (
        ("samples/distinct_2", "distinct pairs of tokens"),
        ("samples/unique", "distinct responses"),
    ):
        then, now = _mean(first, key), _mean(last, key)
        if now < VARIETY * then:
            return (
                f"the share of {what} has fallen from {then:.2f} to {now:.2f} while the score rose "
                f"from {scores[0]:.3g} to {scores[1]:.3g} (means of {WINDOW} batches): the policy "
                "repeats what the reward likes best. Usual causes: beta (the weight of the KL) "
                "too low, a learning rate too high, or a reward that one phrase satisfies."
            )
    return None


def _fresh(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first rows of freshly sampled batches."""
    return list(itertools.islice((row for row in rows if "env/reward_mean" in row), WINDOW))


def _running(rows: Rows, key: str) -> list[float]:
    """The last values of a key, among rows that have it; none where they are too few."""
    values = [row[key] for row in rows[-10 * RUNNING :] if _is_number(row.get(key))]
    return values[-RUNNING:] if len(values) >= RUNNING else []


def _mean(rows: Rows, key: str) -> float:
    """nan, which no comparison holds for, where a row lacks the key."""
    values = [row.get(key) for row in rows]
    return math.fsum(values) / len(values) if all(map(_is_number, values)) else math.nan


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
