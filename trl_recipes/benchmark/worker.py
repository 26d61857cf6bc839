"""What one subprocess runs: some steps of one trainer, and one line of JSON about them.

python -m trl_recipes.benchmark.worker ours '{"size": "tiny", "batch": 4, ...}'
"""

import itertools
import json
import platform
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from trl_recipes import PPOConfig, PPOTrainer
from trl_recipes.benchmark import models as sizes
from trl_recipes.benchmark.clock import Clock
from trl_recipes.benchmark.waiting import Waits, waiting
from trl_recipes.benchmark.work import PHASES, Contestant, Work
from trl_recipes.distributed import let_go
from trl_recipes.errors import RecipeError

LEARNING_RATE = 1e-6  # small, so that no update is skipped as too large


@dataclass(frozen=True)
class Result:
    """What one subprocess measured.

    Attributes:
        steps: for each timed step, seconds under "step" and under each of `PHASES`.
        memory: most bytes held at a time: of the process on a CPU, of torch on a GPU.
        response_tokens: mean length of the responses of the timed steps.
        device: name of the device, with the number of threads on a CPU.
        waiting: of several processes on a CPU, for each timed step and each process what
            `trl_recipes.benchmark.waiting.waiting` returns.
    """

    steps: list[dict[str, float]]
    memory: int
    response_tokens: float
    device: str
    waiting: list[list[dict[str, float]]] = field(default_factory=list)


class _Measured(PPOTrainer):
    """Responses of given lengths in each batch, where the trainer would draw them; notes waits."""

    def __init__(self, lengths: list[int], waits: Waits, **kwargs: Any):
        super().__init__(**kwargs)
        self._lengths = itertools.cycle(lengths)
        self._waits = waits
        if self.accelerator.num_processes > 1:
            waits.watch(self.model)
            self._backward, self.accelerator.backward = self.accelerator.backward, self._and_wait

    def _length_sampler(self) -> Callable[[], int]:
        return self._lengths.__next__

    def _and_wait(self, loss: torch.Tensor) -> None:
        """A backward pass, after which gradients are averaged unless more passes follow."""
        self._backward(loss)
        if self.model.require_backward_grad_sync:
            self._waits.gradients_arrived()

    def _all_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        with self._waits.sums():
            return super()._all_sum(tensor)


def run(contestant: Contestant, work: Work) -> Result:
    """Train for one step to warm up and for those that are timed.

    Args:
        contestant: ours, or TRL's.
        work: what a step does; several processes share its batch.

    Returns:
        Seconds are those of the main process, which all others keep up with; memory is that of all.
    """
    if work.threads is not None:
        torch.set_num_threads(work.threads)
    clock, waits = Clock(work.device), Waits()
    if contestant == "ours":
        steps, lengths = _run_ours(work, clock, waits)
    else:
        steps, lengths = _run_stock(work, clock)
    timed = [_with_update(step) for step in steps[1:]]
    length = sum(lengths[1:]) / work.steps
    memory, waited = peak_memory(work.device), []
    if work.processes > 1:
        memory = sum(gather_object([memory]))
        everyones = gather_object([waits.steps[1:]])
        # calls return before a GPU has done what they ask for, so there these times say nothing
        if work.device == "cpu":
            waited = [waiting(step) for step in zip(*everyones, strict=True)]
    return Result(timed, memory, length, device_name(work.device), waited)


def _run_ours(work: Work, clock: Clock, waits: Waits) -> tuple[list[dict], list[float]]:
    def length(completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]

    size = work.batch // work.processes
    first = PartialState().process_index * size
    config = PPOConfig(
        batch_size=size,
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
    trainer = _Measured(
        work.lengths()[first : first + size],
        waits,
        args=config,
        model=sizes.language_model(work),
        reward_funcs=length,
        train_dataset=sizes.prompts(work),
        processing_class=sizes.tokenizer(work),
        peft_config=sizes.lora_config(work),
        callbacks=[clock, waits],
    )
    trainer.train()
    if any(row["ppo/skipped_minibatches"] for row in trainer.all_stats):
        raise RecipeError("An optimizer step was skipped, so less was done than is timed.")
    keys = {
        "generation": "time/generation",
        "scoring": "time/scoring",
        "forward": "time/ppo/forward_pass",
    }
    steps = [
        step | {phase: row[key] for phase, key in keys.items()}
        for step, row in zip(clock.steps, trainer.all_stats, strict=True)
    ]
    return steps, [row["tokens/responses_len_mean"] for row in trainer.all_stats]


def _run_stock(work: Work, clock: Clock) -> tuple[list[dict], list[float]]:
    from trl_recipes.benchmark.trl_baseline import (  # which not every TRL has
        stock_trainer,
        timed_phases,
    )

    with tempfile.TemporaryDirectory() as folder:
        trainer = stock_trainer(
            sizes.language_model(work),
            sizes.value_model(work),
            sizes.reward_model(work),
            sizes.tokenizer(work),
            sizes.prompts(work),
            output_dir=folder,
            batch=work.batch,
            response=work.response,
            epochs=work.epochs,
            steps=work.steps + 1,
            learning_rate=LEARNING_RATE,
            seed=work.seed,
            bf16=work.precision == "bf16",
            use_cpu=work.device == "cpu",
            peft_config=sizes.lora_config(work),
            callback=clock,
        )
        with timed_phases(trainer, clock.phase):
            trainer.train()
    return clock.steps, [float(work.response)] * len(clock.steps)


def _with_update(step: dict[str, float]) -> dict[str, float]:
    """Count to the update what no other phase has: the epochs, advantages, statistics."""
    known = {phase: step.get(phase, 0.0) for phase in PHASES if phase != "update"}
    return {"step": step["step"], **known, "update": step["step"] - sum(known.values())}


def peak_memory(device: str) -> int:
    """Most bytes that this process held at a time; on a GPU those that torch allocated there.

    On Linux this is VmHWM: `ru_maxrss` survives exec, so that a subprocess would inherit what its
    parent held when it started it.

    Args:
        device: cpu or cuda.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024


def device_name(device: str) -> str:
    """Name the device, and on a CPU the threads that torch uses.

    Args:
        device: cpu or cuda.
    """
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


if __name__ == "__main__":
    measured = run(sys.argv[1], Work(**json.loads(sys.argv[2])))
    if PartialState().is_main_process:
        print(json.dumps(asdict(measured)))  # noqa: T201  what the parent reads
    let_go()
