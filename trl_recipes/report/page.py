"""The pages of a run and of a comparison, from what lies on disk.

Jinja escapes whatever comes from a model, a data set, a file or a user. A page names no address
that a browser would fetch, holds no script, and forbids both to the browser as well.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trl_recipes.describe import duration, printable
from trl_recipes.diagnostics import judge, range_of
from trl_recipes.distributed import is_main_process
from trl_recipes.errors import RecipeError
from trl_recipes.report.overoptimization import judges_of, plot_run
from trl_recipes.report.plots import (
    PANELS,
    Panel,
    comparison_charts,
    ends,
    intervals_of,
    is_number,
    looks_of,
    number,
    panel_charts,
    plot_comparison,
    plus_minus,
)
from trl_recipes.report.reading import RunFiles, read_run
from trl_recipes.run_folder import RunFolder, note, write_whole
from trl_recipes.stats import load_stats, run_names

LONGEST = 2000  # characters of one text; a page is to be read
SAMPLES = 8  # of the first step and of the last
_NO_MEASURES = ("response", "length", "kl", "reference_nll")
_WORDS = {"ece": "expected calibration error", "rmse": "root mean squared error"}
_ENDED = {
    "finished": "It finished",
    "stopped": "It was stopped",
    "failed": "It failed",
    "running": "It is still going on, or it was killed",
}
_TILES = (
    ("mean score", "", PANELS["score"].lines["score"]),
    ("KL", "nats per response, ", ("objective/kl",)),
    ("training loss", "", ("loss/train",)),
    ("held-out loss", "", ("loss/heldout",)),
    ("length", "tokens, ", ("tokens/responses_len_mean",)),
)
_PARTS = {  # of a step's time, as rows hold it
    "time/generation": "sampling",
    "time/scoring": "scoring",
    "time/ppo/forward_pass": "forward passes",
    "time/ppo/optimize_step": "updates",
    "step_time": "whole step, as TRL measures it",
}


def write_report(
    run: str | os.PathLike | RunFolder, figures: Mapping[str, float] | None = None
) -> Path:
    """Write report.html into a run folder, as far as the run has come; the main process does it.

    `figures` are what the run found, by name; they are kept with it.
    """
    run = run if isinstance(run, RunFolder) else RunFolder(Path(run).expanduser())
    if not is_main_process():
        return run.report
    if figures is not None:
        note(run, figures=dict(figures))
    return _write(run.report, run_page(run.path))


def write_results(run: RunFolder, comparison: Any, samples: str | None = None) -> str:
    """Keep what a finished run came to - `Comparison` with its start, pictures, page - and say it.

    `samples` are texts to tell first; None takes three prompts with their answers side by side.
    """
    comparison.save(run.comparison)
    said = plot_run(load_stats(run.path), run.plots, run.path.name)
    write_report(run)
    samples = comparison.side_by_side(3) if samples is None else samples
    return "\n\n".join([samples, comparison.table(), *said, run.places()])


def write_comparison(
    comparison: Any, folder: str | os.PathLike, runs: Sequence[str | os.PathLike] = ()
) -> str:
    """Write a `Comparison` as comparison.json, comparison.png and compare.html; say where they lie.

    `runs` are the folders of the runs that the models are of; the page shows their curves.
    """
    folder = Path(folder)
    comparison.save(folder / "comparison.json")
    plot_comparison(comparison, folder / "comparison.png")
    named = zip(run_names(list(runs), taken=["reference"]), runs, strict=True)
    stats = {n: load_stats(run) for n, run in named if RunFolder(Path(run)).all_stats.is_file()}
    page = _write(folder / "compare.html", comparison_page(comparison.to_dict(), stats))
    return (
        f"Page:     {page}\nPictures: {folder / 'comparison.png'}\n"
        f"Numbers:  {folder / 'comparison.json'}"
    )


def comparison_page(comparison: Mapping[str, Any], runs: Mapping[str, Any]) -> str:
    """Make the page of a comparison.json; `runs` are the all_stats of models, by name."""
    models = comparison["models"]
    panels = [PANELS[name] for name in ("score", "kl", "entropy", "length")]
    stats = {name: runs.get(name, []) for name in models}  # each in its model's color
    looks = looks_of(len(models))
    return _render(
        "comparison.html.j2",
        title=f"{len(models)} models on the same prompts",
        kind="trl_recipes · comparison",
        lead=f"{' · '.join(models)}. {comparison['n']} prompts, seed {comparison['seed']}; KL and "
        f"perplexity are under {comparison['reference']}.",
        found=_comparison(comparison),
        colors={name: look["color"] for name, look in zip(models, looks, strict=True)},
        pictures=comparison_charts(models, _measures(models)),
        runs=[name for name in models if name in runs],
        curves=panel_charts(panels, stats) if runs else [],
    )


def run_page(folder: str | os.PathLike) -> str:
    """Make the page of a run, as far as it came."""
    files = read_run(folder)
    return _render(
        "run.html.j2",
        title=files.run.path.resolve().name,
        kind=" · ".join(filter(None, ("trl_recipes", files.algorithm, files.recipe))),
        lead=_lead(files),
        files=files,
        tiles=_tiles(files),
        trained=_trained(files),
        charts=_curves(files),
        judged=judge(files.stats),
        found=_comparison(files.comparison) if files.comparison else None,
        samples=_samples(files),
        settings=_given((name, _plain(value)) for name, value in files.settings.items()),
        circumstances=_circumstances(files),
    )


def _render(template: str, **context: Any) -> str:
    environment = Environment(
        loader=PackageLoader("trl_recipes.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "range": range_of, "duration": duration}
    return environment.get_template(template).render(context)


def _shown(value: Any) -> Any:
    """Text of any origin made fit for a page: controls become spaces, a long one is cut."""
    if value is None or isinstance(value, Markup):
        return value or ""
    whole = str(value)
    shown = "\n".join(printable(line) for line in whole[:LONGEST].split("\n"))
    more = len(whole) - LONGEST
    return shown + (f" … ({more:,} more characters)" if more > 0 else "")


def _write(path: Path, page: str) -> Path:
    try:
        write_whole(path, page)
    except OSError as error:
        raise RecipeError(
            f"`{path}` could not be written ({error.strerror}). Free some space, or make the "
            "folder writable."
        ) from error
    return path


def _comparison(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates show of a comparison.json: figures and answers."""
    models = comparison["models"]
    measures = _measures(models)
    rows = {m: m for m in measures} | {"kl": "KL, nats per response", "length": "length, tokens"}
    figures = [
        (name, *(plus_minus(*interval) for interval in intervals_of(models, key).values()))
        for key, name in rows.items()
    ]
    for key, name in (("perplexity", "perplexity"), ("distinct_2", "distinct-2")):
        figures.append((name, *(number(model.get(key)) for model in models.values())))
    shown = {"models": models, "prompts": comparison["prompts"]}
    return shown | {"figures": figures, "score": next(iter(measures), None)}


def _measures(models: Mapping[str, Any]) -> list[str]:
    """Names of the measures, the score first."""
    rows = next(iter(models.values()), {}).get("responses") or [{}]
    return [name for name in rows[0] if name not in _NO_MEASURES]


def _lead(files: RunFiles) -> str:
    how = _ENDED.get(files.last_session.get("how"), "")
    if not files.stats:
        return f"{how or 'It has begun'}; no step has been written yet."
    step = files.stats[-1].get("step")
    steps = f"after {step} step{'' if step == 1 else 's'}"
    told = f"{how} {steps}" if how else f"It has come to step {step or '?'}"
    return f"{_change(files)} {told}.".strip()


def _change(files: RunFiles) -> str:
    for name, _, keys in (_TILES[0], _TILES[3], _TILES[2]):
        found = ends(files.stats, keys)
        if found is not None:
            before, after = map(number, found)
            if before == after:
                return f"{name.capitalize()} stayed at {after}."
            way = "rose" if found[1] > found[0] else "fell"
            return f"{name.capitalize()} {way} from {before} to {after}."
    return ""


def _tiles(files: RunFiles) -> list[tuple[str, Any, str]]:
    """The few numbers that one wants first; averages of a tenth of the steps."""
    tiles = [
        (name, number(found[1]), f"{unit}from {number(found[0])}")
        for name, unit, keys in _TILES
        if (found := ends(files.stats, keys)) is not None
    ]
    sessions = files.record["sessions"]
    seconds = sum(session.get("seconds") or 0 for session in sessions)
    peak = max((session.get("gigabytes") or 0 for session in sessions), default=0)
    if seconds:
        tiles.append(("time", duration(seconds), "of training"))
    if peak:
        tiles.append(("memory", f"{peak:.2g} GB", "at most"))
    if files.stats:
        tiles.append(("warnings", len(files.warnings), "listed below" if files.warnings else ""))
    return tiles


def _trained(files: RunFiles) -> list[tuple[str, Any]]:
    settings, record, algorithm = files.settings, files.record, files.algorithm
    embedded = "embedded" if settings else ""  # where nothing is named
    from_stage = {"baseline", "pretrained"} & set(files.stages)
    rewards = [
        f"{name} (weight {f'{weight:g}' if is_number(weight) else '-'})"
        for name, weight in (record.get("rewards") or {}).items()
    ]
    start = embedded if algorithm and not from_stage else ""
    facts = [
        ("recipe", files.recipe),
        ("algorithm", algorithm),
        ("start model", settings.get("model_name_or_path") or start),
        ("data", settings.get("dataset_name") or settings.get("text_file") or embedded),
        ("rewards", _listed(rewards or settings.get("reward_funcs"))),
        ("metrics, never optimized", _listed(record.get("metrics"))),
    ]
    for name, value in files.figures.items():  # half of an interval's width beside its mean
        half = files.figures.get(f"{name}_half")
        if not (name.endswith("_half") and name.removesuffix("_half") in files.figures):
            shown = number(value) if half is None else plus_minus(value, half)
            facts.append((_WORDS.get(name, name.replace("_", " ")), shown))
    return _given(facts)


def _curves(files: RunFiles) -> list[Any]:
    """Charts of all panels, and one for each reward and metric, as each has a unit of its own."""
    adaptive = files.settings.get("target") if files.settings.get("adap_kl_ctrl") else None
    target = files.record.get("kl_target", adaptive)
    keys = dict.fromkeys(key for row in files.stats for key in row)
    rewards = [key for key in keys if key.startswith("rewards/") and key.endswith("/mean")]
    units = dict.fromkeys(rewards if len(rewards) > 1 else [], "reward, unweighted")
    units |= dict.fromkeys(judges_of(files.stats), "metric, never optimized")
    names = {key: key.split("/", 1)[1].removesuffix("/mean") for key in units}
    own = [Panel(names[k], unit, {names[k]: (k,)}, points=True) for k, unit in units.items()]
    first, *others = PANELS.values()
    return panel_charts([first, *own, *others], {"": files.stats}, target)


def _samples(files: RunFiles) -> dict[int, list[dict[str, Any]]]:
    """Some of the first step and of the last."""
    steps = sorted({row["step"] for row in files.samples if isinstance(row.get("step"), int)})
    return {
        step: [row for row in files.samples if row.get("step") == step][:SAMPLES]
        for step in dict.fromkeys([*steps[:1], *steps[-1:]])
    }


def _circumstances(files: RunFiles) -> list[tuple[str, Any]]:
    last, header = files.last_session, files.header
    means = pd.DataFrame(files.stats).reindex(columns=[*_PARTS]).mean().dropna()
    parts = ", ".join(f"{_PARTS[key]} {mean:.2g}" for key, mean in means.items())
    return _given(
        [
            ("started", "" if files.record["sessions"] else header.get("started")),
            ("device", last.get("device")),
            ("versions", last.get("versions") or header.get("versions")),
            ("said at the end", last.get("said")),
            ("seconds of a step, in the mean", parts),
        ]
    )


def _given(pairs: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in pairs if value not in (None, "")]


def _listed(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list) else str(values or "")


def _plain(value: Any) -> str:
    words = {"True": "true", "False": "false", "None": "none"}
    return words.get(str(value), str(value))
