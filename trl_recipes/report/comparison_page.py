"""The page that shows models beside each other: figures, pictures, the same prompts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trl_recipes.report.charts import Interval, Series, histogram, interval_chart, line_chart
from trl_recipes.report.page import (
    Html,
    element,
    folded,
    join,
    number,
    page,
    plus_minus,
    section,
    table,
    text,
)
from trl_recipes.stats import steps_of

SHOWN = 6  # prompts with their answers that are seen at once
MOST = 100  # and those that can be opened
_NO_MEASURES = ("response", "length", "kl", "reference_nll")


def comparison_page(
    comparison: Mapping[str, Any], runs: Mapping[str, Sequence[Mapping[str, float]]]
) -> str:
    """Make the page of a comparison.

    Args:
        comparison: what `Comparison.to_dict` gives, or what was read from comparison.json.
        runs: all_stats of the runs among the models, by name; drawn over each other.

    Returns:
        The whole page.
    """
    models = comparison["models"]
    names = " · ".join(models)
    charts = element("div", join(pictures(comparison)), class_="charts")
    colors = {name: i for i, name in enumerate(models)}
    curves = join(
        line_chart(title, unit, _series(runs, keys, colors), smooth=True)
        for title, unit, keys in _CURVES
    )
    own = element("p", element("small", "The score is what each run was trained for."))
    return page(
        f"{len(models)} models on the same prompts",
        "trl_recipes · comparison",
        f"{names}. {comparison['n']} prompts, seed {comparison['seed']}; KL and perplexity are "
        f"under {comparison['reference']}.",
        section("Figures", figures(comparison)),
        section("Pictures", charts),
        section(
            "How they came there",
            *([own, element("div", curves, class_="charts")] if curves else []),
        ),
        section("Same prompts, different models", side_by_side(comparison)),
    )


def figures(comparison: Mapping[str, Any]) -> Html:
    """Make the table of figures: a line a figure, a column a model.

    Args:
        comparison: as for `comparison_page`.
    """
    models = comparison["models"]
    rows = [(m, *(_interval(model.get(m)) for model in models.values())) for m in measures(models)]
    for name, key in (("KL, nats a response", "kl"), ("length, tokens", "length")):
        rows.append((name, *(_interval(model.get(key)) for model in models.values())))
    for name, key in (("perplexity", "perplexity"), ("distinct-2", "distinct_2")):
        rows.append((name, *(number(model.get(key)) for model in models.values())))
    note = "Means, with half the width of their 95 % intervals."
    shown = table(["", *models], rows, "Figures of each model", numbers=True)
    return join([shown, element("p", element("small", note))])


def pictures(comparison: Mapping[str, Any]) -> list[Html]:
    """Draw each measure's means, and how the score is spread.

    Args:
        comparison: as for `comparison_page`.
    """
    models = comparison["models"]
    drawn = [
        interval_chart(title, [_bar(name, model.get(key)) for name, model in models.items()])
        for key, title in ({m: m for m in measures(models)} | {"kl": "KL, nats a response"}).items()
    ]
    score = next(iter(measures(models)), None)
    spread = [
        (name, [row[score] for row in model["responses"] if _is_number(row.get(score))])
        for name, model in models.items()
    ]
    return [*drawn, histogram(f"Spread of {score}", str(score), spread)] if score else drawn


def side_by_side(comparison: Mapping[str, Any], shown: int = SHOWN) -> Html:
    """Show what each model made of the same prompts, with the score of each.

    Args:
        comparison: as for `comparison_page`.
        shown: prompts that are seen at once; up to `MOST` can be opened.
    """
    models, prompts = comparison["models"], comparison["prompts"]
    score = next(iter(measures(models)), None)
    blocks = [_prompt(row, prompt, models, score) for row, prompt in enumerate(prompts[:MOST])]
    parts = [element("p", element("small", f"The number is {score}."))] if score else []
    parts += blocks[:shown]
    if blocks[shown:]:
        count = f"{len(blocks[shown:])} more prompts"
        if len(prompts) > MOST:
            count += f"; all {len(prompts)} are in comparison.json"
        parts.append(folded(count, *blocks[shown:]))
    return join(parts)


def measures(models: Mapping[str, Any]) -> list[str]:
    """Name the measures of a comparison, the score first.

    Args:
        models: of the comparison, by name.
    """
    rows = next(iter(models.values()), {}).get("responses") or [{}]
    return [name for name in rows[0] if name not in _NO_MEASURES]


def answer(who: object, score: object, query: object, response: object) -> Html:
    """Make a card of one answer.

    Args:
        who: said it.
        score: of it; None shows none.
        query: what was asked, or how the text began; empty for none.
        response: what it said.
    """
    head = [element("span", who)]
    if score is not None:
        head.append(element("span", number(score), class_="score"))
    asked = element("span", query, class_="query") if query else ""
    shown = text(response if query else str(response).lstrip())
    said = element("p", asked, shown or element("span", "(empty)", class_="soft"))
    return element("div", element("p", *head, class_="who"), said, class_="sample")


_CURVES = (
    ("Mean score", "score", ("env/reward_mean", "ppo/mean_scores")),
    ("KL from the reference", "nats a response", ("objective/kl",)),
    ("Entropy of the next token", "nats a token", ("entropy", "ppo/policy/entropy")),
    ("Length of the responses", "tokens", ("tokens/responses_len_mean",)),
)


def _series(
    runs: Mapping[str, Sequence[Mapping[str, float]]],
    keys: Sequence[str],
    colors: Mapping[str, int],
) -> list[Series]:
    series = []
    for name, rows in runs.items():
        key = next((key for key in keys if any(key in row for row in rows)), keys[0])
        values = [row.get(key, math.nan) for row in rows]
        series.append(Series(name, steps_of(rows), values, colors.get(name)))
    return series


def _prompt(row: int, prompt: str, models: Mapping[str, Any], score: str | None) -> Html:
    cards = []
    for name, model in models.items():
        said = model["responses"][row] if row < len(model["responses"]) else {}
        cards.append(answer(name, said.get(score), "", said.get("response", "")))
    return join([element("h3", prompt, " …"), element("div", *cards, class_="samples")])


def _bar(name: str, summary: Any) -> Interval:
    found = summary if isinstance(summary, dict) else {}
    mean, half = (found.get(key) for key in ("mean", "half_width_95"))
    return Interval(name, *(v if _is_number(v) else math.nan for v in (mean, half)))


def _interval(summary: Any) -> str:
    bar = _bar("", summary)
    return plus_minus(bar.mean, bar.half)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
