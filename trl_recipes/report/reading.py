"""What a run folder holds, read for its page; parts that are not there are empty."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_recipes.errors import RecipeError
from trl_recipes.evaluation.overoptimization import judges_of, overoptimisation
from trl_recipes.run_folder import RunFolder, read_config, read_header, read_record
from trl_recipes.stats import load_stats, read_rows

# Where a run's comparison may lie; grpo_shouting.py has a stage for it.
_COMPARISONS = ("comparison.json", "evaluation/comparison.json")
_RECORD = {
    "algorithm": str,
    "about": str,
    "rewards": dict,
    "metrics": list,
    "kl_target": int | float,
}
_RECORD |= {"figures": dict, "sessions": list}
_SESSION = {"began": str, "how": str, "said": str, "device": str, "versions": str}
_SESSION |= {"step": int, "seconds": int | float, "gigabytes": int | float}


@dataclass(frozen=True)
class RunFiles:
    """All that a run left.

    Attributes:
        run: the run folder.
        header: recipe, start and versions, from config.yaml.
        settings: of config.yaml.
        derived: what was worked out from them.
        record: of training.json.
        stats: one row a step.
        samples: rows with step, query, response and score.
        warnings: step (None: the whole run) and sentence.
        comparison: figures and answers before and after; None where none were made.
        figures: what the run found when it ended, by name.
        stages: folders of the stages before it that have a page.
    """

    run: RunFolder
    header: dict[str, str]
    settings: dict[str, Any]
    derived: dict[str, str]
    record: dict[str, Any]
    stats: list[dict[str, float]]
    samples: list[dict[str, Any]]
    warnings: list[tuple[Any, str]]
    comparison: dict[str, Any] | None
    figures: dict[str, float]
    stages: list[str]

    @property
    def name(self) -> str:
        """Of the run: its folder's."""
        return self.run.path.resolve().name


def read_run(folder: str | Path) -> RunFiles:
    """Read a run folder, whether the run has ended or not.

    Args:
        folder: of the run.

    Raises:
        RecipeError: no run is there, or one of its files is damaged.
    """
    run = RunFolder(Path(folder).expanduser())
    if not any(path.is_file() for path in (run.config, run.all_stats, run.record)):
        raise RecipeError(
            f"`{run}` holds no run: neither config.yaml nor all_stats.jsonl is there. Give the "
            "folder of a run."
        )
    header, derived = read_header(run)
    rows = read_rows(run.all_stats)
    stats = load_stats(run.path) if rows else []
    record = _kept(read_record(run), _RECORD)
    record["sessions"] = [_kept(session, _SESSION) for session in record.get("sessions", [])]
    alarms = [(row.get("step"), str(row.get("alarm", ""))) for row in read_rows(run.alarms)]
    return RunFiles(
        run=run,
        header=header,
        settings=read_config(run) if run.config.is_file() else {},
        derived=derived,
        record=record,
        stats=stats,
        samples=read_rows(run.samples),
        warnings=[*_ended_badly(record), *alarms, *_parted(stats)],
        comparison=_comparison(run),
        figures=_numbers(_json(run.stage).get("result")) | _numbers(record.get("figures")),
        stages=[path.parent.name for path in sorted(run.path.glob("*/report.html"))],
    )


def _ended_badly(record: dict[str, Any]) -> list[tuple[Any, str]]:
    sessions = record.get("sessions") or [{}]
    if sessions[-1].get("how") != "failed":
        return []
    return [(sessions[-1].get("step"), f"The run failed. {sessions[-1].get('said', '')}")]


def _parted(stats: list[dict[str, float]]) -> list[tuple[Any, str]]:
    """Where a judge fell while the score rose; runs without what that needs have none."""
    needed = all(any(key in row for row in stats) for key in ("objective/kl", "env/reward_mean"))
    said = [overoptimisation(stats, judge) for judge in judges_of(stats)] if needed else []
    return [(None, sentence) for sentence in said if sentence is not None]


def _comparison(run: RunFolder) -> dict[str, Any] | None:
    for name in _COMPARISONS:
        found = _json(run.path / name)
        models = found.get("models")
        if (
            found.get("prompts")
            and isinstance(models, dict)
            and all(map(_answers, models.values()))
        ):
            return found
    return None


def _answers(model: Any) -> bool:
    """Whether a file of that name holds what `Comparison.to_dict` gives, not something else."""
    rows = model.get("responses") if isinstance(model, dict) else None
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _kept(found: Any, kinds: dict[str, Any]) -> dict[str, Any]:
    """The entries of a file edited by hand that are what they should be."""
    found = found if isinstance(found, dict) else {}
    return {name: value for name, value in found.items() if isinstance(value, kinds.get(name, ()))}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"`{path}` is damaged ({error}). Mend or delete it.") from error
    return found if isinstance(found, dict) else {}


def _numbers(found: Any) -> dict[str, float]:
    """Numbers by name, of a level more where they lie in one."""
    flat: dict[str, float] = {}
    for name, value in (found if isinstance(found, dict) else {}).items():
        if isinstance(value, dict):
            flat |= _numbers(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[str(name)] = value
    return flat
