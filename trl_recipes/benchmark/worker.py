"""A subprocess per trainer and repeat: each gets the machine and its memory to itself.

python -m trl_recipes.benchmark.worker ours '{"size": "tiny", "batch": 4, ...}'
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Literal

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from trl_recipes import PPOConfig, PPOTrainer
from trl_recipes.benchmark import models
from trl_recipes.benchmark.models import PHASES, Workload
from trl_recipes.describe import device_name, peak_memory
from trl_recipes.distributed import let_go
from trl_recipes.errors import RecipeError

TrainerName = Literal["classic", "ours", "trl"]

LEARNING_RATE = 1e-6  # small, so that no update is skipped as too large
LAST_LINES = 15
LAUNCH = ("--multi_gpu", "--num_machines", "1", "--main_process_port", "0")
LAUNCH += ("--dynamo_backend", "no", "--module")


@dataclass(frozen=True)
class Result:
    """What one subprocess measured."""

    steps: list[dict[str, float]]  # seconds of each timed one under "step" and each of `PHASES`
    memory: float  # most bytes held at a time: of the process on a CPU, of torch on a GPU
    response_tokens: float  # mean length of the responses of the timed steps
    device: str  # its name, with the number of threads on a CPU
    profile: str = ""  # table of what took the time of one step

    @property
    def step(self) -> float:
        """Seconds of a step, the median of them."""
        return median(step["step"] for step in self.steps)


def run_in_turn(
    names: Sequence[TrainerName], work: Workload, repeats: int, print_line: Callable[[str], None]
) -> dict[TrainerName, list[Result]]:
    """Run each trainer once, then each again, so that a slow minute meets them all."""
    results: dict[TrainerName, list[Result]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names:
            result = run_worker(name, work)
            results[name].append(result)
            gigabytes = result.memory / 1e9
            print_line(f"{repeat + 1}/{repeats} {name}: {result.step:.3g} s, {gigabytes:.2f} GB")
    return results


def run_worker(name: TrainerName, work: Workload) -> Result:
    """Run one trainer in a process of its own, or in several under Accelerate."""
    command = [sys.executable, "-m"]
    if work.processes > 1:
        precision = "bf16" if work.precision == "bf16" else "no"
        command += ["accelerate.commands.launch", "--num_processes", str(work.processes)]
        command += ["--mixed_precision", precision, *LAUNCH]
    done = subprocess.run(
        [*command, "trl_recipes.benchmark.worker", name, json.dumps(asdict(work))],
        env=_environment(work),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        killed = " (killed, most likely for want of memory)" if done.returncode == -9 else ""
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-LAST_LINES:])
        raise RecipeError(
            f"`{name}` ({work}) failed with exit code {done.returncode}{killed}. Its last lines:\n"
            f"{last}"
        )
    return Result(**json.loads(done.stdout.strip().splitlines()[-1]))


def _environment(work: Workload) -> dict[str, str]:
    """Hand precision on as `accelerate launch --mixed_precision` does, for TRL's trainer."""
    chosen = {
        "ACCELERATE_MIXED_PRECISION": "bf16" if work.precision == "bf16" else "no",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if work.device == "cpu":
        chosen["CUDA_VISIBLE_DEVICES"] = ""
    if work.device == "cpu" and work.processes > 1:
        # with --cpu on its command line, Accelerate would start one process alone
        chosen["ACCELERATE_USE_CPU"] = "true"
        chosen["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // work.processes))
    return os.environ | chosen


class Clock(TrainerCallback):
    """Takes the time from the end of one step to the end of the next, of any trainer alike.

    `steps` holds, for each step, its seconds under "step" and those of each phase that was timed.
    """

    def __init__(self, device: str):
        self.device = device
        self.steps: list[dict[str, float]] = []
        self._phases: dict[str, float] = defaultdict(float)
        self._last = 0.0

    def now(self) -> float:
        """Return the time in seconds, when the device has nothing left to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's seconds to a phase of the running step."""
        started = self.now()
        yield
        self._phases[name] += self.now() - started

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the first step."""
        self._last = self.now()

    def on_step_end(self, args, state, control, **kwargs):
        """End a step, and start the next."""
        now = self.now()
        self.steps.append({"step": now - self._last, **self._phases})
        self._phases.clear()
        self._last = now


class Profile(TrainerCallback):
    """Profiles the second step; `table` then holds its dearest kernels (on a CPU: operations)."""

    def __init__(self, device: str):
        self.device, self.table, self.started = device, "", 0.0
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
        self.profiler = profile(activities=kinds)

    def on_step_end(self, args, state, control, **kwargs):
        """Begin after the first step, and end after the second."""
        if state.global_step == 1:
            self.profiler.start()
            self.started = time.perf_counter()
        elif state.global_step == 2:
            if self.device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - self.started
            self.profiler.stop()
            self.table = self._table(seconds)

    def _table(self, seconds: float) -> str:
        found = self.profiler.key_averages()
        order = "self_cuda_time_total" if self.device == "cuda" else "self_cpu_time_total"
        table = found.table(sort_by=order, row_limit=20, max_name_column_width=100)
        if self.device == "cuda":
            kernels = (
                event.self_device_time_total
                for event in found
                if event.device_type == DeviceType.CUDA
                and not getattr(event, "is_user_annotation", False)
            )
            waiting = seconds - sum(kernels) / 1e6
            table += f"\nThe GPU had nothing to do for {waiting:.3g} of {seconds:.3g} s."
        return f"```text\n{table.strip()}\n```"


def run(name: TrainerName, work: Workload) -> Result:
    """Train for one step to warm up and for those that are timed.

    Of several processes, seconds are those of the main one; memory is that of all.
    """
    clock, profiled = Clock(work.device), Profile(work.device)
    if name == "trl":
        lengths = _run_trl(work, clock)
    else:
        callbacks = [clock, profiled] if work.profile else [clock]
        lengths = _run_ours(work, clock, callbacks, by_hand=name == "classic")
    memory = peak_memory() * 1e9
    if work.processes > 1:
        memory = sum(gather_object([memory]))
    timed = [_with_update(step) for step in clock.steps[1:]]
    tokens = sum(lengths[1:]) / work.steps
    return Result(timed, memory, tokens, device_name(), profiled.table)


def _run_ours(
    work: Workload, clock: Clock, callbacks: list[TrainerCallback], by_hand: bool
) -> list[float]:
    """Train with our trainer; the mean length of the responses of each step."""

    def length(completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]

    size = work.batch // work.processes
    first = PartialState().process_index * size
    config = PPOConfig(
        batch_size=size,
        mini_batch_size=size // work.passes,
        gradient_accumulation_steps=work.passes,
        local_rollout_forward_batch_size=size // work.passes,
        ppo_epochs=work.epochs,
        response_length=work.response,
        min_response_length=work.shortest,
        stop_token=None,
        max_steps=work.steps + 1,
        learning_rate=LEARNING_RATE,
        seed=work.seed,
        bf16=work.precision == "bf16",
        use_cpu=work.device == "cpu",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = PPOTrainer(
        args=config,
        model=models.language_model(work),
        reward_funcs=length,
        train_dataset=models.prompts(work),
        processing_class=models.tokenizer(work),
        peft_config=models.lora_config(work),
        callbacks=callbacks,
    )
    lengths = itertools.cycle(work.lengths()[first : first + size])
    trainer._length_sampler = lambda: lengths.__next__  # where it would draw them
    if by_hand:
        _loop_by_hand(trainer, work, clock)
    else:
        trainer.train()
    if any(row["ppo/skipped_minibatches"] for row in trainer.all_stats):
        raise RecipeError("An optimizer step was skipped, so less was done than is timed.")
    for step, row in zip(clock.steps, trainer.all_stats, strict=True):
        if not by_hand:
            step["generation"], step["scoring"] = row["time/generation"], row["time/scoring"]
        step["forward"] = row["time/ppo/forward_pass"]
    return [row["tokens/responses_len_mean"] for row in trainer.all_stats]


def _loop_by_hand(trainer: PPOTrainer, work: Workload, clock: Clock) -> None:
    """Train in the loop that a script of TRL 0.11 writes."""
    clock.on_train_begin(None, None, None)
    for _, batch in zip(range(work.steps + 1), trainer.dataloader, strict=False):
        queries = batch["input_ids"]
        with clock.phase("generation"):
            responses = trainer.generate(queries, trainer._length_sampler(), return_prompt=False)
        with clock.phase("scoring"):
            batch["response"] = trainer.tokenizer.batch_decode(responses)
            scores = [torch.tensor(float(len(response))) for response in responses]
        trainer.log_stats(trainer.step(queries, responses, scores), batch, scores)
        clock.on_step_end(None, None, None)


def _run_trl(work: Workload, clock: Clock) -> list[float]:
    # TRL 1.13 and newer lack it
    from trl_recipes.benchmark.trl_baseline import timed_phases, trl_trainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(work, folder, LEARNING_RATE, clock)
        with timed_phases(trainer, clock.phase):
            trainer.train()
    return [float(work.response)] * len(clock.steps)


def _with_update(step: dict[str, float]) -> dict[str, float]:
    """Count as update what no other phase has: the epochs, advantages, statistics."""
    known = {phase: step.get(phase, 0.0) for phase in PHASES if phase != "update"}
    return {"step": step["step"], **known, "update": step["step"] - sum(known.values())}


if __name__ == "__main__":
    measured = run(sys.argv[1], Workload(**json.loads(sys.argv[2])))
    if PartialState().is_main_process:
        print(json.dumps(asdict(measured)))  # noqa: T201  what the parent reads
    let_go()
