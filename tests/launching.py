"""Recipes as tests start them: forked from a warm interpreter, or in two processes."""

import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
ACCELERATE = Path(sys.executable).with_name("accelerate")
CONFIG = RECIPES / "accelerate" / "two_cpu_processes.yaml"
LAUNCH = [ACCELERATE, "launch", "--config_file", CONFIG]  # as the README has it
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PLAIN = "launch --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
PLAIN += " --main_process_port 0"
FSDP = "--use_fsdp --fsdp_version 2 --fsdp_cpu_ram_efficient_loading false"
FSDP += " --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP"
WAYS = {
    "whole": "--multi_gpu",
    "sharded": FSDP,
    "FSDP": f"{FSDP} --fsdp_state_dict_type FULL_STATE_DICT",
    "ZeRO-2": "--use_deepspeed --zero_stage 2",
    "ZeRO-3": "--use_deepspeed --zero_stage 3 --zero3_save_16bit_model true",
}
WARMED = ("conftest", "torch", "transformers", "trl", "datasets", "peft", "accelerate")


def launch(script, *words, way=None, timeout=300, **environment):
    """What a script in two processes wrote to stderr; both must end well."""
    command = LAUNCH if way is None else [ACCELERATE, *PLAIN.split(), *WAYS[way].split()]
    done = subprocess.run(
        [*command, script, *words],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@functools.cache
def warm():
    """A server whose forked children have packages and recipes imported: seconds saved each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*WARMED, *(path.stem for path in RECIPES.glob("*.py"))])
    with pytest.MonkeyPatch.context() as patch:
        path = os.pathsep.join([str(ROOT), str(RECIPES), str(Path(__file__).parent)])
        patch.setenv("PYTHONPATH", path)
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def run_script(path, words, folder, outputs):
    """Run a recipe in this process, as `python path words` in a folder would."""
    os.chdir(folder)
    for number, place in enumerate((os.devnull, *outputs)):
        os.dup2(os.open(place, os.O_RDWR | os.O_CREAT), number)
    sys.argv = [str(path), *words]
    runpy.run_path(str(path), run_name="__main__")


class Recipe:
    """A recipe that runs in a process of its own."""

    def __init__(self, name, *words, cwd=ROOT):
        self.folder = tempfile.TemporaryDirectory()
        self.outputs = [Path(self.folder.name, kind) for kind in ("out", "err")]
        arguments = (RECIPES / name, [str(word) for word in words], cwd, self.outputs)
        self.process = warm().Process(target=run_script, args=arguments)
        self.process.start()

    def said(self):
        return [path.read_text() if path.exists() else "" for path in self.outputs]

    def wait_until(self, happened):
        """Wait for what the recipe does on its way, before it ends."""
        while not happened():
            assert self.process.is_alive(), self.said()
            time.sleep(0.002)

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def finish(self, timeout=180):
        """Its exit code, and what it wrote."""
        self.process.join(timeout)
        assert not self.process.is_alive(), self.said()
        out, err = self.said()
        return SimpleNamespace(returncode=self.process.exitcode, stdout=out, stderr=err)


def run_warm(name, *words, cwd=ROOT):
    """Run a recipe to its end: what `subprocess.run` would return."""
    return Recipe(name, *words, cwd=cwd).finish()
