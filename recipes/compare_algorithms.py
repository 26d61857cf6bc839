"""PPO, GRPO and RLOO on one task, with the same number of generated tokens each.

    python recipes/compare_algorithms.py                            # three seeds each
    python recipes/compare_algorithms.py --seeds 0 --tokens 40000   # a first look

The same for all: model, prompts, reward, tokens, response length, temperature, how it is measured.
What an algorithm has of its own stands in recipes/configs/compare_algorithms.yaml. Every run has a
process and a folder: the same command goes on with what is unfinished, and runs nothing twice.
"""

from dataclasses import dataclass, field
from functools import partial

from trl_recipes import RecipeError, run_recipe, setting
from trl_recipes.evaluation.sweep import (
    ALGORITHMS,
    SweepRun,
    Task,
    load_results,
    make_runs,
    plot_results,
    run_all,
)
from trl_recipes.run_folder import check_folder, write_whole

OWN = "Settings of its own, as in its YAML file; on the command line as JSON."


@dataclass
class SweepArguments:
    """Which algorithms to compare, and where."""

    algorithms: list[str] = field(
        default_factory=lambda: list(ALGORITHMS), metadata={"help": "Which: ppo, grpo, rloo."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds, one run of each algorithm."}
    )
    ppo: dict | str | None = setting(None, OWN)
    grpo: dict | str | None = setting(None, OWN)
    rloo: dict | str | None = setting(None, OWN)
    jobs: int = setting(0, "Runs at a time; 0: one a core, or a GPU.")
    check: bool = setting(False, "Try a few steps of each; write nothing.")
    output_dir: str = setting("runs/algorithms", "Folder of all runs.")
    overwrite_output_dir: bool = setting(False, "Make all runs again.")

    def __post_init__(self):
        if self.jobs < 0:
            raise RecipeError(f"--jobs is {self.jobs}. Use 1 or more, or 0 for one a core or GPU.")


def main(args: SweepArguments, task: Task) -> None:
    folder = check_folder(args.output_dir)
    own = {name: getattr(args, name) for name in ALGORITHMS}
    runs = make_runs(task, args.algorithms, args.seeds, own, folder)

    # Trainer
    overwrite = args.overwrite_output_dir
    todo = [run for run in runs if not run.stage(overwrite).done]
    for run in {run.algorithm: run for run in todo}.values():  # mistakes show at once
        trainer = SweepRun(run).trainer
        print(trainer.describe(), trainer.check() if args.check else "", sep="\n")
    if args.check:
        return
    failures = run_all(todo, args.jobs, partial(print, flush=True), overwrite)

    # Results
    results = load_results(runs)
    if results is not None:
        table, picture = folder / "table.md", folder / "algorithms.png"
        told = f"{results.table()}\n\n{results.conditions()}"
        write_whole(table, told + "\n")
        plot_results(results, picture)
        print("", told, f"{table}\n{picture}", sep="\n\n")
    if failures:
        raise RecipeError("\n".join(failures))


if __name__ == "__main__":
    run_recipe(main, SweepArguments, Task, default_config="compare_algorithms", trains=False)
