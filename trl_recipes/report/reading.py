"""What a run folder holds, read for its page; parts that are not there are empty."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_recipes.errors import RecipeError
from trl_recipes.report.overoptimization import judges_of, overoptimization
from trl_recipes.run_folder import RunFolder, read_config, read_header, read_record
from trl_recipes.stats import load_stats, read_rows

# Where a run's comparison may lie; grpo_shouting.py has a stage for it.
_COMPARISONS = ("comparison.json", "evaluation/comparison.json")
_NUMBER = int | float
_RECORD = {"algorithm": str, "about": str, "rewards": dict, "metrics": list, "kl_target": _NUMBER}
_RECORD |= {"figures": dict, "sessions": list}
_SESSION = {"began": str, "how": str, "said": str, "device": str, "versions": str}
_SESSION |= {"step": int, "seconds": _NUMBER, "gigabytes": _NUMBER}


@dataclass(frozen=True)
class RunFiles:
    """All that a run left."""

    run: RunFolder
    header: dict[str, str]  # recipe, start and versions, from config.yaml
    settings: dict[str, Any]
    derived: dict[str, str]  # what was worked out from the settings
    record: dict[str, Any]  # of training.json
    stats: list[dict[str, float]]
    samples: list[dict[str, Any]]
    warnings: list[tuple[Any, str]]  # step (None: the whole run) and sentence
    comparison: dict[str, Any] | None
    figures: dict[str, float]  # what the run found when it ended, by name
    stages: list[str]  # folders of the stages before it that have a page

    @property
    def recipe(self) -> str | None:
        """Name of the recipe, where config.yaml says it."""
        return self.header.get("recipe")

    @property
    def algorithm(self) -> str:
        """What the record says, or the keys of a run that is older than the record."""
        keys = {key for row in self.stats for key in row}
        older = {"ppo/loss/total": "PPO", "groups/equal": "GRPO or RLOO"}
        guess = next((name for key, name in older.items() if key in keys), "")
        return self.record.get("algorithm") or guess

    @property
    def last_session(self) -> dict[str, Any]:
        """How the last start of the run went."""
        return (self.record["sessions"] or [{}])[-1]


def read_run(folder: str | Path) -> RunFiles:
    """Read a run folder, whether the run has ended or not."""
    run = RunFolder(Path(folder).expanduser())
    if not any(path.is_file() for path in (run.config, run.all_stats, run.record)):
        raise RecipeError(
            f"`{run}` holds no run: neither config.yaml nor all_stats.jsonl is there. Give the "
            "folder of a run."
        )
    header, derived = read_header(run)
    stats = load_stats(run.path) if read_rows(run.all_stats) else []
    record = _kept(read_record(run), _RECORD)
    record["sessions"] = [_kept(session, _SESSION) for session in record.get("sessions", [])]
    alarms = [(row.get("step"), str(row.get("alarm", ""))) for row in read_rows(run.alarms)]
    last = (record["sessions"] or [{}])[-1]
    if last.get("how") == "failed":
        alarms.insert(0, (last.get("step"), f"The run failed. {last.get('said', '')}"))
    return RunFiles(
        run=run,
        header=header,
        settings=read_config(run) if run.config.is_file() else {},
        derived=derived,
        record=record,
        stats=stats,
        samples=read_rows(run.samples),
        warnings=[*alarms, *_parted(stats)],
        comparison=_comparison(run),
        figures=_numbers(_json(run.stage).get("result")) | _numbers(record.get("figures")),
        stages=[path.parent.name for path in sorted(run.path.glob("*/report.html"))],
    )


def _parted(stats: list[dict[str, float]]) -> list[tuple[Any, str]]:
    """Where a judge fell while the score rose; runs without what that needs have none."""
    needed = all(any(key in row for row in stats) for key in ("objective/kl", "env/reward_mean"))
    said = [overoptimization(stats, judge) for judge in judges_of(stats)] if needed else []
    return [(None, sentence) for sentence in said if sentence is not None]


def _comparison(run: RunFolder) -> dict[str, Any] | None:
    """What `Comparison.to_dict` gave, and no other file of that name."""
    for name in _COMPARISONS:
        found = _json(run.path / name)
        models = found.get("models")
        if found.get("prompts") and isinstance(models, dict):
            answers = [m.get("responses") if isinstance(m, dict) else m for m in models.values()]
            if all(isinstance(a, list) and all(isinstance(r, dict) for r in a) for a in answers):
                return found
    return None


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
