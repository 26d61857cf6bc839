"""What healthy runs show, and what goes wrong in a run without any error.

Both are pure functions of `all_stats`. The ranges stand in statistics.csv, and are rules of thumb:
one that a run leaves is a reason to look at its samples, not a verdict. What alarms say stands in
alarms.yaml; an alarm stops nothing: the run's owner decides.
"""

import math
import operator
import statistics
import sys
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, NamedTuple

import yaml

from trl_recipes.stats import STATISTICS, Rows, is_number, tenth

Values = dict[str, Any]  # what an alarm's sentence tells

ALARMS = yaml.safe_load(resources.files("trl_recipes").joinpath("alarms.yaml").read_text("utf-8"))
NO_DIFFERENCE = ALARMS.pop("no_difference")
# How the limit of an alarm with a key is meant.
LIMITS = {"above": operator.gt, "least": operator.ge, "most": operator.le}
# Rows running before an alarm rings, where its table does not say otherwise.
RUNNING = 3
# Rows in the windows at the start and now: long enough to average out the batches' noise.
WINDOW = 5
# Nats per response; the estimate of a KL near 0 is noisy, but not by a whole nat, as in TRL 0.11.
NEGATIVE_KL = -1.0
# Standard deviation of the scores, over their size, that is rounding in float32.
ROUNDING = 1e-6
# Fraction of the variety at the start that must be left; a healthy run keeps about four fifths.
VARIETY = 0.5
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
    """Hold the mean of a run's last tenth of rows (three at least) to the ranges of what it has."""
    found = []
    for healthy in HEALTHY:
        known = [float(row[healthy.key]) for row in all_stats if is_number(row.get(healthy.key))]
        if not known or (healthy.of_start and len(known) < 2):
            continue
        window = tenth(len(known))
        last = statistics.fmean(known[-window:])
        if healthy.of_start:
            start = statistics.fmean(known[:window])
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

    An alarm whose keys are missing keeps silent.
    """
    found = {
        "KL price": _kl_price(rows, "ppo/std_scores", "objective/kl_coef", "init_kl_coef"),
        "no rise": _no_rise(rows, steps, "init_kl_coef"),
        "negative KL": _negative_kl(rows),
        "falling diversity": _falling_diversity(
            rows,
            "a KL coefficient (init_kl_coef) that is too low, a learning rate or ppo_epochs too "
            "high, or a reward that one phrase satisfies (score_clip takes the prize off extremes)",
        ),
    }
    if batch_size > 1:
        found["equal scores"] = _equal_scores(rows)
        found["equal responses"] = _lasting(rows, "equal responses", most=1.5 / batch_size)
    limit_drawn = min_response_length not in (None, response_length)
    if stop_token and response_length > 1 and not limit_drawn:  # else cutting is what was wanted
        found["full length"] = _lasting(rows, "full length", least=response_length)
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
        "falling diversity": _falling_diversity(
            rows,
            "beta (the weight of the KL) too low, a learning rate too high, or a reward that one "
            "phrase satisfies",
        ),
    }
    return _at_step(rows, found)


def _at_step(rows: Rows, found: dict[str, Values | None]) -> dict[str, str]:
    """Write the sentences of what was found, and of the alarms that go by one key and its limit."""
    for name, alarm in ALARMS.items():
        if limits := {limit: alarm[limit] for limit in LIMITS if limit in alarm}:
            found[name] = _lasting(rows, name, **limits)
    step, same = rows[-1].get("step", len(rows)), {"no_difference": NO_DIFFERENCE}
    return {
        name: f"Step {step:.0f}: {ALARMS[name]['says'].format(**values, **same)}"
        for name, values in found.items()
        if values
    }


def _kl_price(rows: Rows, std_key: str, price: str | float | None, name: str) -> Values | None:
    """Look, on the start model's batch, for a KL price that leaves the reward next to no say."""
    if len(rows) != 1:
        return None
    std, price = rows[0].get(std_key), rows[0].get(price) if isinstance(price, str) else price
    # at a price of b rewards per nat the best policy gains about s / b standard deviations s
    if not (is_number(std) and is_number(price)) or price <= 0 or std <= 0 or std >= GAIN * price:
        return None
    numbers = {"price": price, "std": std, "gain": std / price, "fitting": std / 4}
    return numbers | {"price_name": name}


def _no_rise(rows: Rows, steps: int, price_name: str) -> Values | None:
    """Look, once a part of the run is done, for a score that rose by no more than chance."""
    scored = [row for row in rows if is_number(row.get("env/reward_mean"))]
    due = [row for row in scored[2 * WINDOW - 1 :] if row.get("step", 0) >= EARLY * steps]
    if len(due) != 1 or due[0] is not rows[-1]:
        return None
    scores = [row["env/reward_mean"] for row in scored]
    half = len(scores) // 2
    before, after = scores[:half], scores[half:]
    rise = math.fsum(after) / len(after) - math.fsum(before) / half
    error = math.sqrt(sum(statistics.variance(part) / len(part) for part in (before, after)))
    if rise > 2 * error:
        return None
    return {"batches": len(scores), "rise": rise, "error": error, "price_name": price_name}


def _negative_kl(rows: Rows) -> Values | None:
    kls = _running(rows, "objective/kl")
    if not kls or max(kls) >= NEGATIVE_KL or kls != sorted(kls, reverse=True):
        return None
    return {"value": kls[-1], "limit": NEGATIVE_KL, "rows": RUNNING}


def _equal_scores(rows: Rows) -> Values | None:
    stds, means = _running(rows, "env/reward_std"), _running(rows, "env/reward_mean")
    if not stds or not means:
        return None
    if any(std > ROUNDING * max(1.0, abs(mean)) for std, mean in zip(stds, means, strict=True)):
        return None
    return {"mean": means[-1], "rows": RUNNING}


def _falling_diversity(rows: Rows, causes: str) -> Values | None:
    first, last = _windows(rows)
    before, after = (_mean(window, "env/reward_mean") for window in (first, last))
    if not after > before:
        return None
    kinds = {
        "samples/distinct_2": "distinct pairs of tokens",
        "samples/unique": "distinct responses",
    }
    for key, what in kinds.items():
        then, now = _mean(first, key), _mean(last, key)
        if now < VARIETY * then:
            told = {"what": what, "then": then, "now": now, "before": before, "after": after}
            return told | {"window": WINDOW, "causes": causes}
    return None


def _windows(rows: Rows) -> tuple[Rows, Rows]:
    """Return the first and the last rows of freshly sampled batches; none while they overlap."""
    # GRPO and RLOO log rows without a score where a batch is gone over again
    scored = [row for row in rows if "env/reward_mean" in row]
    return (scored[:WINDOW], scored[-WINDOW:]) if len(scored) >= 2 * WINDOW else ([], [])


def _lasting(rows: Rows, name: str, **limits: float) -> Values | None:
    """Tell the last value of an alarm's key where it has been beyond its limits for some rows."""
    key, count = ALARMS[name]["key"], ALARMS[name].get("rows", RUNNING)
    values = _running(rows, key, count)
    beyond = all(LIMITS[kind](value, limit) for kind, limit in limits.items() for value in values)
    rings = values and beyond and is_number(rows[-1].get(key))
    return {"value": values[-1], "rows": count} if rings else None


def _running(rows: Rows, key: str, count: int = RUNNING) -> list[float]:
    """Return the last values of a key, among rows that have it; none where they are too few."""
    values = [row[key] for row in rows[-10 * count :] if is_number(row.get(key))]
    return values[-count:] if len(values) >= count else []


def _mean(rows: Rows, key: str) -> float:
    """Average a key; nan, for which no comparison holds, where a row lacks it."""
    values = [row.get(key) for row in rows]
    return math.fsum(values) / len(values) if values and all(map(is_number, values)) else math.nan
