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
# Nats per response; the estimate of a KL near 0 is noisy, but not by a whole nat, as in TRL 0.11.
NEGATIVE_KL = -1.0
# Standard deviation of the scores, over their size, that is rounding in float32.
ROUNDING = 1e-6
# Fraction of the variety at the start that must be left; a healthy run keeps about four fifths.
VARIETY = 0.5
# Fraction of a step's tokens whose ratio was clipped, above which it learns next to nothing more.
CLIPPED = 0.5
# Standard deviations of the score that the best policy may gain under a KL price, below which the
# price drowns the reward.
GAIN = 0.5
# Nats a token between the log-probabilities of vLLM and the policy: bfloat16 makes a tenth of this.
SAMPLING = 0.1
# Part of the steps after which a score that follows the reward has risen.
EARLY = 0.2

# What is said of values that last; `value` is the last one.
_NO_DIFFERENCE = (
    "Usual causes: a reward function that ignores the completion or has reached its ceiling, or "
    "responses that are all the same. Look at samples.jsonl, and call the function on two texts "
    "that it should tell apart."
)
_EQUAL_GROUPS = (
    f"in every group all responses to one prompt have had the same score for {RUNNING} batches. "
    "Responses are judged against the others of their group, so there is nothing to learn from. "
    f"{_NO_DIFFERENCE} Or num_generations is too low for a rare reward."
)
_EQUAL_RESPONSES = (
    f"all responses of a batch have been the same text for {RUNNING} steps: the policy has "
    "collapsed. Usual causes: a learning rate that is too high, or a KL coefficient (init_kl_coef) "
    "that is too low for the reward."
)
_ALL_MASKED = (
    f"every response has been cut at its longest length for {RUNNING} batches, and "
    "mask_truncated_completions leaves such out: nothing is learned. Raise response_length, or set "
    "mask_truncated_completions to false."
)
_CLIPPING = (
    f"{{value:.0%}} of the probability ratios have been clipped for {RUNNING} steps: the policy "
    "moves far on one batch. Usual cause: a learning rate that is too high; lower learning_rate or "
    "num_iterations."
)
_FULL_LENGTH = (
    f"every response has been {{value:.0f}} tokens long for {RUNNING} steps: none ends by itself. "
    "Usual causes: a model that does not know its end token (compare eos_token of the tokenizer "
    "with what the model learned), a reward that grows with length, or a response_length too short "
    "for a whole answer; where openings are all that is wanted, nothing is wrong (stop_token: null "
    "says so)."
)
_SAMPLER = "sampling/sampling_logp_difference/mean"
_OTHER_SAMPLER = (
    "vLLM's log-probabilities are {value:.2g} nats a token off the policy's. Usual causes: weights "
    "that do not reach vLLM (another model on its server?), a server without `--logprobs-mode "
    "processed_logprobs`, or weights that vLLM quantizes."
)
_SKIPPED_MINIBATCHES = (
    "{value:.0f} minibatch(es) skipped, because the mean probability ratio exceeded "
    "ratio_threshold or the loss was not finite. Usual cause: a learning rate that is too high; "
    "lower learning_rate or ppo_epochs, or set max_grad_norm to 1."
)
_SKIPPED_STEP = (
    "an optimizer step was left out, because its gradient was not finite. Usual causes: a learning "
    "rate that is too high, or rewards of very different size."
)


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

    `find` gives the alarms that ring at the last of a run's rows, by name; `said` holds all so far.
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
    steps: int = sys.maxsize,
) -> dict[str, str]:
    """Find the alarms that ring at the last row of a PPO run of `steps`, settings as in PPOConfig.

    Each sentence tells what was seen, at which step, the usual causes and what to do. An alarm
    whose keys are missing keeps silent.
    """
    found = {
        "KL price": _kl_price(rows, "ppo/std_scores", "objective/kl_coef", "init_kl_coef"),
        "no rise": _no_rise(rows, steps, "init_kl_coef"),
        "negative KL": _negative_kl(rows),
        "vLLM": _lasting(rows, _SAMPLER, lambda off: off > SAMPLING, _OTHER_SAMPLER, running=1),
        "skipped minibatches": _lasting(
            rows, "ppo/skipped_minibatches", lambda n: n > 0, _SKIPPED_MINIBATCHES, running=1
        ),
        "falling diversity": _falling_diversity(
            rows,
            "a KL coefficient (init_kl_coef) that is too low, a learning rate or ppo_epochs too "
            "high, or a reward that one phrase satisfies (score_clip takes the prize off extremes)",
        ),
    }
    if batch_size > 1:
        found["equal scores"] = _equal_scores(rows)
        found["equal responses"] = _lasting(
            rows, "samples/unique", lambda f: f * batch_size <= 1.5, _EQUAL_RESPONSES
        )
    limit_drawn = min_response_length not in (None, response_length)
    if stop_token and response_length > 1 and not limit_drawn:  # else cutting is what was wanted
        key = "tokens/responses_len_mean"
        found["full length"] = _lasting(rows, key, lambda n: n >= response_length, _FULL_LENGTH)
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
        "vLLM": _lasting(rows, _SAMPLER, lambda off: off > SAMPLING, _OTHER_SAMPLER, running=1),
        "equal groups": _lasting(rows, "groups/equal", lambda f: f >= 1, _EQUAL_GROUPS),
        "all masked": _lasting(rows, "tokens/masked_share", lambda f: f >= 1, _ALL_MASKED),
        "clipping": _lasting(rows, "clip_ratio/region_mean", lambda f: f > CLIPPED, _CLIPPING),
        "skipped steps": _lasting(rows, "skipped_steps", lambda n: n > 0, _SKIPPED_STEP, running=1),
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


def _equal_scores(rows: Rows) -> str | None:
    stds, means = _running(rows, "env/reward_std"), _running(rows, "env/reward_mean")
    if not stds or not means:
        return None
    if any(std > ROUNDING * max(1.0, abs(mean)) for std, mean in zip(stds, means, strict=True)):
        return None
    return (
        f"all scores of a batch have been equal ({means[-1]:.4g}) for {RUNNING} steps, so there is "
        f"nothing to learn from. {_NO_DIFFERENCE}"
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


def _lasting(
    rows: Rows, key: str, holds: Callable[[float], bool], sentence: str, running: int = RUNNING
) -> str | None:
    """Return the sentence where a condition has held for so many rows, up to the last one."""
    values = _running(rows, key, running)
    rings = values and all(map(holds, values)) and _is_number(rows[-1].get(key))
    return sentence.format(value=values[-1]) if rings else None


def _running(rows: Rows, key: str, count: int = RUNNING) -> list[float]:
    """Return the last values of a key, among rows that have it; none where they are too few."""
    values = [row[key] for row in rows[-10 * count :] if _is_number(row.get(key))]
    return values[-count:] if len(values) >= count else []


def _mean(rows: Rows, key: str) -> float:
    """Average a key; nan, for which no comparison holds, where a row lacks it."""
    values = [row.get(key) for row in rows]
    return math.fsum(values) / len(values) if values and all(map(_is_number, values)) else math.nan


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
