"""Several processes of one launch: the main one speaks, they agree, and they end together."""

import json
import logging
import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list, gather_object

from trl_recipes.errors import RecipeError

T = TypeVar("T")

# What a launcher gives to the processes that it starts; torch's and Accelerate's.
_LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_")
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # what a process ended of, for the launcher's last lines
_LOST = (
    "error: The connection to another process was lost: it has ended (then its own output says "
    "why), or it hangs or takes longer than --ddp_timeout (seconds; on a CPU always 1800), or its "
    "machine or the network is down. Checkpoints are whole: go on with the same commands and "
    "--resume_from_checkpoint true."
)


def launched() -> bool:
    """Whether this process is one of several of a launch."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_process() -> bool:
    """Whether this is the one process of a launch that writes and speaks."""
    return process_index() == 0


def process_index() -> int:
    """Give the number of this process among those of its launch; 0 is the main one."""
    return int(os.environ.get("RANK", "0"))


def init_process() -> None:
    """Let the processes of a launch form a group, once training arguments are made."""
    if launched() and not torch.accelerator.is_available():  # Accelerate would let each train alone
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def join_launch() -> None:
    """Let the processes of a launch form a group, and silence all but the main one."""
    init_process()
    if not is_main_process():
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


def leave_launch() -> None:
    """Be the only process: the main one goes on alone, the others end here, by SystemExit."""
    if not is_main_process():
        sys.exit(0)
    for name in list(os.environ):
        if name.startswith(_LAUNCH) and name != _ERROR_FILE:
            del os.environ[name]


def print_main(*parts: Any, sep: str = " ") -> None:
    """Print in the main process."""
    if is_main_process():
        print(*parts, sep=sep, flush=True)  # noqa: T201  what a recipe has to tell


def broadcast_from_main(work: Callable[[], T]) -> T:
    """Do work in the main process alone, and give its result, or its RecipeError, to all."""
    if not _in_group():
        return work()
    told: list[Any] = [None]
    if is_main_process():
        try:
            told[0] = work()
        except RecipeError as error:
            told[0] = error
    broadcast_object_list(told)
    (result,) = told
    if isinstance(result, RecipeError):
        result.everywhere = True
        raise result
    return result


def raise_on_all(work: Callable[[], T]) -> T:
    """Do each process's own part of something; a RecipeError in one is raised in all.

    The work itself must not wait for another process.
    """
    result, errors = None, []
    try:
        result = work()
    except RecipeError as error:
        errors.append(error)
    for error in gather(errors):
        error.everywhere = _in_group()
        raise error
    return result


def gather(part: list[T]) -> list[T]:
    """Gather the entries of all processes' lists, in the order of the processes."""
    if not _in_group():
        return part
    return gather_object(part)


def neighbors() -> list[int]:
    """List the process ids of the other processes on this machine."""
    here = (platform.node(), os.getpid())
    return [pid for node, pid in gather([here]) if node == here[0] and pid != here[1]]


def has_ended(pid: int) -> bool:
    """Tell whether a process of this machine is no more."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def end_of(message: str, code: int) -> NoReturn:
    """Tell the user what this process ends of, and end it, whatever others are waiting for."""
    print(message, file=sys.stderr, flush=True)  # noqa: T201  the user's message
    _leave(message, code)


def end_of_error(error: Exception) -> NoReturn:
    """End a process of several for what is no mistake of the user's."""
    own = os.environ.get(_ERROR_FILE)
    if own and not {*Path(own).parents[1].glob(f"*/{Path(own).name}")} <= {Path(own)}:
        _leave(None, 1)  # another process of this machine failed before: its message counts
    words = ("gloo/transport", "remote process exited", "Timed out waiting")  # gloo's and NCCL's
    lost = isinstance(error, dist.DistNetworkError | dist.DistStoreError)
    if lost or any(word in str(error) for word in words):
        end_of(_LOST, 1)
    traceback.print_exception(error)
    _leave(f"{type(error).__name__}: {error}", 1)


def let_go() -> None:
    """Give gloo's threads the time to drop their last tensors: without Python, torch 2.13 hangs."""
    if _in_group():
        time.sleep(0.2)


def _in_group() -> bool:
    """Whether there are several processes that have formed a group."""
    if not launched():
        return False
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _leave(message: str | None, code: int) -> NoReturn:
    """End with a message for the launcher; the clean-up of connections could wait for others."""
    sys.stdout.flush()
    sys.stderr.flush()
    path = os.environ.get(_ERROR_FILE)
    if path and message is not None:  # as torch elastic's `record` has it, without a traceback
        extra = {"timestamp": str(int(time.time()))}
        content = {"message": {"message": message, "extraInfo": extra}}
        Path(path).write_text(json.dumps(content), encoding="utf-8")
    if not launched():
        sys.exit(code)
    os._exit(code)
