"""Several processes of one launch: they see each other, one speaks, they agree and end together."""

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

from trl_recipes import lost_peer
from trl_recipes.errors import RecipeError

T = TypeVar("T")

# What a launcher gives to the processes that it starts; torch's and Accelerate's.
_LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_")
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # what a process ended of, for the launcher's last lines


def launched() -> bool:
    """Whether this process is one of several of a launch."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_process() -> bool:
    """Whether this is the one process of a launch that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


def process_index() -> int:
    """Give the number of this process among those of its launch; 0 is the main one."""
    return int(os.environ.get("RANK", "0"))


def init_process() -> None:
    """Let the processes of a launch see each other, once training arguments are made.

    Without a GPU Accelerate wants to be told that they are to; else each would train alone, as if
    it were the only one.
    """
    if not launched():
        return
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def join_launch() -> None:
    """Let the processes of a launch see each other, and all but the main one keep silent."""
    init_process()
    if not is_main_process():
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


def leave_launch() -> None:
    """Be the only process: the main one of a launch goes on alone, the others end here.

    Raises:
        SystemExit: with code 0, in every process but the main one.
    """
    if not is_main_process():
        sys.exit(0)
    for name in list(os.environ):
        if name.startswith(_LAUNCH) and name != _ERROR_FILE:
            del os.environ[name]


def print_main(*parts: Any, sep: str = " ") -> None:
    """Print, in the main process.

    Args:
        *parts: what to print.
        sep: between two parts.
    """
    if is_main_process():
        print(*parts, sep=sep, flush=True)  # noqa: T201  what a recipe has to tell


def broadcast_from_main(work: Callable[[], T]) -> T:
    """Give all processes what `work` gives in the main one, which alone does it.

    Args:
        work: gives something that can be pickled.

    Raises:
        RecipeError: in all processes, where `work` raised one.
    """
    if not _have_met():
        return work()
    import torch.distributed as dist

    told: list[Any] = [None, None]
    if is_main_process():
        try:
            told[0] = work()
        except RecipeError as error:
            told[1] = error
    dist.broadcast_object_list(told)
    if told[1] is not None:
        told[1].everywhere = True
        raise told[1]
    return told[0]


def raise_on_all(work: Callable[[], T]) -> T:
    """Do what each process does on its own part of something; an error in one is one in all.

    Args:
        work: talks to no other process.

    Raises:
        RecipeError: in all processes, where `work` raised one in any: the first one's.
    """
    if not _have_met():
        return work()
    import torch.distributed as dist

    result, error = None, None
    try:
        result = work()
    except RecipeError as raised:
        error = raised
    errors: list[RecipeError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    error = next((told for told in errors if told is not None), None)
    if error is not None:
        error.everywhere = True
        raise error
    return result


def gather(part: list[T]) -> list[T]:
    """Give the entries that all processes have, in the order of the processes.

    Args:
        part: this one's, which can be pickled.
    """
    if not _have_met():
        return part
    import torch.distributed as dist

    parts: list[list[T]] = [[]] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return [entry for other in parts for entry in other]


def greatest(number: int) -> int:
    """Give the greatest of the numbers that the processes have.

    Args:
        number: this one's.
    """
    if not _have_met():
        return number
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    found = torch.tensor(number, device=PartialState().device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def neighbours() -> list[int]:
    """Give the process numbers of the other processes on this machine."""
    if not _have_met():
        return []
    here = platform.node()
    everyone = gather([(here, os.getpid())])
    return [number for node, number in everyone if node == here and number != os.getpid()]


def has_ended(process: int) -> bool:
    """Whether a process of this machine is no more.

    Args:
        process: its number.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is there, and somebody else's
        return False
    return False


def another_failed() -> bool:
    """Whether another process of this machine has left word of an error that it ends of."""
    own = os.environ.get(_ERROR_FILE)
    if not own:
        return False
    return any(path != Path(own) for path in Path(own).parents[1].glob(f"*/{Path(own).name}"))


def end_of(message: str, code: int) -> NoReturn:
    """Tell the user what this process ends of, and end it, whatever others are waiting for.

    Of several processes the launcher tells it once more, in its last lines.

    Args:
        message: for the user.
        code: exit code.
    """
    print(message, file=sys.stderr, flush=True)  # noqa: T201  the user's message
    _leave(message, code)


def end_of_error(error: Exception) -> NoReturn:
    """End a process of several for what is no mistake of the user's.

    Where another one has failed before, this error is only what its end looks like from here: that
    one's message is the one to read.

    Args:
        error: what was raised.
    """
    if another_failed():
        _leave(None, 1)
    lost = lost_peer.told(error)
    if lost is not None:
        end_of(f"error: {lost}", 1)
    traceback.print_exception(error)
    _leave(f"{type(error).__name__}: {error}", 1)


def let_go() -> None:
    """Give gloo's threads the time to drop their last tensors, before the end takes them down.

    Such a thread needs Python's lock for that, a moment after an exchange. Where Python ends by
    then, torch 2.13 aborts, or waits for ever for the thread while it holds the lock (a fourth of
    the shortest launches of two processes).
    """
    if _have_met():
        time.sleep(0.2)


def _leave(message: str | None, code: int) -> NoReturn:
    """End with a message for the launcher; the clean-up of connections could wait for others."""
    sys.stdout.flush()
    sys.stderr.flush()
    path = os.environ.get(_ERROR_FILE)
    if path and message is not None:
        extra = {"timestamp": str(int(time.time()))}
        content = {"message": {"message": message, "extraInfo": extra}}
        Path(path).write_text(json.dumps(content), encoding="utf-8")
    if not launched():
        sys.exit(code)
    os._exit(code)


def _have_met() -> bool:
    """Whether there are several processes that have met."""
    if not launched():
        return False
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
