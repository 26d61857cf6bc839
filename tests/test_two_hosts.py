"""Two machines, as two network namespaces: one is lost, the other says so, and the run goes on.

Each namespace has a network of its own, joined by one virtual cable to the other's, so that a
machine that is switched off is the real thing. It takes root.
"""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from launching import ACCELERATE
from safetensors.torch import load_file

from trl_recipes.checkpointing import checkpoints_in, damage

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).with_name("recipe_on_two_hosts.py")
PORT = "29500"
STEPS = 16
SETTINGS = {
    "batch_size": 4,
    "ppo_epochs": 2,
    "response_length": 6,
    "learning_rate": 1e-3,
    "max_steps": STEPS,
    "save_steps": 2,
    "report_to": "none",
    "disable_tqdm": "true",
}


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


@dataclass
class Host:
    """A machine: a network namespace with one interface."""

    name: str
    address: str

    @property
    def interface(self):
        return self.name

    def start(self, rank, first, output, settings, own_disk):
        """Start this machine's part of a launch."""
        flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        launch = [ACCELERATE, "launch", "--multi_gpu", "--num_machines", "2", "--num_processes"]
        launch += ["2", "--machine_rank", str(rank), "--main_process_ip", first.address]
        launch += ["--main_process_port", PORT, "--mixed_precision", "no"]
        launch += ["--dynamo_backend", "no", RECIPE, *flags]
        environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        environment["GLOO_SOCKET_IFNAME"] = self.interface
        command = ["ip", "netns", "exec", self.name]  # which also has mounts of its own
        if own_disk:
            mount = 'mount -t tmpfs none "$0" && exec "$@"'
            command += ["sh", "-c", mount, settings["output_dir"]]
        with output.open("w") as file:
            return subprocess.Popen(
                [*command, *launch],
                env=os.environ | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def switch_off(self):
        for pid in ip("netns", "pids", self.name).split():
            os.kill(int(pid), signal.SIGKILL)


def why_not():
    """Why there can be no namespaces here, or None."""
    try:
        subprocess.run(["ip", "-V"], check=True, capture_output=True)
        subprocess.run(["unshare", "-n", "true"], check=True, capture_output=True)
        ip("netns", "list")
    except FileNotFoundError as error:
        return f"network namespaces need `{error.filename}`"
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {error.stderr!r}"
    return None


@pytest.fixture(scope="module")
def hosts():
    if reason := why_not():
        pytest.skip(reason)
    both = [Host(f"trl{os.getpid()}{end}", f"10.213.0.{end}") for end in (1, 2)]
    try:
        for host in both:
            ip("netns", "add", host.name)
        first, second = both
        ip("link", "add", first.name, "type", "veth", "peer", "name", second.name)
        for host in both:
            ip("link", "set", host.name, "netns", host.name)
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.interface)
            ip("-n", host.name, "link", "set", "lo", "up")
            ip("-n", host.name, "link", "set", host.interface, "up")
        yield both
    finally:
        for host in both:
            host.switch_off()
            subprocess.run(["ip", "netns", "delete", host.name], check=False)


class Launch:
    """A recipe on both machines."""

    def __init__(self, hosts, folder, own_disks=False, **settings):
        self.stats = folder / "all_stats.jsonl"
        folder.mkdir(exist_ok=True)
        self.outputs = [folder.parent / f"{folder.name}-host-{rank}.txt" for rank in (0, 1)]
        settings = {"output_dir": folder} | SETTINGS | settings
        self.processes = [
            host.start(rank, hosts[0], output, settings, own_disk=own_disks and rank)
            for rank, (host, output) in enumerate(zip(hosts, self.outputs, strict=True))
        ]

    def said(self, rank):
        return self.outputs[rank].read_text()

    def wait_for_step(self, step, seconds=120):
        ends = time.monotonic() + seconds
        while not self.stats.is_file() or len(self.stats.read_text().splitlines()) < step:
            assert time.monotonic() < ends, self.said(0)[-3000:] + self.said(1)[-3000:]
            assert self.processes[0].poll() is None, self.said(0)[-3000:]
            time.sleep(0.02)

    def ends(self, rank, seconds):
        """Exit code of one machine's launch."""
        return self.processes[rank].wait(timeout=seconds)


def rows(folder):
    lines = (folder / "all_stats.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith("time/")}
        for line in lines
    ]


def test_a_run_that_loses_a_machine_ends_as_one_left_alone(hosts, tmp_path):
    alone = Launch(hosts, tmp_path / "alone")
    assert [alone.ends(rank, 120) for rank in (0, 1)] == [0, 0], alone.said(0) + alone.said(1)

    folder = tmp_path / "lost"
    run = Launch(hosts, folder, pause=0.2)
    run.wait_for_step(5)
    hosts[1].switch_off()
    assert run.ends(0, 20) == 1
    assert "The connection to another process was lost" in run.said(0)
    assert "--resume_from_checkpoint true" in run.said(0)

    left = checkpoints_in(folder / "checkpoints")
    assert len(left) == 2
    assert [damage(path) for path in left] == [None, None]

    run = Launch(hosts, folder, own_disks=True, resume_from_checkpoint="true")
    assert [run.ends(rank, 120) for rank in (0, 1)] == [0, 0], run.said(0) + run.said(1)
    assert rows(folder) == rows(tmp_path / "alone")
    assert len(rows(folder)) == STEPS
    models = [load_file(f / "model" / "model.safetensors") for f in (folder, tmp_path / "alone")]
    assert all(models[0][name].equal(models[1][name]) for name in models[1])
