"""Draw score, KL and what else explains a run, or lay several over each other; make their pages.

Needs nothing but the run folder, so it works while the run is still going and long after.

    python recipes/plot.py runs/ppo-good    # writes plots/training.png and report.html in it
    python recipes/plot.py runs/ppo-good runs/ppo-bad   # writes runs/runs.png, and both pages
    python recipes/plot.py runs/* --output all.png
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from trl_recipes import load_stats, plot_stats, run_recipe, setting, write_report
from trl_recipes.report.page import kl_target
from trl_recipes.report.plots import plot_runs
from trl_recipes.run_folder import RunFolder
from trl_recipes.stats import run_names


@dataclass
class PlotArguments:
    """What to draw."""

    runs: list[str] = field(
        metadata={"help": "Run folders. They may also stand first, without the flag."}
    )
    output: str | None = setting(
        None,
        "PNG file to write. Left out, one run goes to its own plots folder, several to runs.png "
        "beside the first, and each run has its report.html made again.",
    )


def main(args: PlotArguments) -> None:
    # Runs
    names = run_names(args.runs)
    runs = {name: load_stats(run) for name, run in zip(names, args.runs, strict=True)}
    targets = {kl_target(RunFolder(run)) for run in args.runs}
    target = targets.pop() if len(targets) == 1 else None

    # Results
    if len(runs) == 1:
        path = Path(args.output or RunFolder(args.runs[0]).plots / "training.png")
        plot_stats(runs[names[0]], path, title=names[0], kl_target=target)
    else:
        path = Path(args.output or Path(args.runs[0]).parent / "runs.png")
        plot_runs(runs, path, kl_target=target)
    folders = [run for run in args.runs if Path(run).is_dir() and args.output is None]
    print(path, *map(write_report, folders), sep="\n")


if __name__ == "__main__":
    argv = ["--runs", *sys.argv[1:]] if sys.argv[1:] and not sys.argv[1].startswith("-") else None
    run_recipe(main, PlotArguments, argv=argv, trains=False)
