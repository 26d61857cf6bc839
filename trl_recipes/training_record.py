"""training.json: what a run trains, how each of its sessions ended and how long it took.

It holds what its statistics do not say, for the run's page. A session is one time that the run was
started; a run that was stopped and resumed has several. The file is written when a session begins,
so that a killed run has one too, and again when it ends.
"""

import datetime
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from trl_recipes.describe import peak_memory
from trl_recipes.distributed import is_main_process
from trl_recipes.errors import RecipeError, RunStopped
from trl_recipes.run_folder import RunFolder, versions, write_whole

_log = logging.getLogger(__name__)


@contextmanager
def recorded(run: RunFolder, about: Mapping[str, Any], step: Callable[[], int]) -> Iterator[None]:
    """Keep a record of the training inside, and write the run's page when it ends in any way.

    Only the main process writes. A record or page that cannot be written ends no training.

    Args:
        run: the run folder.
        about: plain data: `algorithm`, `about` (the run in a paragraph), `rewards` (weights by
            name), `metrics` (names), `kl_target` (nats a response); those that there are.
        step: gives the last step that was done.
    """
    if not is_main_process():
        yield
        return
    began = time.monotonic()
    session: dict[str, Any] = {
        "began": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "how": "running",
        "device": _device(),
        "versions": versions(),
    }
    note(run, **about)
    sessions = [*read_record(run).get("sessions", ()), session]
    note(run, sessions=sessions)
    try:
        yield
        session["how"] = "finished"
    except (RunStopped, KeyboardInterrupt) as stopped:
        session |= {"how": "stopped", "said": str(stopped) or "Interrupted at once."}
        raise
    except BaseException as error:
        kind = "" if isinstance(error, RecipeError) else f"{type(error).__name__}: "
        session |= {"how": "failed", "said": f"{kind}{error}"}
        raise
    finally:
        session |= {"step": step(), "seconds": time.monotonic() - began}
        session["gigabytes"] = _finite(peak_memory())
        note(run, sessions=sessions)
        _write_page(run)


def note(run: RunFolder, **facts: Any) -> None:
    """Add facts to the record of a run, in the main process.

    Args:
        run: the run folder; made where it is not there.
        **facts: plain data, by name.
    """
    if not is_main_process():
        return
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(read_record(run) | facts, indent=1, default=str, ensure_ascii=False)
        write_whole(run.record, text + "\n")
    except OSError as error:
        _log.warning("`%s` could not be written (%s).", run.record, error.strerror)


def read_record(run: RunFolder) -> dict[str, Any]:
    """Read what `recorded` and `note` wrote.

    Args:
        run: the run folder.

    Returns:
        The facts by name; none where there is no record, or one that is damaged.
    """
    try:
        found = json.loads(run.record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_page(run: RunFolder) -> None:
    """The page of a run that did a step; one that did none is used again and keeps nothing."""
    from trl_recipes.report import write_report  # only here, as it draws

    if not run.all_stats.is_file() or not run.all_stats.stat().st_size:
        return
    try:
        write_report(run.path)
    except (RecipeError, OSError) as error:
        _log.warning("`%s` was not written: %s", run.report, error)


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads" if torch.get_num_threads() > 1 else "CPU"


def _finite(number: float) -> float | None:
    return number if number == number else None
