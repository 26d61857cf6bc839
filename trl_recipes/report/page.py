"""The pages of a run and of a comparison, from what lies on disk.

Jinja escapes whatever comes from a model, a data set, a file or a user. A page names no address
that a browser would fetch, holds no script, and forbids both to the browser as well.
"""

import json
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
from trl_recipes.report import plots
from trl_recipes.report.overoptimization import judges_of, overoptimization, plot_run
from trl_recipes.run_folder import (
    RunFolder,
    note,
    read_config,
    read_header,
    read_record,
    write_whole,
)
from trl_recipes.stats import Rows, is_number, load_stats, read_rows, run_names

LONGEST = 2000  # characters of one text; a page is to be read
SAMPLES = 8  # of the first step and of the last
_NO_MEASURES = ("response", "length", "kl", "reference_nll")
_WORDS = {"ece": "expected calibration error", "rmse": "root mean squared error"}
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
    """Write report.html of a run, as far as it has come; `figures`, its results, are kept."""
    run = run if isinstance(run, RunFolder) else RunFolder(run)
    if not is_main_process():
        return run.report
    if figures is not None:
        note(run, figures=dict(figures))
    write_whole(run.report, run_page(run.path))
    return run.report


def write_results(run: RunFolder, comparison: Any, samples: str | None = None) -> str:
    """Write a finished run's comparison with its start, pictures and page; return them as text.

    `samples` is the text to begin with, else three prompts with their answers.
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
    plots.plot_comparison(comparison, folder / "comparison.png")
    named = zip(run_names(list(runs), taken=["reference"]), runs, strict=True)
    stats = {n: load_stats(run) for n, run in named if RunFolder(run).all_stats.is_file()}
    page = folder / "compare.html"
    write_whole(page, comparison_page(comparison.to_dict(), stats))
    return (
        f"Page:     {page}\nPictures: {folder / 'comparison.png'}\n"
        f"Numbers:  {folder / 'comparison.json'}"
    )


def comparison_page(comparison: Mapping[str, Any], runs: Mapping[str, Any]) -> str:
    """Make the page of a comparison.json; `runs` are the all_stats of models, by name."""
    models = comparison["models"]
    panels = [plots.PANELS[name] for name in ("score", "kl", "entropy", "length")]
    stats = {name: runs.get(name, []) for name in models}  # each in its model's color
    looks = plots.looks_of(len(models))
    return _render(
        "comparison.html.j2",
        title=f"{len(models)} models on the same prompts",
        kind="trl_recipes · comparison",
        lead=f"{' · '.join(models)}. {comparison['n']} prompts, seed {comparison['seed']}; KL and "
        f"perplexity are under {comparison['reference']}.",
        found=_comparison(comparison),
        colors={name: look["color"] for name, look in zip(models, looks, strict=True)},
        pictures=plots.comparison_charts(models, _measures(models)),
        runs=[name for name in models if name in runs],
        curves=plots.panel_charts(panels, stats) if runs else [],
    )


def run_page(folder: str | os.PathLike) -> str:
    """Make the page of a run, as far as it came; parts that are not there are left out."""
    run = RunFolder(folder)
    if not any(path.is_file() for path in (run.config, run.all_stats, run.record)):
        raise RecipeError(
            f"`{run}` holds no run: neither config.yaml nor all_stats.jsonl is there. Give the "
            "folder of a run."
        )
    header, record = read_header(run), read_record(run)
    settings = read_config(run) if run.config.is_file() else {}
    stats = load_stats(run.path) if read_rows(run.all_stats) else []
    sessions = record.get("sessions") or []
    last = sessions[-1] if sessions else {}
    warnings = _warnings(run, stats, last)
    compared = read_json(run.comparison)
    algorithm = record.get("algorithm") or ""
    rewards = [f"{name} (weight {weight:g})" for name, weight in record.get("rewards", {}).items()]
    times = pd.DataFrame(stats).reindex(columns=[*_PARTS]).mean().dropna()
    return _render(
        "run.html.j2",
        title=run.path.resolve().name,
        kind=" · ".join(filter(None, ("trl_recipes", algorithm, header.get("recipe")))),
        header=header,
        settings=settings,
        chosen=[(n, "none" if v is None else v) for n, v in settings.items()],
        record=record,
        algorithm=algorithm,
        rewards=rewards or settings.get("reward_funcs") or [],
        stages=[path.parent.name for path in sorted(run.path.glob("*/report.html"))],
        seconds=sum(session.get("seconds") or 0 for session in sessions),
        peak=max((session.get("gigabytes") or 0 for session in sessions), default=0),
        figures=_figures((read_json(run.stage).get("result") or {}) | record.get("figures", {})),
        warnings=warnings,
        stats=stats,
        charts=_curves(stats, kl_target(run)),
        judged=judge(stats),
        found=_comparison(compared) if compared.get("prompts") else None,
        samples=_samples(read_rows(run.samples)),
        sessions=sessions,
        last=last,
        times=", ".join(f"{_PARTS[key]} {mean:.2g}" for key, mean in times.items()),
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
    environment.globals |= {"ends": plots.ends, "headline": plots.headline}
    environment.filters |= {"number": plots.number, "range": range_of, "duration": duration}
    return environment.get_template(template).render(context)


def _shown(value: Any) -> Any:
    """Text of any origin made fit for a page: controls become spaces, a long one is cut."""
    if value is None or isinstance(value, Markup):
        return value or ""
    whole = str(value).lower() if isinstance(value, bool) else str(value)
    shown = "\n".join(printable(line) for line in whole[:LONGEST].split("\n"))
    more = len(whole) - LONGEST
    return shown + (f" … ({more:,} more characters)" if more > 0 else "")


def _comparison(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates show of a comparison.json: figures and answers."""
    models, measures = comparison["models"], _measures(comparison["models"])
    columns = [plots.figure_cells(model, measures) for model in models.values()]
    figures = [(name, *(column[name] for column in columns)) for name in columns[0]]
    shown = {"models": models, "prompts": comparison["prompts"]}
    return shown | {"figures": figures, "score": next(iter(measures), None)}


def _measures(models: Mapping[str, Any]) -> list[str]:
    """Names of the measures, the score first."""
    rows = next(iter(models.values()), {}).get("responses") or [{}]
    return [name for name in rows[0] if name not in _NO_MEASURES]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run; nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RecipeError(f"`{path}` is damaged ({error}). Fix or delete it.") from error


def _warnings(run: RunFolder, stats: Rows, last: Mapping[str, Any]) -> list[tuple[Any, str]]:
    """Step (None: the whole run) and sentence of each; a failure first, then what alarms said."""
    failed = [(last.get("step"), f"The run failed. {last.get('said', '')}")]
    alarms = [(row.get("step"), str(row.get("alarm", ""))) for row in read_rows(run.alarms)]
    parted = [overoptimization(stats, judge) for judge in judges_of(stats)]
    ended = failed if last.get("how") == "failed" else []
    return [*ended, *alarms, *((None, sentence) for sentence in parted if sentence)]


def _figures(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run found by name, half of an interval's width beside its mean."""
    return [
        (
            _WORDS.get(name, name.replace("_", " ")),
            plots.plus_minus(value, found[f"{name}_half"])
            if f"{name}_half" in found
            else plots.number(value),
        )
        for name, value in found.items()
        if is_number(value) and not name.endswith("_half")
    ]


def kl_target(run: RunFolder) -> float | None:
    """Give the KL that a run's controller aims at, in nats per response, if it aims at one."""
    config = read_config(run) if run.config.is_file() else {}
    return config.get("target") if config.get("adap_kl_ctrl") else None


def _curves(stats: Rows, target: float | None) -> list[plots.Chart]:
    """Charts of all panels, and one for each reward and metric, as each has a unit of its own."""
    keys = dict.fromkeys(key for row in stats for key in row)
    rewards = [key for key in keys if key.startswith("rewards/") and key.endswith("/mean")]
    units = dict.fromkeys(rewards if len(rewards) > 1 else [], "reward, unweighted")
    units |= dict.fromkeys(judges_of(stats), "metric, never optimized")
    names = {key: key.split("/", 1)[1].removesuffix("/mean") for key in units}
    own = [plots.Panel(names[k], unit, {names[k]: (k,)}, points=True) for k, unit in units.items()]
    first, *others = plots.PANELS.values()
    return plots.panel_charts([first, *own, *others], {"": stats}, target)


def _samples(rows: Rows) -> dict[int, list[Mapping[str, Any]]]:
    """Some of the first step and of the last."""
    steps = sorted({row["step"] for row in rows if isinstance(row.get("step"), int)})
    return {
        step: [row for row in rows if row.get("step") == step][:SAMPLES]
        for step in dict.fromkeys([*steps[:1], *steps[-1:]])
    }
