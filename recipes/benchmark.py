"""Measure PPO's seconds and memory a step beside TRL's own trainer and beside what is possible.

    python recipes/benchmark.py                           # GPT-2 small: about 10 minutes, 2 cores
    python recipes/benchmark.py --size tiny --repeats 1   # under a minute
    python recipes/benchmark.py --size mini --growth      # twice the batch, uneven lengths ...
    python recipes/benchmark.py --processes 2             # the same batch by one and by two
    python recipes/benchmark.py --size half-billion --batch 64 --precision bf16 --device cuda

The same work for both: a model with random weights, prompts of random tokens, every response at
full length, the whole batch in one forward pass, a reward at next to no cost. Each runs in a
process of its own, in turn, and warms up for a step. The bound is worked out from a matrix product
and a copy measured in the same run; trl_recipes/benchmark/bound.py says how.
"""

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal

from trl_recipes import setting
from trl_recipes.arguments import run_recipe
from trl_recipes.benchmark.bound import fastest, measure_rates, model_shape, needs
from trl_recipes.benchmark.growth import Growth, growth_works
from trl_recipes.benchmark.processes import Processes, process_works
from trl_recipes.benchmark.report import Report
from trl_recipes.benchmark.runner import run_in_turn
from trl_recipes.benchmark.work import Size, Work, check_works, find_device


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
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto takes a GPU where there is one.")
    repeats: int = setting(3, "Processes of each contestant, in turn.")
    steps: int = setting(2, "Timed steps of each, after one to warm up.")
    only: Literal["ours", "stock", "both"] = setting(
        "both", "Contestants: ours, stock (TRL's own trainer) or both."
    )
    growth: bool = setting(
        False, "Ours alone: twice the batch, twice the response, uneven lengths."
    )
    processes: int = setting(1, "Ours alone: the same batch by one process and by so many.")
    timeout: float = setting(1800, "Seconds a process may take.")
    seed: int = setting(0, "Seed of weights, prompts and sampling.")
    output_dir: str = setting("runs/benchmark", "Folder for table, JSON and chart.")


def main(args: BenchmarkArguments) -> None:
    # Models
    chosen = {s.name: getattr(args, s.name) for s in fields(Work) if hasattr(args, s.name)}
    work = Work(**chosen | {"device": find_device(args.device)})
    works = growth_works(work) if args.growth else {"all equal": work}
    check_works(list(works.values()), args.repeats, alone=args.growth or args.only != "both")

    # Trainer
    def run(contestants: dict) -> dict:
        return run_in_turn(contestants, args.repeats, args.timeout, say=partial(print, flush=True))

    if args.growth:
        report = Growth(work, run({name: ("ours", larger) for name, larger in works.items()}))
    elif args.processes > 1:
        works = process_works(work)
        report = Processes(work, run({name: ("ours", way) for name, way in works.items()}))
    else:
        contestants = ["ours", "stock"] if args.only == "both" else [args.only]
        shape = model_shape(work)
        before = measure_rates(work, shape)
        results = run({name: (name, work) for name in contestants})
        rates = fastest(before, measure_rates(work, shape))
        report = Report(work, results, needs(work, shape), rates)

    # Results
    files = report.save(Path(args.output_dir))
    print("", report.table(), report.conditions(), *files, sep="\n")


if __name__ == "__main__":
    run_recipe(main, BenchmarkArguments, trains=False)
