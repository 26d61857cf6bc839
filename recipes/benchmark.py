"""Measure PPO's seconds and memory per step beside TRL's own trainer and beside what is possible.

    python recipes/benchmark.py                           # GPT-2 small: about 10 minutes, 2 cores
    python recipes/benchmark.py --size tiny --repeats 1   # under a minute
    python recipes/benchmark.py --only ours               # where TRL (1.13 and newer) has no PPO
    python recipes/benchmark.py --only ours --processes 2 # the same batch by two processes
    python recipes/benchmark.py --only ours --loop classic # generate and step by hand too
    python recipes/benchmark.py --only ours --shape verl  # Qwen2.5-0.5B's shape, on a GPU
    python recipes/benchmark.py --only ours --profile     # and what took the time of a step

The same work for both: a model with random weights, prompts of random tokens, every response at
full length, the whole batch in one forward pass, a reward at next to no cost. Each runs in a
process of its own, in turn, and warms up for a step. The bound is worked out from a matrix product
and a copy measured in the same run; docs/benchmark.md says more.
"""

from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from trl_recipes import setting
from trl_recipes.arguments import run_recipe
from trl_recipes.benchmark.bound import measure_rates, model_shape, needs
from trl_recipes.benchmark.models import SHAPES, Size, Workload, check_workload
from trl_recipes.benchmark.report import Report
from trl_recipes.benchmark.worker import run_in_turn, run_worker


@dataclass
class BenchmarkArguments:
    """What to measure, how often, on what."""

    size: Size = setting(
        "small", "Model: small is GPT-2 small, half-billion has Qwen2-0.5B's shape."
    )
    batch: int = setting(16, "Responses a step.")
    query: int = setting(8, "Tokens of each query.")
    response: int = setting(16, "Tokens of each response.")
    epochs: int = setting(4, "Passes over each batch.")
    precision: Literal["fp32", "bf16"] = setting(
        "fp32", "float32, or bfloat16 autocast over float32 weights."
    )
    peft: bool = setting(False, "LoRA on the attention projections, for both.")
    repeats: int = setting(3, "Processes of each trainer, in turn.")
    steps: int = setting(2, "Timed steps of each, after one to warm up.")
    only: Literal["ours", "trl", "both"] = setting(
        "both", "Trainers: ours, trl (TRL's own, which TRL below 1.13 has) or both."
    )
    loop: Literal["train", "classic"] = setting(
        "train", "classic: a loop of generate and step by hand too, in front of ours."
    )
    shortest: int | None = setting(
        None, "Ours alone: spread the lengths of responses evenly from here to --response."
    )
    processes: int = setting(1, "Ours alone: processes that share the batch.")
    shape: Literal["verl"] | None = setting(
        None, "Ours alone: a published workload, in the place of the flags above."
    )
    profile: bool = setting(False, "Ours alone: also write the dearest kernels of one step.")
    seed: int = setting(0, "Seed of weights, prompts and sampling.")
    output_dir: str = setting("runs/benchmark", "Folder for table, JSON and chart.")


def main(args: BenchmarkArguments) -> None:
    # Models
    chosen = {f.name: getattr(args, f.name) for f in fields(Workload) if hasattr(args, f.name)}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    work = Workload(**chosen | SHAPES.get(args.shape, {}) | {"device": device})
    check_workload(work, args.only)
    shape = model_shape(work)

    # Trainer
    names = ["ours", "trl"] if args.only == "both" else [args.only]
    names = ["classic", *names] if args.loop == "classic" else names
    say = partial(print, flush=True)
    results = run_in_turn(names, replace(work, profile=False), args.repeats, say)

    # Results
    report = Report(work, results, needs(work, shape), measure_rates(work, shape))
    files = report.save(Path(args.output_dir))
    print("", report.table(), report.conditions(), *files, sep="\n")
    if args.profile:
        profiled = run_worker("ours", replace(work, steps=1)).profile
        Path(args.output_dir, "profile.md").write_text(profiled + "\n")
        print("", profiled, sep="\n")


if __name__ == "__main__":
    run_recipe(main, BenchmarkArguments, trains=False)
