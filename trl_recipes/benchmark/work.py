"""What one benchmarked step does, and what is measured of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from trl_recipes.errors import RecipeError

Contestant = Literal["ours", "stock"]
Size = Literal["tiny", "mini", "small", "half-billion"]

CONTEXT = 1024  # positions of GPT-2
PHASES = ("generation", "scoring", "forward", "update")


@dataclass(frozen=True)
class Work:
    """One PPO step: the same for both contestants, and the whole of what they are told.

    Attributes:
        size: name of the model's size.
        batch: responses a step, over all processes.
        query: tokens of each query.
        response: tokens of each response; nothing ends one early.
        epochs: passes over the batch, one optimizer step each.
        precision: fp32, or bf16 autocast over float32 weights.
        peft: LoRA on the attention projections instead of the full model.
        device: cpu or cuda.
        steps: steps that are timed, after one that warms up.
        shortest: spreads the lengths of a batch evenly from here to `response`; None: all equal.
        seed: of weights, prompts and sampling.
        processes: that share the batch, under Accelerate.
        threads: of each process on a CPU; None leaves it to torch.
    """

    size: Size
    batch: int
    query: int
    response: int
    epochs: int = 4
    precision: Literal["fp32", "bf16"] = "fp32"
    peft: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    steps: int = 2
    shortest: int | None = None
    seed: int = 0
    processes: int = 1
    threads: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens of one row that go through the trunk: the last one's logits nobody needs."""
        return self.query + self.response - 1

    def lengths(self) -> list[int]:
        """Give the length of each response of a batch, in tokens."""
        first = self.response if self.shortest is None else self.shortest
        apart = (self.response - first) / max(1, self.batch - 1)
        return [round(first + row * apart) for row in range(self.batch)]

    def __str__(self) -> str:
        adapter = ", LoRA on attention" if self.peft else ""
        processes = f", {self.processes} processes" if self.processes > 1 else ""
        return (
            f"{self.size}, batch {self.batch}, query {self.query}, response {self.response}, "
            f"{self.epochs} epochs, {self.precision}{adapter}, {self.device}{processes}"
        )


def find_device(name: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Choose the device.

    Args:
        name: auto takes a GPU where there is one.

    Raises:
        RecipeError: a GPU was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--device cuda: torch finds no GPU here. Use --device cpu.")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def check_works(works: Sequence[Work], repeats: int, alone: bool = False) -> None:
    """Refuse what cannot be run, before anything is.

    Args:
        works: the steps to run.
        repeats: processes of each contestant.
        alone: whether something else than a number of processes is to be compared.

    Raises:
        RecipeError: names the flag.
    """
    names = ("batch", "query", "response", "epochs", "steps", "processes")
    counts = {"repeats": repeats} | {name: getattr(works[0], name) for name in names}
    for name, value in counts.items():
        if value < 1:
            raise RecipeError(f"--{name} must be at least 1, got {value}.")
    longest = max(works, key=lambda work: work.query + work.response)
    if longest.query + longest.response > CONTEXT:
        raise RecipeError(
            f"--query and --response: {longest.query} and {longest.response} tokens are more than "
            f"the {CONTEXT} positions of a model of these sizes. Make one smaller."
        )
    for work in works:
        if work.processes > 1 and alone:
            raise RecipeError(
                "--processes compares one process with several of ours, and neither --growth nor "
                "--only goes with it. Leave one of them out."
            )
        if work.batch % work.processes:
            raise RecipeError(
                f"--batch {work.batch} cannot be shared evenly by --processes {work.processes}. "
                "Give a multiple of it."
            )
        there = torch.cuda.device_count() if work.device == "cuda" else work.processes
        if work.processes > there:
            raise RecipeError(
                f"--processes {work.processes} needs as many GPUs, and torch finds {there}. Give "
                f"--device cpu, or fewer."
            )
