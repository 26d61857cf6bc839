"""PPO, GRPO and RLOO on one task, with the same number of generated tokens each.

    python recipes/compare_algorithms.py                            # three seeds each
    python recipes/compare_algorithms.py --seeds 0 --tokens 40000   # a first look

The same for all: model, prompts, reward, tokens, response length, temperature, how it is measured.
What an algorithm has of its own stands in recipes/configs/compare_algorithms.yaml. Every run has a
process and a folder: the same command goes on with what is unfinished, and runs nothing twice.
"""

from dataclasses import dataclass, field
from functools import partial

from trl_recipes import RecipeError, setting
from trl_recipes.arguments import run_recipe
from trl_recipes.evaluation.algorithms.picture import plot_algorithms
from trl_recipes.evaluation.algorithms.results import load_results
from trl_recipes.evaluation.algorithms.runner import default_jobs, is_finished, run_all
from trl_recipes.evaluation.algorithms.training import prepare
from trl_recipes.evaluation.algorithms.work import ALGORITHMS, Work, make_runs
from trl_recipes.run_folder import check_folder

OWN = "Settings of its own, as in its YAML file; on the command line as JSON."


@dataclass
class AlgorithmsArguments:
    """What to compare, for how long, on what."""

    algorithms: list[str] = field(
        default_factory=lambda: list(ALGORITHMS), metadata={"help": "Which: ppo, grpo, rloo."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds, one run of each algorithm."}
    )
    tokens: int = setting(100_000, "Tokens that each run generates.")
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
    ppo: dict | str | None = setting(None, OWN)
    grpo: dict | str | None = setting(None, OWN)
    rloo: dict | str | None = setting(None, OWN)
    jobs: int = setting(0, "Runs at a time; 0: one a core, or a GPU.")
    check: bool = setting(False, "Try a few steps of each; write nothing.")
    output_dir: str = setting("runs/algorithms", "Folder of all runs.")
    overwrite_output_dir: bool = setting(False, "Make all runs again.")


def main(args: AlgorithmsArguments) -> None:
    folder, jobs = check_folder(args.output_dir), default_jobs(args.jobs)
    work = Work(
        tokens=args.tokens,
        batch=args.batch,
        response=args.response_length,
        shortest=args.min_prompt_length,
        longest=args.max_prompt_length,
        evaluations=args.evaluations,
        eval_prompts=args.eval_prompts,
        model=args.model_name_or_path,
        dataset=args.dataset_name,
        reward_model=args.reward_model,
        label=args.label,
    )
    own = {name: getattr(args, name) for name in ALGORITHMS}
    runs = make_runs(work, args.algorithms, args.seeds, own)

    # Trainer
    overwrite = args.overwrite_output_dir
    todo = [run for run in runs if not is_finished(run, folder / run.folder_name, overwrite)]
    for run in {run.algorithm: run for run in todo}.values():  # mistakes show at once
        trainer = prepare(run, folder / run.folder_name).trainer
        print(trainer.describe(), trainer.check() if args.check else "", sep="\n")
    print(work.ending() if todo else "Every run is finished.")
    if args.check:
        return
    failures = run_all(todo, folder, jobs, partial(print, flush=True), overwrite)

    # Results
    results = load_results(runs, folder)
    if results is not None:
        files = [*results.save(folder), folder / "algorithms.png"]
        plot_algorithms(results, files[-1])
        tables = (results.finding(), results.table(), results.per_seed(), results.conditions())
        print("", *tables, "\n".join(map(str, files)), sep="\n\n")
    if failures:
        raise RecipeError("\n".join(f"{f.run} failed. {f.words}" for f in failures))


if __name__ == "__main__":
    run_recipe(main, AlgorithmsArguments, default_config="compare_algorithms", trains=False)
