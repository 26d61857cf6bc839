"""Recipes as tests start them: forked from a warm interpreter, in one process or in two."""

import functools
import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
ACCELERATE = Path(sys.executable).with_name("accelerate")
CONFIG = RECIPES / "accelerate" / "two_cpu_processes.yaml"
LAUNCH = [ACCELERATE, "launch", "--config_file", CONFIG]  # as the README has it
PLAIN = "--num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
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
WARMED = ("tiny_models", "torch", "transformers", "trl", "datasets", "peft", "accelerate")


def parsed(*flags):
    """The arguments of `accelerate launch`, with the values of its configuration file."""
    args = launch_command_parser().parse_args([*map(str, flags), "recipe.py"])
    args, defaults, _ = _validate_launch_command(args)
    fields = defaults.deepspeed_config if defaults else {}
    args.deepspeed_fields_from_accelerate_config = ",".join(fields)
    return args


def launcher_and_environment(args):
    """As `accelerate launch` chooses the launcher, and what it gives to the processes."""
    if args.use_deepspeed:
        return "deepspeed", prepare_deepspeed_cmd_env(args)[1]
    if args.use_fsdp or args.multi_gpu:
        return "multi", prepare_multi_gpu_env(args)
    return "simple", prepare_simple_launcher_cmd_env(args)[1]


def launch(script, *words, way=None, timeout=300, **environment):
    """What a script in two processes wrote to stderr; both must end well.

    They are forked, in the environment that `accelerate launch` gives; test_bad_ends.py and
    test_two_hosts.py start the launcher itself.
    """
    args = parsed(*(["--config_file", CONFIG] if way is None else f"{PLAIN} {WAYS[way]}".split()))
    given = launcher_and_environment(args)[1] | {"OMP_NUM_THREADS": "1"} | environment
    given |= {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": args.main_process_port}
    both = [
        Recipe(script, *words, environment=given | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in (0, 1)
    ]
    end = time.monotonic() + timeout
    while any(one.process.is_alive() for one in both):
        if time.monotonic() > end or any(one.process.exitcode for one in both):
            break
        time.sleep(0.02)
    for one in both:
        one.process.kill()  # who is still there waits for the other
    done = [one.finish() for one in both]
    said = [one.stderr for one in done]
    assert [one.returncode for one in done] == [0, 0], "\n\n".join(text[-3000:] for text in said)
    return "".join(said)


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


def run_script(path, words, folder, outputs, environment):
    """Run a recipe in this process, as `python path words` in a folder would."""
    os.environ.update(environment)
    os.chdir(folder)
    for number, place in enumerate((os.devnull, *outputs)):
        os.dup2(os.open(place, os.O_RDWR | os.O_CREAT), number)
    sys.argv = [str(path), *words]
    runpy.run_path(str(path), run_name="__main__")


def run_here(name, *words):
    """Run a recipe in this process, as `python recipes/name words` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(RECIPES / name), run_name="__main__")


class Recipe:
    """A recipe that runs in a process of its own."""

    def __init__(self, name, *words, cwd=ROOT, environment=None):
        self.folder = tempfile.TemporaryDirectory()
        self.outputs = [Path(self.folder.name, kind) for kind in ("out", "err")]
        more = {key: str(value) for key, value in (environment or {}).items()}
        arguments = (RECIPES / name, [str(word) for word in words], cwd, self.outputs, more)
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

    def ends_with(self, code):
        """What it wrote; it must end with this exit code."""
        done = self.finish()
        assert done.returncode == code, done.stderr[-3000:]
        return done.stdout + done.stderr


def run_warm(name, *words, **options):
    """Run a recipe to its end: what `subprocess.run` would return."""
    return Recipe(name, *words, **options).finish()
