"""Runs in processes of their own, some at a time; what is finished is not run again."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trl_recipes.callbacks import StopSignals
from trl_recipes.errors import RecipeError, RunStopped
from trl_recipes.evaluation.algorithms.work import Run
from trl_recipes.run_folder import check_output_dir, prepare_run

SETTINGS_FILE = "settings.json"  # what a run was begun with
RESULT_FILE = "result.json"  # written last: the run is finished
LOG_FILE = "log.txt"
OWN_FILES = (SETTINGS_FILE, RESULT_FILE, LOG_FILE, "curve.jsonl", "comparison.json")
COMMAND = (sys.executable, "-m", "trl_recipes.evaluation.algorithms.training")
LAST_LINES = 6
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Failure:
    """A run that ended without a result: which, and its last words.

    Attributes:
        run: which.
        words: the last line that it wrote.
    """

    run: Run
    words: str


def is_finished(run: Run, folder: Path, overwrite: bool = False) -> bool:
    """Say whether a run need not be run again; nothing is written.

    Args:
        run: what is wanted.
        folder: of the run.
        overwrite: whether what is there is to be replaced in any case.

    Raises:
        RecipeError: the folder holds a run with other settings, or something else.
    """
    if not (folder / SETTINGS_FILE).is_file():
        check_output_dir(folder, overwrite=overwrite)
        return False
    if overwrite:
        return False
    differing = _differences(read_json(folder / SETTINGS_FILE), run.to_dict())
    if differing:
        raise RecipeError(
            f"--output_dir: `{folder}` holds a run with other settings ({differing}). Choose "
            "another folder, or use --overwrite_output_dir true to replace its runs."
        )
    return (folder / RESULT_FILE).is_file()


def default_jobs(wanted: int) -> int:
    """How many runs go at a time.

    Args:
        wanted: 0 for one a core, or one alone on a GPU, which they would share.

    Raises:
        RecipeError: it is negative.
    """
    if wanted < 0:
        raise RecipeError(f"--jobs is {wanted}. Use 1 or more, or 0 for one a core or GPU.")
    return wanted or (1 if torch.cuda.is_available() else os.cpu_count() or 1)


def run_all(
    runs: Sequence[Run],
    folder: Path,
    jobs: int,
    say: Callable[[str], None],
    overwrite: bool = False,
) -> list[Failure]:
    """Run each in a process of its own, `jobs` at a time.

    Args:
        runs: what to run; each has its folder in `folder`.
        folder: of the comparison.
        jobs: processes at a time, which share the cores.
        say: told when a run begins and when it ends.
        overwrite: remove what an earlier run left in its folder.

    Returns:
        The runs that failed; the others' results lie in their folders.

    Raises:
        RunStopped: SIGTERM or Ctrl-C came; every run has written a checkpoint.
    """
    waiting, failures = list(runs), []
    going: list[tuple[Run, subprocess.Popen]] = []
    began = time.perf_counter()
    with StopSignals() as signals:
        try:
            while waiting or going:
                if signals.received is not None:
                    _stop([process for _, process in going], signals)
                while waiting and len(going) < jobs:
                    run = waiting.pop(0)
                    if overwrite:
                        _remove(folder / run.folder_name)
                    going.append((run, _start(run, folder / run.folder_name, jobs)))
                    say(f"{run}: begun, {len(runs) - len(waiting)} of {len(runs)}")
                ended = [pair for pair in going if pair[1].poll() is not None]
                going = [pair for pair in going if pair not in ended]
                for run, process in ended:
                    if process.returncode == 0:
                        say(f"{run}: {_summary(folder / run.folder_name)}")
                        say(_outlook(len(runs), len(waiting) + len(going), began))
                    else:
                        words = _last_words(folder / run.folder_name, process.returncode)
                        failures.append(Failure(run, words))
                        say(f"{run}: failed. {words}")
                time.sleep(POLL_SECONDS)
        finally:
            for _, process in going:
                if process.poll() is None:  # an error of our own
                    process.kill()
    return failures


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a run's JSON files.

    Args:
        path: the file.

    Raises:
        RecipeError: it is damaged, or not there.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RecipeError(
            f"`{path}` is damaged ({error}). Delete the folder, and the run is made again."
        ) from error


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file whole or not at all.

    Args:
        path: the file; its folder is there.
        values: plain data.
    """
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _start(run: Run, folder: Path, jobs: int) -> subprocess.Popen:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG_FILE).open("wb") as log:
        return subprocess.Popen(
            [*COMMAND, json.dumps(run.to_dict()), str(folder)],
            env={"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches it once, through us
        )


def _stop(going: list[subprocess.Popen], signals: StopSignals) -> None:
    """Let every run finish its step and save, then end.

    Raises:
        RunStopped: always.
    """
    for process in going:
        process.send_signal(signals.received)
    for process in going:
        process.wait()
    raise RunStopped(
        f"Stopped by {signals.received.name}. The same command goes on where it stopped.",
        128 + signals.received,
    )


def _remove(folder: Path) -> None:
    prepare_run(folder, overwrite=True)
    for name in OWN_FILES:
        (folder / name).unlink(missing_ok=True)


def _last_words(folder: Path, code: int) -> str:
    text = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if line.startswith("error: ")), None)
    killed = " (killed, most likely for want of memory)" if code == -9 else ""
    words = told or " / ".join(lines[-LAST_LINES:]) or "it said nothing"
    return f"Exit code {code}{killed}, `{folder / LOG_FILE}`: {words}"


def _summary(folder: Path) -> str:
    result = read_json(folder / RESULT_FILE)
    before, after = result["reference"], result["policy"]
    return (
        f"reward {before['reward']:.3f} to {after['reward']:.3f}, KL {after['kl']:.2f} nats, "
        f"{result['tokens']} tokens in {result['seconds']:.0f} s of training"
    )


def _outlook(total: int, left: int, began: float) -> str:
    taken = time.perf_counter() - began
    if not left:
        return f"{total} runs in {taken / 60:.1f} minutes."
    return f"    {left} left, about {taken / (total - left) * left / 60:.1f} minutes"


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What differs between two runs' settings, in words."""
    old, new = _flat(found), _flat(wanted)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name)}, now {new.get(name)}" for name in names)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """All settings of a run by their own names; none stands in two parts of it."""
    parts = {name: value for name, value in settings.items() if not isinstance(value, dict)}
    return parts | settings.get("work", {}) | settings.get("settings", {})
