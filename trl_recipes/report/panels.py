"""Which curves a run's page shows, and from which statistics."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trl_recipes.evaluation.overoptimization import judges_of
from trl_recipes.report.charts import Series, line_chart
from trl_recipes.report.page import Html
from trl_recipes.stats import steps_of


class Panel(NamedTuple):
    """One chart.

    Attributes:
        title: stands above it.
        unit: of the values.
        lines: keys of all_stats by the line's name; the first that a run has is drawn.
        smooth: faint points and a moving average, in the place of a line.
        note: a sentence below.
    """

    title: str
    unit: str
    lines: Mapping[str, tuple[str, ...]]
    smooth: bool = False
    note: str = ""


PANELS = (
    Panel(
        "Mean score",
        "score",
        {"score": ("env/reward_mean", "ppo/mean_scores")},
        smooth=True,
        note="Points: single steps. Line: moving average.",
    ),
    Panel("KL from the reference", "nats a response", {"KL": ("objective/kl",)}),
    Panel("KL coefficient", "score a nat", {"coefficient": ("objective/kl_coef",)}),
    Panel(
        "Loss",
        "loss",
        {"total": ("ppo/loss/total",), "value head": ("ppo/loss/value",)},
        note="The total need not fall: read the score.",
    ),
    Panel(
        "Score's spread in a group",
        "standard deviation",
        {"spread": ("groups/reward_std",)},
        smooth=True,
    ),
    Panel("Groups without any spread", "share of groups", {"equal": ("groups/equal",)}),
    Panel(
        "Loss",
        "loss",
        {"loss": ("loss",)},
        smooth=True,
        note="Stays near 0 however well it goes: read the score.",
    ),
    Panel("Loss", "loss", {"training text": ("loss/train",), "held-out text": ("loss/heldout",)}),
    Panel("Accuracy on the batches", "share of pairs", {"accuracy": ("accuracy",)}, smooth=True),
    Panel("Margin of the winners", "logits", {"margin": ("margin",)}, smooth=True),
    Panel(
        "Entropy of the next token", "nats a token", {"entropy": ("entropy", "ppo/policy/entropy")}
    ),
    Panel("Length of the responses", "tokens", {"length": ("tokens/responses_len_mean",)}),
    Panel("Distinct pairs of tokens", "share", {"distinct": ("samples/distinct_2",)}),
    Panel("Norm of the gradient", "before clipping", {"norm": ("grad_norm",)}),
    Panel("Learning rate", "of each step", {"rate": ("ppo/learning_rate", "learning_rate")}),
)


def curves(stats: Sequence[Mapping[str, Any]], kl_target: float | None = None) -> list[Html]:
    """Draw every panel that a run has statistics for.

    Args:
        stats: one row a step.
        kl_target: of the adaptive KL controller, in nats a response.
    """
    rewards = _means(stats, "rewards/")
    several = rewards if len(rewards) > 1 else []
    panels = [
        PANELS[0],
        *(_of_function(key, "reward, unweighted") for key in several),
        *(_of_function(key, "metric, never optimised") for key in judges_of(stats)),
        *PANELS[1:],
    ]
    return [
        line_chart(
            panel.title,
            panel.unit,
            [_series(name, stats, keys) for name, keys in panel.lines.items() if _has(stats, keys)],
            smooth=panel.smooth,
            target=kl_target if "objective/kl" in panel.lines.get("KL", ()) else None,
            note=panel.note,
        )
        for panel in panels
    ]


def _series(name: str, stats: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Series:
    key = next((key for key in keys if any(key in row for row in stats)), keys[0])
    return Series(name, steps_of(stats), [float(row.get(key, math.nan)) for row in stats])


def _has(stats: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> bool:
    return any(key in row for row in stats for key in keys)


def _means(stats: Sequence[Mapping[str, Any]], prefix: str) -> list[str]:
    keys = dict.fromkeys(key for row in stats for key in row)
    return [key for key in keys if key.startswith(prefix) and key.endswith("/mean")]


def _of_function(key: str, unit: str) -> Panel:
    """A chart of its own for each function, as each has a unit of its own."""
    name = key.split("/", 1)[1].removesuffix("/mean")
    return Panel(name, unit, {name: (key,)}, smooth=True)
