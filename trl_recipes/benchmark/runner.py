"""Subprocesses, one after the other: each contestant gets the machine and its memory to itself."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from statistics import median

from trl_recipes.benchmark.work import Contestant, Work
from trl_recipes.benchmark.worker import Result
from trl_recipes.errors import RecipeError

LAST_LINES = 15
LAUNCH = ("--multi_gpu", "--num_machines", "1", "--main_process_port", "0")
LAUNCH += ("--dynamo_backend", "no", "--module")


def run_in_turn(
    runs: Mapping[str, tuple[Contestant, Work]],
    repeats: int,
    timeout: float,
    say: Callable[[str], None],
) -> dict[str, list[Result]]:
    """Run each once, then each again, so that a slow minute of the machine meets them all.

    Args:
        runs: contestant and work by name.
        repeats: processes of each.
        timeout: seconds that a process may take.
        say: told of each process when it ends.

    Returns:
        By the same names, one result a repeat.

    Raises:
        RecipeError: a process failed or took too long.
    """
    results: dict[str, list[Result]] = {name: [] for name in runs}
    for repeat in range(repeats):
        for name, (contestant, work) in runs.items():
            result = run_contestant(contestant, work, timeout)
            results[name].append(result)
            seconds = median(step["step"] for step in result.steps)
            say(f"{repeat + 1}/{repeats} {name}: {seconds:.3g} s, {result.memory / 1e9:.2f} GB")
    return results


def run_contestant(contestant: Contestant, work: Work, timeout: float) -> Result:
    """Run one contestant in a process of its own, or in several under Accelerate.

    Args:
        contestant: ours, or TRL's.
        work: what a step does.
        timeout: seconds after which the process is ended.

    Returns:
        What it measured.

    Raises:
        RecipeError: it failed, with its last lines, or took too long.
    """
    command = [sys.executable, "-m"]
    if work.processes > 1:
        precision = "bf16" if work.precision == "bf16" else "no"
        command += ["accelerate.commands.launch", "--num_processes", str(work.processes)]
        command += ["--mixed_precision", precision, *LAUNCH]
    command.append("trl_recipes.benchmark.worker")
    what = f"`{contestant}` ({work})"
    try:
        done = subprocess.run(
            [*command, contestant, json.dumps(asdict(work))],
            env=_environment(work),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise RecipeError(
            f"{what} was ended after {timeout:g} s. Raise --timeout, or take a smaller --size, "
            "--batch or --response."
        ) from error
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-LAST_LINES:])
        raise RecipeError(
            f"{what} failed with exit code {done.returncode}{_meaning(done.returncode)}. Its last "
            f"lines:\n{last}"
        )
    return Result(**json.loads(done.stdout.strip().splitlines()[-1]))


def _environment(work: Work) -> dict[str, str]:
    """Precision as `accelerate launch --mixed_precision` hands it on, which TRL's trainer reads."""
    # with --cpu on its command line, Accelerate would start one process alone
    cpu = {"ACCELERATE_USE_CPU": "true"} if work.processes > 1 and work.device == "cpu" else {}
    return (
        os.environ
        | cpu
        | {
            "ACCELERATE_MIXED_PRECISION": "bf16" if work.precision == "bf16" else "no",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
    )


def _meaning(code: int) -> str:
    return " (killed, most likely for want of memory)" if code == -9 else ""
