"""The page of one run: what was trained, how it went, what it says now, and with which settings."""

import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from trl_recipes.describe import duration
from trl_recipes.diagnostics import judge, range_of
from trl_recipes.report.comparison_page import answer, figures, side_by_side
from trl_recipes.report.page import (
    Html,
    element,
    facts,
    folded,
    join,
    number,
    page,
    plus_minus,
    section,
    table,
)
from trl_recipes.report.panels import curves
from trl_recipes.report.reading import RunFiles

SAMPLES = 8  # of the first step and of the last
PROMPTS = 4  # of the comparison that are seen at once
_WORDS = {"ece": "expected calibration error", "rmse": "root mean squared error"}
_PARTS = {  # of a step's time, as rows hold it
    "sampling": "time/generation",
    "scoring": "time/scoring",
    "forward passes": "time/ppo/forward_pass",
    "updates": "time/ppo/optimize_step",
    "whole step, as TRL measures it": "step_time",
}


def run_page(files: RunFiles) -> str:
    """Make the page of a run, as far as it came.

    Args:
        files: what `read_run` found.

    Returns:
        The whole page.
    """
    algorithm = files.record.get("algorithm") or _algorithm(files)
    kind = " · ".join(filter(None, ("trl_recipes", algorithm, files.header.get("recipe"))))
    return page(
        files.name,
        kind,
        _lead(files),
        element("dl", join(_tiles(files)), class_="tiles"),
        section("What was trained", _trained(files, algorithm)),
        section("Warnings", _warnings(files)),
        section("Curves", _curves(files)),
        section("Before and after, on held-out prompts", _held_out(files)),
        section("Samples, from the first step to the last", _samples(files)),
        section("Settings", _settings(files)),
        section("Versions, time and memory", _circumstances(files)),
    )


def _lead(files: RunFiles) -> str:
    ended = {
        "finished": "It finished",
        "stopped": "It was stopped",
        "failed": "It failed",
        "running": "It is still going on, or it was killed",
    }
    how = ended.get(_last_session(files).get("how"), "")
    steps = f"after {_count(files.stats[-1].get('step'), 'step')}" if files.stats else ""
    change = _change(files)
    if not files.stats:
        return f"{how or 'It has begun'}; no step has been written yet."
    told = f"{how} {steps}" if how else f"It has come to step {files.stats[-1].get('step', '?')}"
    return f"{change} {told}.".strip()


def _change(files: RunFiles) -> str:
    for name, keys in (
        ("Mean score", ("env/reward_mean", "ppo/mean_scores")),
        ("Held-out loss", ("loss/heldout",)),
        ("Training loss", ("loss/train",)),
    ):
        first, last = _ends(files.stats, keys)
        if last is not None:
            before, after = number(first), number(last)
            if before == after:
                return f"{name} stayed at {after}."
            return f"{name} {'rose' if last > first else 'fell'} from {before} to {after}."
    return ""


def _tiles(files: RunFiles) -> list[Html]:
    """The few numbers that one wants first; averages of a tenth of the steps."""
    tiles: list[tuple[str, object, object]] = []
    for name, unit, keys in (
        ("mean score", "", ("env/reward_mean", "ppo/mean_scores")),
        ("KL", "nats a response", ("objective/kl",)),
        ("training loss", "", ("loss/train",)),
        ("held-out loss", "", ("loss/heldout",)),
        ("length", "tokens", ("tokens/responses_len_mean",)),
    ):
        first, last = _ends(files.stats, keys)
        if last is not None:
            tiles.append((name, number(last), f"{unit}{', ' if unit else ''}from {number(first)}"))
    sessions = files.record.get("sessions") or []
    seconds = sum(s.get("seconds") or 0 for s in sessions)
    if seconds:
        tiles.append(("time", duration(seconds), "of training"))
    peaks = [s["gigabytes"] for s in sessions if s.get("gigabytes")]
    if peaks:
        tiles.append(("memory", f"{max(peaks):.2g} GB", "at most"))
    if files.stats:
        tiles.append(("warnings", len(files.warnings), "listed below" if files.warnings else ""))
    return [
        element("div", element("dt", name), element("dd", value, element("small", below)))
        for name, value, below in tiles
    ]


def _trained(files: RunFiles, algorithm: str) -> Html:
    settings, record = files.settings, files.record
    own = "embedded" if settings else ""  # where nothing is named
    rewards = record.get("rewards") or {}
    metrics = record.get("metrics") or []
    weighted = ", ".join(f"{name} (weight {_weight(weight)})" for name, weight in rewards.items())
    known = facts(
        [
            ("recipe", files.header.get("recipe")),
            ("algorithm", algorithm),
            ("start model", settings.get("model_name_or_path") or _own_start(files, algorithm)),
            ("data", settings.get("dataset_name") or settings.get("text_file") or own),
            ("rewards", weighted or _listed(settings.get("reward_funcs"))),
            ("metrics, never optimised", _listed(metrics)),
            ("stages before it", _stages(files)),
            *_figures(files.figures),
        ]
    )
    about = element("p", record["about"]) if record.get("about") else ""
    return join([about, known])


def _weight(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else "-"


def _figures(figures: Mapping[str, float]) -> list[tuple[str, str]]:
    """What the run found; half of an interval's width stands beside its mean."""
    shown = []
    for name, value in figures.items():
        if name.removesuffix("_half") in figures and name.endswith("_half"):
            continue
        half = figures.get(f"{name}_half")
        words = _WORDS.get(name, name.replace("_", " "))
        shown.append((words, number(value) if half is None else plus_minus(value, half)))
    return shown


def _own_start(files: RunFiles, algorithm: str) -> str:
    """The model of a run that named none; what comes from a stage or from scratch is said there."""
    from_stage = {"baseline", "pretrained"} & set(files.stages)
    return "embedded" if files.settings and algorithm and not from_stage else ""


def _stages(files: RunFiles) -> Html | str:
    links = [element("a", name, href=f"./{quote(name)}/report.html") for name in files.stages]
    return join(links, ", ") if links else ""


def _warnings(files: RunFiles) -> Html:
    if not files.warnings:
        return element("p", "None.") if files.stats else Html("")
    items = []
    for step, sentence in files.warnings:
        where = "" if step is None or sentence.startswith("Step ") else f"Step {step}: "
        items.append(element("li", where, sentence))
    return element("ul", join(items), class_="warnings")


def _curves(files: RunFiles) -> Html:
    target = files.record.get("kl_target")
    if target is None and files.settings.get("adap_kl_ctrl"):
        target = files.settings.get("target")
    drawn = [chart for chart in curves(files.stats, target) if chart]
    if not drawn:
        return Html("")
    charts = element("div", join(drawn), class_="charts")
    return element("div", charts, element("div", _healthy(files)), class_="beside")


def _healthy(files: RunFiles) -> Html:
    judged = judge(files.stats)
    if not judged:
        return Html("")
    rows = []
    for found in judged:
        mark = ("ok", "✓ in range") if found.within else ("off", "✗ outside")
        rows.append(
            (
                join([found.healthy.name, element("small", found.healthy.why, class_="soft")]),
                range_of(found.healthy),
                join([number(found.last), Html("<br>"), element("span", mark[1], class_=mark[0])]),
            )
        )
    sources = dict.fromkeys(found.healthy.source for found in judged)
    note = (
        "Rules of thumb, held to the mean of the last tenth of the steps. One that is left is a "
        f"reason to read the samples. From: {'; '.join(sources)}."
    )
    shown = table(["Measure", "Healthy", "Here"], rows, "Healthy ranges, and where this run ended")
    return join([element("h3", "Healthy ranges"), shown, element("p", element("small", note))])


def _held_out(files: RunFiles) -> Html:
    if files.comparison is None:
        return Html("")
    return join([figures(files.comparison), side_by_side(files.comparison, PROMPTS)])


def _samples(files: RunFiles) -> Html:
    steps = sorted({row["step"] for row in files.samples if isinstance(row.get("step"), int)})
    columns = []
    for step in dict.fromkeys([*steps[:1], *steps[-1:]]):
        rows = [row for row in files.samples if row.get("step") == step][:SAMPLES]
        cards = [
            answer(f"sample {n}", row.get("score"), row.get("query", ""), row.get("response", ""))
            for n, row in enumerate(rows, 1)
        ]
        columns.append(element("div", element("h3", f"Step {step}"), *cards, class_="column"))
    if not columns:
        return Html("")
    note = "The prompt in grey, then what the model wrote, with its score. Prompts differ by step."
    return join([element("p", element("small", note)), element("div", *columns, class_="samples")])


def _settings(files: RunFiles) -> Html:
    if not files.settings:
        return Html("")
    shown = facts((name, _plain(value)) for name, value in files.settings.items())
    derived = facts(files.derived.items())
    parts = [folded(f"{_count(len(files.settings), 'setting')} of config.yaml", shown)]
    if derived:
        parts.append(folded("Worked out from them", derived))
    return join(parts)


def _circumstances(files: RunFiles) -> Html:
    sessions = files.record.get("sessions") or []
    last = _last_session(files)
    rows = [
        (
            session.get("began", ""),
            {"running": "not ended"}.get(session.get("how"), session.get("how", "")),
            number(session.get("step")),
            duration(session["seconds"]) if session.get("seconds") else "-",
            f"{session['gigabytes']:.2g} GB" if session.get("gigabytes") else "-",
        )
        for session in sessions
    ]
    head = ["Started", "Ended", "At step", "Time", "Memory"]
    parts = _time_of_a_step(files.stats)
    return join(
        [
            table(head, rows, "Each time that the run was started") if rows else "",
            facts(
                [
                    ("started", "" if rows else files.header.get("started")),
                    ("device", last.get("device")),
                    ("versions", last.get("versions") or files.header.get("versions")),
                    ("said at the end", last.get("said")),
                    ("seconds of a step, in the mean", parts),
                ]
            ),
        ]
    )


def _time_of_a_step(stats: Sequence[dict[str, float]]) -> str:
    means = {}
    for name, key in _PARTS.items():
        values = [row[key] for row in stats if math.isfinite(row.get(key, math.nan))]
        if values:
            means[name] = math.fsum(values) / len(values)
    return ", ".join(f"{name} {value:.2g}" for name, value in means.items())


def _ends(
    stats: Sequence[dict[str, float]], keys: Sequence[str]
) -> tuple[float | None, float | None]:
    """Means over the first and the last tenth of the rows that hold one of the keys."""
    for key in keys:
        values = [row[key] for row in stats if math.isfinite(row.get(key, math.nan))]
        if values:
            window = max(1, min(len(values), 3), len(values) // 10)
            return math.fsum(values[:window]) / window, math.fsum(values[-window:]) / window
    return None, None


def _last_session(files: RunFiles) -> dict[str, Any]:
    return (files.record.get("sessions") or [{}])[-1]


def _algorithm(files: RunFiles) -> str:
    """Of a run older than the record."""
    keys = {key for row in files.stats for key in row}
    if "ppo/loss/total" in keys:
        return "PPO"
    return "GRPO or RLOO" if "groups/equal" in keys else ""


def _listed(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list) else str(values or "")


def _plain(value: Any) -> str:
    words = {"True": "true", "False": "false", "None": "none"}
    return words.get(str(value), str(value))


def _count(number: Any, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
