"""Compare runs with the model they started from: same prompts, lengths and seed for all.

Prints scores, an independent judge, KL, perplexity and diversity, and the answers side by side;
writes them as a page (compare.html), pictures and numbers. Model, data set and classifier are those
of the first run.

    python recipes/compare.py runs/ppo-good runs/ppo-bad
    python recipes/compare.py runs/ppo-good --max_prompts 64 --seed 1
"""

import sys
from dataclasses import dataclass, field

from accelerate import PartialState

from trl_recipes import (
    PromptArguments,
    RecipeError,
    compare,
    language_model,
    load_run,
    run_recipe,
    setting,
    trained_measures,
    write_comparison,
)
from trl_recipes.evaluation import judges
from trl_recipes.run_folder import check_folder, read_config, read_number
from trl_recipes.stats import run_names


@dataclass
class CompareArguments:
    """What to compare, on what."""

    runs: list[str] = field(
        metadata={"help": "Run folders. They may also stand first, without the flag."}
    )
    output_dir: str = setting("runs/comparison", "Folder for pictures and numbers.")
    reference: str | None = setting(
        None, "Model to compare with, if not the one they started from."
    )
    max_prompts: int = setting(256, "Held-out prompts to answer.")
    show: int = setting(5, "Prompts whose answers are printed.")
    seed: int = setting(0, "Seed of prompts, lengths and sampling.")
    trust_remote_code: bool = setting(False, "Run code that a model from the hub brings along.")


def main(args: CompareArguments) -> None:
    output = check_folder(args.output_dir)

    # Models
    config = read_config(args.runs[0])
    starts = {judges.start_of(run, read_config(run)) for run in args.runs}
    if len(starts) > 1 and args.reference is None:
        found = ", ".join(str(start or "the embedded model") for start in starts)
        raise RecipeError(f"The runs started from several models: {found}. Give --reference.")
    sources = {"reference": args.reference or starts.pop() or language_model()}
    sources |= dict(zip(run_names(args.runs, taken=["reference"]), args.runs, strict=True))
    trusted = {"trust_remote_code": args.trust_remote_code}
    models = {}
    for name, path in sources.items():
        model, tokenizer = load_run(path, source=f"the model `{name}`", **trusted)
        models[name] = model.to(PartialState().device), tokenizer

    # Prompts
    length = read_number(args.runs[0], "response_length", 16)
    if "source_column" in config:  # a run of ppo_seq2seq.py
        prompts = judges.held_out_sources(config, *models["reference"], args.max_prompts)
        measures = judges.measures_of_run(args.runs[0], config)
    else:
        asked = PromptArguments(
            dataset_name=config.get("dataset_name"),
            text_column=config.get("text_column"),
            min_prompt_length=read_number(args.runs[0], "min_prompt_length", 2),
            max_prompt_length=read_number(args.runs[0], "max_prompt_length", 8),
            eval_prompts=args.max_prompts,
        )
        model, tokenizer = models["reference"]
        prompts = asked.load("test", tokenizer, args.seed, model=model, response_length=length)
        measures = trained_measures(judges.rewards_of_run(config, **trusted))

    # Results
    comparison = compare(models, prompts, measures, max_new_tokens=length, seed=args.seed)
    places = write_comparison(comparison, output, runs=args.runs)
    print(comparison.side_by_side(args.show), comparison.table(), places, sep="\n\n")


if __name__ == "__main__":
    argv = ["--runs", *sys.argv[1:]] if sys.argv[1:] and not sys.argv[1].startswith("-") else None
    run_recipe(main, CompareArguments, argv=argv, trains=False)
