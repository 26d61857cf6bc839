"""Another process of a launch is gone: noticed within a minute, told in one sentence."""

import atexit
import os
import re
import socket
import sys
import traceback
from pathlib import Path

SECONDS = 60  # without any answer of a machine until it counts as lost

# What a process was at when the connection was lost: functions of ours, transformers and TRL.
_DOING = {
    "_rollout": "sampling",
    "_generate_and_score_completions": "sampling or scoring",
    "_score": "scoring",
    "_score_stats": "scoring",
    "_step": "the evaluation of a batch",
    "_optimize": "the update",
    "training_step": "the update",
    "save": "the saving of a checkpoint",
    "save_or_stop": "the end of a step",
}


def notice_lost_machines() -> None:
    """Have the system end connections to a machine that answers nothing for `SECONDS`.

    A process that ends, however it ends, closes its connections, and those at the other end hear of
    it at once. A machine that loses power or its network says nothing, and the others would wait
    for `ddp_timeout`, which is made for a process that is slow. Here the system asks the other
    machine's system (TCP keepalive), which answers whatever its processes are busy with: a reward
    function that takes an hour is no loss. Connections that are there already are meant, on Linux
    alone; InfiniBand has its own ways.
    """
    folder = Path("/proc/self/fd")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not folder.is_dir():
        return
    apart = max(1, SECONDS // 6)
    for handle in list(folder.iterdir()):
        try:
            connection = socket.socket(fileno=os.dup(int(handle.name)))
        except OSError:  # it is no socket, or closed by now
            continue
        with connection:
            if connection.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            if connection.type != socket.SOCK_STREAM:
                continue
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (
                (socket.TCP_KEEPIDLE, apart),
                (socket.TCP_KEEPINTVL, apart),
                (socket.TCP_KEEPCNT, max(1, (SECONDS - apart) // apart)),
                (socket.TCP_USER_TIMEOUT, 1000 * SECONDS),  # for what was sent and not received
            ):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)


def end_one_of_several(code: int = 0) -> None:
    """End this process where it is one of several, after all that Python does at its end.

    A thread of gloo lets go of what was exchanged last a moment after it is there, and needs Python
    for that: where Python is taking itself down by then, the thread aborts the process (6 of 24
    launches of two processes did not end well). So it is not taken down.

    Args:
        code: exit code.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def told(error: BaseException) -> str | None:
    """Say in a few sentences that another process is gone, and how to go on.

    Args:
        error: that ended this process.

    Returns:
        For the user; None where the error is of another kind.
    """
    said = str(error)
    at = _doing(error)
    again = "Checkpoints are whole: go on with the same commands and --resume_from_checkpoint true."
    if re.search(r"Timed out waiting \d+ ?ms", said):
        return (
            f"Another process did not come as far as this one{at} within the time that is "
            "allowed: it hangs, or it does something that takes longer, such as a slow reward "
            "function. On GPUs raise --ddp_timeout, which is in seconds; on a CPU it is always "
            f"1800. {again}"
        )
    if not _is_loss(error, said):
        return None
    reason = re.search(r"([^\]]*\[[\d.:a-f]+\]:\d+(?:: [A-Z][\w ]+)?)", said)
    why = f" ({reason[1].strip()})" if reason else ""
    return (
        f"The connection to another process was lost{at}{why}. That process has ended, or its "
        "machine or the network between them is down; if it ended with an error, its own output "
        f"says so. {again}"
    )


def _is_loss(error: BaseException, said: str) -> bool:
    import torch.distributed as dist

    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return True
    # gloo's own words, and NCCL's
    return "gloo/transport" in said or "remote process exited" in said


def _doing(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    names = [frame.name for frame in frames if frame.name in _DOING]
    return f" during {_DOING[names[-1]]}" if names else ""
