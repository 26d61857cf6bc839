"""Stages of a chain: done once, gone on with after a kill, never reused under other settings.

A stage's folder holds `stage.json`: the settings that it runs with, written when it begins, and
what it found, added when all else is on disk. Of settings counts what differs from their defaults.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from trl_recipes.distributed import broadcast_from_main, is_main_process
from trl_recipes.errors import RecipeError
from trl_recipes.run_folder import RunFolder

# Settings that change nothing of what a stage leaves.
NEUTRAL = {
    "task",
    "prompt",
    "eval_prompts",
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "check",
    "report_to",
    "log_with",
    "hub_token",
    "disable_tqdm",
    "logging_steps",
    "log_samples",
    "save_steps",
    "save_total_limit",
}


def settings_of(*objects: Any) -> dict[str, Any]:
    """Give the settings that differ from their defaults and matter to the result.

    Args:
        *objects: dataclass objects, such as the parsed arguments.
    """
    settings: dict[str, Any] = {}
    for item in objects:
        for field in dataclasses.fields(item):
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            value = getattr(item, field.name)
            if field.init and field.name not in NEUTRAL and value != default:
                settings[field.name] = value
    return json.loads(json.dumps(settings, default=str))


def digest(content: Iterable[Any]) -> str:
    """Give 16 hexadecimal digits that tell one content from another.

    Args:
        content: plain data, such as lists of texts.
    """
    found = hashlib.sha256()
    for part in content:
        found.update(repr(part).encode("utf-8", errors="replace"))
    return found.hexdigest()[:16]


def has_begun(folder: Path) -> bool:
    """Whether a stage was begun in a folder, finished or not; the main process looks for all.

    Args:
        folder: of the stage.
    """
    return broadcast_from_main(RunFolder(folder).stage.is_file)


def result_of(folder: Path, settings: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Give what a stage found; None where it has not finished yet. The main process reads for all.

    Args:
        folder: of the stage.
        settings: those that it is wanted with.
        name: of the stage, for the message.

    Raises:
        RecipeError: it was begun with other settings; names each with both values.
    """
    return broadcast_from_main(partial(_read_result, folder, settings, name))


def _read_result(folder: Path, settings: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    path = RunFolder(folder).stage
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        before, result = kept["settings"], kept["result"]
    except (ValueError, LookupError, TypeError) as error:
        raise RecipeError(
            f"`{path}` is damaged ({error}). Use --overwrite_output_dir to run all stages anew, or "
            "choose another --output_dir."
        ) from error
    names = dict.fromkeys([*before, *settings])
    changed = [
        f"{key} was {before.get(key, 'left out')} and is {settings.get(key, 'left out')}"
        for key in names
        if before.get(key) != settings.get(key)
    ]
    if changed:
        raise RecipeError(
            f"--output_dir: `{folder}` holds {name} of other settings: {'; '.join(changed[:5])}. "
            "Give the former settings (they stand in its config.yaml), choose another folder, or "
            "use --overwrite_output_dir to run all stages anew."
        )
    return result


def go_on(
    config: Any, settings: Mapping[str, Any], name: str, *, must_be_done: bool = False
) -> bool:
    """Say whether a trainer's stage has finished; one that was begun will resume.

    Args:
        config: transformers' TrainingArguments with `overwrite_output_dir`; its
            `resume_from_checkpoint` is set where the stage was begun.
        settings: those that it is wanted with.
        name: of the stage, for the message.
        must_be_done: whether it is needed rather than to be run.

    Raises:
        RecipeError: see `result_of`; or it is needed and has not finished.
    """
    folder, done = Path(config.output_dir), False
    if has_begun(folder) and (must_be_done or not config.overwrite_output_dir):
        config.resume_from_checkpoint = config.resume_from_checkpoint or "true"
        done = result_of(folder, settings, name) is not None
    if must_be_done and not done:
        raise RecipeError(
            f"--output_dir: `{folder}` holds no finished run. Train first (--task train), with the "
            "same settings."
        )
    return done


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note with which settings a stage runs.

    Args:
        folder: of the stage; it is there.
        settings: see `settings_of`.
    """
    _write(folder, {"settings": dict(settings), "result": None})


def finish(folder: Path, settings: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Note that a stage has finished; to be called when all that it leaves is on disk.

    Args:
        folder: of the stage.
        settings: those that it ran with.
        result: what it found, ready for JSON.
    """
    _write(folder, {"settings": dict(settings), "result": dict(result)})


def _write(folder: Path, content: dict[str, Any]) -> None:
    """Write the note whole or not at all, in the main process."""
    if not is_main_process():
        return
    path = RunFolder(folder).stage
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
