"""Two machines, as two network namespaces: one is lost, the other says so, and the run goes on.

Each namespace has a network of its own, joined by one virtual cable to the other's, so that a
machine that is switched off is the real thing. It takes root.
"""

import os
import signal
import subprocess
import time
from dataclasses import dataclass

import pytest
from launching import ACCELERATE, RECIPES
from safetensors.torch import load_file
from tiny_grpo import without_times

from trl_recipes.checkpointing import checkpoints_in, damage
from trl_recipes.stats import load_stats

pytestmark = pytest.mark.slow

STEPS = 16
WORDS = f"--batch_size 4 --mini_batch_size 4 --ppo_epochs 2 --response_length 6 --max_steps {STEPS}"
WORDS += " --learning_rate 1e-3 --save_steps 2 --eval_prompts 4 --disable_tqdm true"
REWARD = """
import os, time

def evenness(completion_ids, **_):
    time.sleep(float(os.environ.get("PAUSE", 0)))
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]
"""


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


@dataclass
class Host:
    """A machine: a network namespace with one interface, of its name."""

    name: str
    address: str

    def start(self, rank, first, output, flags, folder, own_disk, pause):
        words = f"--multi_gpu --num_machines 2 --num_processes 2 --machine_rank {rank}"
        words += f" --main_process_ip {first.address} --main_process_port 29500"
        words += " --mixed_precision no --dynamo_backend no"
        launch = [ACCELERATE, "launch", *words.split(), RECIPES / "ppo.py", *flags]
        environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        environment |= {"GLOO_SOCKET_IFNAME": self.name, "PAUSE": str(pause)}
        command = ["ip", "netns", "exec", self.name]  # which also has mounts of its own
        if own_disk:
            command += ["sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', folder]
        given = {"env": os.environ | environment, "stderr": subprocess.STDOUT}
        with output.open("w") as file:
            return subprocess.Popen([*command, *launch], stdout=file, **given)

    def switch_off(self):
        for pid in ip("netns", "pids", self.name).split():
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture(scope="module")
def hosts():
    words = {"shell": True, "capture_output": True, "text": True, "check": False}
    tried = subprocess.run("ip netns list && unshare -n true", **words)
    if tried.returncode:
        pytest.skip(f"no network namespaces here: {tried.stderr}")
    both = [Host(f"trl{os.getpid()}{end}", f"10.213.0.{end}") for end in (1, 2)]
    try:
        for host in both:
            ip("netns", "add", host.name)
        first, second = both
        ip("link", "add", first.name, "type", "veth", "peer", "name", second.name)
        for host in both:
            ip("link", "set", host.name, "netns", host.name)
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.name)
            ip("-n", host.name, "link", "set", "lo", "up")
            ip("-n", host.name, "link", "set", host.name, "up")
        yield both
    finally:
        for host in both:
            host.switch_off()
            subprocess.run(["ip", "netns", "delete", host.name], check=False)


class Launch:
    def __init__(self, hosts, flags, folder, *more, own_disks=False, pause=0):
        self.stats = folder / "all_stats.jsonl"
        folder.mkdir(exist_ok=True)
        self.outputs = [folder.parent / f"{folder.name}-host-{rank}.txt" for rank in (0, 1)]
        flags = [*flags, "--output_dir", folder, *more]
        self.processes = [
            host.start(rank, hosts[0], self.outputs[rank], flags, folder, own_disks and rank, pause)
            for rank, host in enumerate(hosts)
        ]

    def said(self):
        return "".join(path.read_text()[-3000:] for path in self.outputs)

    def wait_for_step(self, step, seconds=120):
        ends = time.monotonic() + seconds
        while not self.stats.is_file() or len(self.stats.read_text().splitlines()) < step:
            assert time.monotonic() < ends, self.said()
            assert self.processes[0].poll() is None, self.said()
            time.sleep(0.02)

    def end_well(self):
        assert [process.wait(timeout=120) for process in self.processes] == [0, 0], self.said()


def test_a_run_that_loses_a_machine_ends_as_one_left_alone(hosts, sentiment_models, tmp_path):
    (tmp_path / "mine.py").write_text(REWARD)
    flags = [*WORDS.split(), "--model_name_or_path", sentiment_models["model_name_or_path"]]
    flags += ["--dataset_name", sentiment_models["dataset_name"]]
    flags += ["--reward_funcs", f"{tmp_path / 'mine.py'}:evenness"]
    Launch(hosts, flags, tmp_path / "alone").end_well()

    folder = tmp_path / "lost"
    run = Launch(hosts, flags, folder, pause=0.2)
    run.wait_for_step(5)
    hosts[1].switch_off()
    assert run.processes[0].wait(timeout=20) == 1
    told = run.outputs[0].read_text()
    assert "The connection to another process was lost" in told
    assert "--resume_from_checkpoint true" in told
    left = checkpoints_in(folder / "checkpoints")
    assert [damage(path) for path in left] == [None, None]

    Launch(hosts, flags, folder, "--resume_from_checkpoint", "true", own_disks=True).end_well()
    rows, alone = (without_times(load_stats(f)) for f in (folder, tmp_path / "alone"))
    assert rows == alone
    assert len(rows) == STEPS
    models = [load_file(f / "model" / "model.safetensors") for f in (folder, tmp_path / "alone")]
    assert all(models[0][name].equal(models[1][name]) for name in models[1])
