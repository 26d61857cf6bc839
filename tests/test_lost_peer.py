"""What is told of a process that is gone, and what the system is asked to notice."""

import os
import socket
import subprocess
import sys
import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from trl_recipes import lost_peer

SOCKET_OPTIONS = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")


@pytest.fixture
def connection():
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        with near, far:
            yield near, far


def options(end):
    numbers = [getattr(socket, name) for name in SOCKET_OPTIONS]
    return [end.getsockopt(socket.IPPROTO_TCP, number) for number in numbers]


@pytest.mark.parametrize("seconds", [60, 3])
def test_a_silent_machine_is_missed_after_so_many_seconds(connection, seconds, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(lost_peer, "SECONDS", seconds)
    lost_peer.notice_lost_machines()
    for end in connection:
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle, apart, count, unread = options(end)
        assert idle + apart * count == seconds
        assert unread == 1000 * seconds
    near, far = connection
    near.sendall(b"still open")
    assert far.recv(10) == b"still open"


def test_one_process_alone_leaves_connections_as_they_are(connection, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    lost_peer.notice_lost_machines()
    assert connection[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def gloo_groups(seconds):
    """Two processes' groups, in two threads of this one."""
    store, groups = dist.HashStore(), [None, None]

    def join(rank):
        part = dist.PrefixStore("test", store)
        groups[rank] = dist.ProcessGroupGloo(part, rank, 2, timedelta(seconds=seconds))

    threads = [threading.Thread(target=join, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return groups


def _optimize(group):
    """Named as the trainer's method is."""
    group.allreduce([torch.ones(1)]).wait()


def test_a_process_that_does_not_come_is_told_from_one_that_is_lost():
    first, second = gloo_groups(seconds=0.5)
    with pytest.raises(RuntimeError) as slow:
        _optimize(first)
    told = lost_peer.told(slow.value)
    assert "did not come as far as this one during the update" in told
    assert "raise --ddp_timeout" in told
    assert "lost" not in told
    del second


def test_an_error_of_gloo_is_a_lost_connection_and_the_phase_is_the_innermost():
    def _step():
        return save()

    def save():
        raise RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error "
            "[10.213.0.1]:63386: Connection timed out. This is typically caused by a remote worker"
        )

    with pytest.raises(RuntimeError) as error:
        _step()
    told = lost_peer.told(error.value)
    assert told.startswith(
        "The connection to another process was lost during the saving of a checkpoint (Read error "
        "[10.213.0.1]:63386: Connection timed out). "
    )
    assert "go on with the same commands and --resume_from_checkpoint true" in told


@pytest.mark.parametrize(
    "said",
    [
        "NCCL error: remote process exited or there was a network error",
        "[enforce fail at gloo/transport/tcp/pair.cc:1] Connection closed by peer [10.0.0.2]:4711",
    ],
)
def test_a_loss_outside_of_any_phase_is_told_too(said):
    told = lost_peer.told(RuntimeError(said))
    assert told.startswith("The connection to another process was lost")
    assert ("[10.0.0.2]:4711" in told) == ("[10.0.0.2]:4711" in said)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError("timed out")])
def test_other_errors_are_not_told_as_a_loss(error):
    assert lost_peer.told(error) is None


@pytest.mark.parametrize(("processes", "code"), [("2", 7), ("1", 0)])
def test_one_of_several_ends_after_what_python_does_at_its_end(processes, code):
    script = """
import atexit, sys
from trl_recipes.lost_peer import end_one_of_several
atexit.register(print, "at the end")
print("begun")
end_one_of_several(7)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"WORLD_SIZE": processes},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout == "begun\nat the end\n"
