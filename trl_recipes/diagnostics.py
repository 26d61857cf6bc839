"""What healthy runs show, and what goes wrong in a run without any error.

Both are pure functions of `all_stats`. The ranges stand in statistics.csv, and are rules of thumb:
one that a run leaves is a reason to look at its samples, not a verdict. An alarm stops nothing: the
run's owner decides.
"""

import itertools
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from trl_recipes.stats import STATISTICS

Rows = Sequence[Mapping[str, Any]]

# Rows running before an alarm rings: one odd batch is chance, three alike are a state.
RUNNING = 3
# Rows in the windows at the start and now: long enough to average out the batches' noise.
WINDOW = 5
# Nats per response. The estimate of a KL near 0 is noisy on both sides, but not by a whole nat; TRL
# 0.11 warned from here on too.
NEGATIVE_KL = -1.0
# Standard deviation of the scores, over their size, that is rounding in float32.
ROUNDING = 1e-6
# Fraction of the variety at the start that must be left. A healthy run narrows too: towards one
# sentiment, the embedded recipe keeps four fifths of its distinct pairs of tokens.
VARIETY = 0.5
# Standard errors by which a mean of lengths must lie off to be no chance.
ERRORS = 4.0
# Fraction of a step's tokens whose ratio was clipped, above which it learns next to nothing more.
CLIPPED = 0.5
# Standard deviations of the score that the best policy may gain under a KL price, below which the
# price drowns the reward.
GAIN = 0.5
# Part of the steps after which a score that follows the reward has risen.
EARLY = 0.2


class Healthy(NamedTuple):
    """The healthy range of one statistic; where a limit is an infinity there is none."""

    key: str  # in all_stats
    name: str  # with its unit
    low: float
    high: float
    of_start: bool  # whether the limits are fractions of what the run began with
    why: str
    source: str


HEALTHY = [
    Healthy(
        row["key"],
        row["healthy"],
        float(row["low"] or -math.inf),
        float(row["high"] or math.inf),
        bool(row["of_start"]),
        row["why"],
        row["source"],
    )
    for row in STATISTICS
    if row["healthy"]
]


class Judged(NamedTuple):
    """A range, and where a run ended."""

    healthy: Healthy
    last: float  # mean at the end, or its fraction of the start
    within: bool


def judge(all_stats: Rows) -> list[Judged]:
    """Hold the mean of a run's last tenth of rows (three at least) to the healthy ranges.

    A range whose statistic the run does not have is left out.
    """
    found = []
    for healthy in HEALTHY:
        known = [float(row[healthy.key]) for row in all_stats if _is_number(row.get(healthy.key))]
        if not known or (healthy.of_start and len(known) < 2):
            continue
        window = min(len(known), max(3, len(known) // 10))
        last = math.fsum(known[-window:]) / window
        if healthy.of_start:
            start = math.fsum(known[:window]) / window
            if start == 0:
                continue
            last /= start
        found.append(Judged(healthy, last, healthy.low <= last <= healthy.high))
    return found


def range_of(healthy: Healthy) -> str:
    """Say a range in a few words."""
    low, high = healthy.low, healthy.high
    if low == high:
        return f"{low:g}"
    if high == math.inf:
        return f"above {0 if 0 < low < 1e-3 else low:g}"
    return f"up to {high:g}" if low == -math.inf else f"{low:g} to {high:g}"


class Alarms:
    """Give each alarm of a run once.

    `find` gives the alarms that ring at the last of a run's rows, by their names; `said` holds all
    that have rung.
    """

    def __init__(self, find: Callable[[Rows], Mapping[str, str]]):
        self.find = find
        self.said: dict[str, str] = {}

    def look(self, rows: Rows) -> list[str]:
        """Return the sentences of the alarms that ring at the last row for the first time."""
        new = {name: what for name, what in self.find(rows).items() if name not in self.said}
        self.said |= new
        return list(new.values())

    def replay(self, rows: Rows) -> None:
        """Take the alarms of a run up to a checkpoint as said."""
        for count in range(1, len(rows) + 1):
            self.look(rows[:count])


def ppo_alarms(
    rows: Rows,
    *,
    batch_size: int,
    response_length: int,
    min_response_length: int | None = None,
    stop_token: str | None = "eos",
    ratio_threshold: float = 10.0,
    steps: int = sys.maxsize,
) -> dict[str, str]:
    """Find the alarms that ring at the last row of a PPO run of `steps`, settings as in PPOConfig.

    Each sentence tells what was seen, at which step, the usual causes and what to do. An alarm
    whose keys are missing keeps silent.
    """
    limits = (min_response_length or response_length, response_length)
    found = {
        "KL price": _kl_price(rows, "ppo/std_scores", "objective/kl_coef", "init_kl_coef"),
        "no rise": _no_rise(rows, steps, "init_kl_coef"),
        "negative KL": _negative_kl(rows),
        "skipped minibatches": _skipped_minibatches(rows, ratio_threshold),
        "equal scores": _equal_scores(rows) if batch_size > 1 else None,
        "equal responses": _equal_responses(rows, batch_size) if batch_size > 1 else None,
        "full length": _full_length(rows, limits, batch_size) if stop_token else None,
        "falling diversity": _falling_diversity(
            rows,
            "a KL coefficient (init_kl_coef) that is too low, a learning rate or ppo_epochs too "
            "high, or a reward that one phrase satisfies (score_clip takes the prize off extremes)",
        ),
    }
    return _at_step(rows, found)


def group_alarms(
    rows: Rows, *, beta: float | None = None, steps: int = sys.maxsize
) -> dict[str, str]:
    """Find the alarms that ring at the last row of a GRPO or RLOO run, as `ppo_alarms` does.

    `beta` is the price of a nat in rewards; None where it is not weighed against them as they are.
    """
    found = {
        "KL price": _kl_price(rows, "reward_std", beta, "beta"),
        "no rise": _no_rise(rows, steps, "beta"),
        "equal groups": _equal_groups(rows),
        "all masked": _all_masked(rows),
        "clipping": _clipping(rows),
        "skipped steps": _skipped_steps(rows),
        "falling diversity": _falling_diversity(
            rows,
            "beta (the weight of the KL) too low, a learning rate too high, or a reward that one "
            "phrase satisfies",
        ),
    }
    return _at_step(rows, found)


def _kl_price(rows: Rows, std_key: str, price: str | float | None, name: str) -> str | None:
    """Look, on the start model's batch, for a KL price that leaves the reward next to no say.

    Of all policies, the one that gains most at a price of b rewards per nat gains about s / b
    standard deviations s of the reward, for a small gain.
    """
    if len(rows) != 1:
        return None
    std, price = rows[0].get(std_key), rows[0].get(price) if isinstance(price, str) else price
    if not (_is_number(std) and _is_number(price)) or price <= 0 or std <= 0 or std >= GAIN * price:
        return None
    return (
        f"the KL price drowns the reward: a nat costs {price:g}, and the standard deviation of the "
        f"score is {std:.3g}, so that even the best policy gains only about {std / price:.2g} "
        f"standard deviations. Set reward_norm to reference, or {name} to about {std / 4:.1g}."
    )


def _no_rise(rows: Rows, steps: int, price_name: str) -> str | None:
    """Look, once a part of the run is done, for a score that rose by no more than chance."""
    scored = [row for row in rows if _is_number(row.get("env/reward_mean"))]
    due = [n for n, row in enumerate(scored, 1) if n >= 2 * WINDOW and row["step"] >= EARLY * steps]
    if due != [len(scored)] or scored[-1] is not rows[-1]:
        return None
    scores = [row["env/reward_mean"] for row in scored]
    half = len(scores) // 2
    before, after = scores[:half], scores[half:]
    rise = math.fsum(after) / len(after) - math.fsum(before) / half
    error = math.sqrt(sum(statistics.variance(part) / len(part) for part in (before, after)))
    if rise > 2 * error:
        return None
    return (
        f"the score has not risen by more than chance in the first {len(scores)} batches: by "
        f"{rise:.3g}, with a standard error of {error:.2g}. Usual causes: a KL price "
        f"({price_name}) that is high or a learning rate that is low for this reward, or a reward "
        "that hardly differs between the responses."
    )


def _negative_kl(rows: Rows) -> str | None:
    kls = _running(rows, "objective/kl")
    if not kls or max(kls) >= NEGATIVE_KL or kls != sorted(kls, reverse=True):
        return None
    return (
        f"the KL to the reference is {kls[-1]:.2f} nats per response and has been falling below "
        f"{NEGATIVE_KL:g} for {RUNNING} steps. A KL is not negative: the responses were not "
        "sampled from the distribution whose log-probabilities are trained on. Usual causes: "
        "top_k, top_p, min_length or another temperature in generate (leave them out), or a "
        "learning rate that is too high."
    )


def _skipped_minibatches(rows: Rows, ratio_threshold: float) -> str | None:
    skipped = rows[-1].get("ppo/skipped_minibatches")
    if not _is_number(skipped) or skipped <= 0:
        return None
    return (
        f"{skipped:.0f} minibatch(es) skipped, because the mean probability ratio exceeded "
        f"ratio_threshold ({ratio_threshold:g}) or the loss was not finite. The policy moves too "
        "far on one batch. Usual cause: a learning rate that is too high; lower learning_rate or "
        "ppo_epochs, or set max_grad_norm to 1."
    )


def _skipped_steps(rows: Rows) -> str | None:
    if not rows[-1].get("skipped_steps", 0) > 0:
        return None
    return (
        "an optimizer step was left out, because its gradient was not finite. Usual causes: a "
        "learning rate that is too high, or rewards of very different size."
    )


def _equal_scores(rows: Rows) -> str | None:
    stds, means = _running(rows, "env/reward_std"), _running(rows, "env/reward_mean")
    if not stds or not means:
        return None
    if any(std > ROUNDING * max(1.0, abs(mean)) for std, mean in zip(stds, means, strict=True)):
        return None
    return (
        f"all scores of a batch have been equal ({means[-1]:.4g}) for {RUNNING} steps, so there is "
        "nothing to learn from. Usual causes: a reward function that ignores the completion or has "
        "reached its ceiling, or all responses being the same; look at samples.jsonl and call the "
        "function on two texts that it should tell apart."
    )


def _equal_groups(rows: Rows) -> str | None:
    fractions, means = _running(rows, "groups/equal"), _running(rows, "env/reward_mean")
    if not fractions or min(fractions) < 1:
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


def _equal_responses(rows: Rows, batch_size: int) -> str | None:
    fractions = _running(rows, "samples/unique")
    if not fractions or max(fractions) * batch_size > 1.5:
        return None
    return (
        f"all {batch_size} responses of a batch have been the same text for {RUNNING} steps: the "
        "policy has collapsed. Usual causes: a learning rate that is too high, or a KL coefficient "
        "(init_kl_coef) that is too low for the reward; begin again with less of the one or more "
        "of the other."
    )


def _all_masked(rows: Rows) -> str | None:
    fractions = _running(rows, "tokens/masked_share")
    if not fractions or min(fractions) < 1:
        return None
    return (
        f"every response has been cut at its longest length for {RUNNING} batches, and "
        "mask_truncated_completions leaves such out: nothing is learnt. Raise response_length, or "
        "set mask_truncated_completions to false; where openings are all that is wanted, false is "
        "right."
    )


def _clipping(rows: Rows) -> str | None:
    fractions = _running(rows, "clip_ratio/region_mean")
    if not fractions or min(fractions) <= CLIPPED:
        return None
    return (
        f"{fractions[-1]:.0%} of the probability ratios have been clipped for {RUNNING} steps: the "
        "policy moves far on one batch. Usual cause: a learning rate that is too high; lower "
        "learning_rate or num_iterations."
    )


def _full_length(rows: Rows, limits: tuple[int, int], batch_size: int) -> str | None:
    """Look for responses that no longer end by themselves.

    Where a limit is drawn for each response, cutting it is what was asked for, and lengths that are
    never cut short are uniform between the limits: there only a change counts.
    """
    lengths = _running(rows, "tokens/responses_len_mean")
    shortest, longest = limits
    if not lengths:
        return None
    if shortest == longest:
        if min(lengths) < longest or longest == 1:
            return None
        seen = f"every response has been {longest} tokens long for {RUNNING} steps"
    else:
        then, now = (_mean(window, "tokens/responses_len_mean") for window in _windows(rows))
        uncut = (shortest + longest) / 2
        deviation = math.sqrt(((longest - shortest + 1) ** 2 - 1) / 12)
        error = deviation / math.sqrt(WINDOW * batch_size)
        if not (then <= uncut - ERRORS * error and now >= uncut - error):
            return None
        seen = (
            f"responses have grown from {then:.1f} to {now:.1f} tokens, the mean of the limits "
            f"drawn for them ({shortest} to {longest})"
        )
    return (
        f"{seen}: none ends by itself. Usual causes: a model that does not know its end token "
        "(compare eos_token of the tokenizer with what the model learnt), a reward that grows with "
        "length, or a response_length too short for a whole answer; where openings are all that is "
        "wanted, nothing is wrong (stop_token: null says so)."
    )


def _falling_diversity(rows: Rows, causes: str) -> str | None:
    first, last = _windows(rows)
    scores = [_mean(window, "env/reward_mean") for window in (first, last)]
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
                f"repeats what the reward likes best. Usual causes: {causes}."
            )
    return None


def _at_step(rows: Rows, found: Mapping[str, str | None]) -> dict[str, str]:
    step = rows[-1].get("step", len(rows))
    return {name: f"Step {step:.0f}: {what}" for name, what in found.items() if what}


def _windows(rows: Rows) -> tuple[Rows, Rows]:
    """Return the first and the last rows of freshly sampled batches; none as long as they overlap.

    GRPO and RLOO log rows without a score where a batch is gone over again.
    """

    def fresh(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return list(itertools.islice((row for row in rows if "env/reward_mean" in row), WINDOW))

    first, last = fresh(rows), fresh(reversed(rows))[::-1]
    apart = len(first) == WINDOW and last[0]["step"] > first[-1]["step"]
    return (first, last) if apart else ([], [])


def _running(rows: Rows, key: str) -> list[float]:
    """Return the last values of a key, among rows that have it; none where they are too few."""
    values = [row[key] for row in rows[-10 * RUNNING :] if _is_number(row.get(key))]
    return values[-RUNNING:] if len(values) >= RUNNING else []


def _mean(rows: Rows, key: str) -> float:
    """Average a key; nan, for which no comparison holds, where a row lacks it."""
    values = [row.get(key) for row in rows]
    return math.fsum(values) / len(values) if values and all(map(_is_number, values)) else math.nan


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
