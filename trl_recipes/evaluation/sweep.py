"""PPO, GRPO and RLOO on one task with the same number of generated tokens, a process for each run.

What is finished is not run again, and what was stopped goes on where it stopped.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from trl_recipes.callbacks import StopSignals
from trl_recipes.errors import RecipeError, RunStopped
from trl_recipes.grpo import GRPOConfig, RLOOConfig
from trl_recipes.ppo import PPOConfig
from trl_recipes.run_folder import check_output_dir, prepare_run
from trl_recipes.settings import setting

CONFIGS = {"ppo": PPOConfig, "grpo": GRPOConfig, "rloo": RLOOConfig}
NAMES = {name: name.upper() for name in CONFIGS}
# Settings that are the task's, so that no algorithm may have its own.
_SHARED = ("batch_size", "response_length", "temperature", "max_steps", "seed", "output_dir")
_SHARED += ("max_completion_length", "min_response_length", "lr_scheduler_type", "reward_funcs")
_SHARED += ("steps_per_generation", "generation_batch_size", "logging_steps", "total_episodes")
SETTINGS_FILE = "settings.json"  # what a run was begun with
RESULT_FILE = "result.json"  # written last: the run is finished
CURVE_FILE = "curve.jsonl"
LOG_FILE = "log.txt"
COMMAND = (sys.executable, "-m", "trl_recipes.evaluation.sweep_run")
LAST_LINES = 6
POLL_SECONDS = 0.1


@dataclass
class Task:
    """What all runs share."""

    tokens: int = setting(100_000, "Tokens that each run generates; it ends with their batch.")
    batch: int = setting(128, "Responses a step.")
    response_length: int = setting(16, "Most tokens of a response.")
    min_prompt_length: int = setting(2, "Shortest prompt, in tokens.")
    max_prompt_length: int = setting(8, "Longest prompt, in tokens.")
    evaluations: int = setting(10, "How often to measure on the way.")
    eval_prompts: int = setting(256, "Held-out prompts to measure on.")
    model_name_or_path: str | None = setting(None, "Start model.")
    dataset_name: str | None = setting(None, "Texts to take prompts of.")
    reward_model: str | None = setting(None, "Sentiment classifier.")
    label: str = setting("POSITIVE", "Its probability is the reward.")

    def ending(self) -> str:
        """Say when a run ends, which its trainer's description cannot know."""
        fewest = math.ceil(self.tokens / (self.batch * self.response_length))
        return (
            f"A run ends with the step that reaches {self.tokens} generated tokens: step {fewest} "
            "if every response has its full length, a later one the shorter they are."
        )


@dataclass(frozen=True)
class Run:
    """One run: an algorithm with a seed and its own settings on the shared task."""

    algorithm: str
    seed: int
    task: Task
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{NAMES[self.algorithm]} seed {self.seed}"

    @property
    def folder_name(self) -> str:
        """Name of the run's folder."""
        return f"{self.algorithm}-seed{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Give all that decides the run's outcome, ready for JSON."""
        return dataclasses.asdict(self)


def make_runs(
    task: Task, algorithms: Sequence[str], seeds: Sequence[int], own: Mapping[str, Any]
) -> list[Run]:
    """Make a run of each algorithm with each seed, and check them.

    `own` holds each algorithm's settings: a dict, JSON, or None for its defaults.
    """
    for name in algorithms:
        if name not in CONFIGS:
            raise RecipeError(f"--algorithms: `{name}` is unknown. Use {', '.join(CONFIGS)}.")
    for flag, values in (("--algorithms", algorithms), ("--seeds", seeds)):
        if not values or len(set(values)) < len(values):
            shown = " ".join(map(str, values)) or "nothing"
            raise RecipeError(f"{flag} is {shown}. Give each value once, and at least one.")
    for name in ("tokens", "batch", "response_length", "evaluations", "eval_prompts"):
        if getattr(task, name) < 1:
            raise RecipeError(f"`{name}` is {getattr(task, name)}. It must be 1 or more.")
    if task.tokens < task.batch * task.evaluations:
        raise RecipeError(
            f"--tokens {task.tokens} is less than a token for each response of {task.evaluations} "
            f"batches of {task.batch}. Raise it, or lower --batch or --evaluations."
        )
    settings = {name: _own_settings(name, own.get(name)) for name in algorithms}
    runs = [Run(name, seed, task, settings[name]) for seed in seeds for name in algorithms]
    for run in runs:
        config_of(run, Path(run.folder_name))
    return runs


def config_of(run: Run, folder: Path, resume: bool = False) -> TrainingArguments:
    """Make the configuration of a run's trainer.

    The learning rate stays constant, since how many steps a budget of tokens takes is known only
    at its end; `max_steps` is what responses of one token would take.
    """
    kind, flag, task = CONFIGS[run.algorithm], f"--{run.algorithm}", run.task
    known = {setting.name for setting in dataclasses.fields(kind) if setting.init}
    for name in run.settings:
        if name in _SHARED:
            raise RecipeError(
                f"{flag}: `{name}` is the same for every algorithm. Leave it out there, and use "
                "the flags of the recipe."
            )
        if name not in known:
            raise RecipeError(
                f"{flag}: {kind.__name__} has no setting `{name}`. Fix its name; `python "
                f"recipes/{run.algorithm}_sentiment.py --help_all` lists them."
            )
    shared = {
        "output_dir": str(folder),
        "seed": run.seed,
        "batch_size": task.batch,
        "response_length": task.response_length,
        "max_steps": math.ceil(task.tokens / task.batch),
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_total_limit": 1,
        "disable_tqdm": True,
        "resume_from_checkpoint": "true" if resume else None,
    }
    if "min_response_length" in known:  # PPO would draw the limit of each response
        shared["min_response_length"] = None
    try:
        return kind(**{"save_steps": 10} | run.settings | shared)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{flag}: {error} Fix the settings of {NAMES[run.algorithm]}.") from error


def is_finished(run: Run, folder: Path, overwrite: bool = False) -> bool:
    """Say whether a run need not be run again; refuse a folder that holds another run."""
    if not (folder / SETTINGS_FILE).is_file():
        check_output_dir(folder, overwrite=overwrite)
        return False
    if overwrite:
        return False
    old, new = (_flat(values) for values in (read_json(folder / SETTINGS_FILE), run.to_dict()))
    differing = ", ".join(
        f"{name} {old.get(name)}, now {new.get(name)}"
        for name in old | new
        if old.get(name) != new.get(name)
    )
    if differing:
        raise RecipeError(
            f"--output_dir: `{folder}` holds a run with other settings ({differing}). Choose "
            "another folder, or use --overwrite_output_dir true to replace its runs."
        )
    return (folder / RESULT_FILE).is_file()


def default_jobs(wanted: int) -> int:
    """Give how many runs go at a time: for 0 one a core, or one alone on a GPU."""
    if wanted < 0:
        raise RecipeError(f"--jobs is {wanted}. Use 1 or more, or 0 for one a core or GPU.")
    return wanted or (1 if torch.cuda.is_available() else os.cpu_count() or 1)


def run_all(
    runs: Sequence[Run],
    folder: Path,
    jobs: int,
    say: Callable[[str], None],
    overwrite: bool = False,
) -> list[str]:
    """Run each in a process of its own, `jobs` at a time, and give a sentence for each that failed.

    `say` is told when a run begins and ends. Raises RunStopped where SIGTERM or Ctrl-C came; every
    run has then written a checkpoint.
    """
    going: list[subprocess.Popen] = []
    begun, failures = [], []
    lock, began = threading.Lock(), time.perf_counter()

    def one(run: Run) -> None:
        path = folder / run.folder_name
        with lock:
            if signals.received is not None:
                return
            if overwrite:
                prepare_run(path, overwrite=True)
                for name in (SETTINGS_FILE, RESULT_FILE, CURVE_FILE):
                    (path / name).unlink(missing_ok=True)
            process = _start(run, path, jobs)
            going.append(process)
            begun.append(run)
            say(f"{run}: begun, {len(begun)} of {len(runs)}")
        code = process.wait()
        with lock:
            going.remove(process)
            if code:
                failures.append(f"{run} failed. {_last_words(path, code)}")
                say(failures[-1])
            else:
                say(f"{run}: {_summary(path)}")
                left = len(runs) - len(begun) + len(going)
                minutes = (time.perf_counter() - began) / 60
                ahead = f"    {left} left, about {minutes / (len(runs) - left) * left:.1f} minutes"
                say(ahead if left else f"{len(runs)} runs in {minutes:.1f} minutes.")

    with StopSignals() as signals, ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(one, run) for run in runs}
        try:
            while waiting:
                done, waiting = wait(waiting, POLL_SECONDS)
                for future in done:
                    future.result()
                if signals.received is not None:  # every run finishes its step and saves
                    with lock:
                        for process in going:
                            process.send_signal(signals.received)
                    wait(waiting)
                    name = signals.received.name
                    words = f"Stopped by {name}. The same command goes on where it stopped."
                    raise RunStopped(words, 128 + signals.received)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in going:
                process.kill()
            raise
    return failures


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a run's JSON files."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RecipeError(
            f"`{path}` is damaged ({error}). Delete the folder, and the run is made again."
        ) from error


def _own_settings(name: str, given: Any) -> dict[str, Any]:
    """An algorithm's settings, which a command line gives as JSON."""
    try:
        settings = json.loads(given) if isinstance(given, str) else given or {}
    except json.JSONDecodeError:
        settings = None
    if not isinstance(settings, dict):
        raise RecipeError(
            f"--{name} is {given!r}, which is no JSON object. Give one such as "
            "'{\"learning_rate\": 1e-5}', or settings under this key in a YAML file."
        )
    return settings


def _start(run: Run, folder: Path, jobs: int) -> subprocess.Popen:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG_FILE).open("wb") as log:
        return subprocess.Popen(
            [*COMMAND, json.dumps(run.to_dict()), str(folder)],
            env={"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches it once, through us
        )


def _last_words(folder: Path, code: int) -> str:
    text = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if line.startswith("error: ")), None)
    killed = " (killed, most likely for want of memory)" if code == -9 else ""
    words = told or " / ".join(lines[-LAST_LINES:]) or "it said nothing"
    return f"Exit code {code}{killed}, `{folder / LOG_FILE}`: {words}"


def _summary(folder: Path) -> str:
    result = read_json(folder / RESULT_FILE)
    before, after = result["reference"], result["policy"]
    return (
        f"reward {before['reward']:.3f} to {after['reward']:.3f}, KL {after['kl']:.2f} nats, "
        f"{result['tokens']} tokens in {result['seconds']:.0f} s of training"
    )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """All settings of a run by their own names; none stands in two parts of it."""
    parts = {name: value for name, value in settings.items() if not isinstance(value, dict)}
    return parts | settings.get("task", {}) | settings.get("settings", {})
