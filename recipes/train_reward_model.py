"""Train a reward model: from labeled texts, from texts with numbers, or from preference pairs.

python recipes/train_reward_model.py --dataset_name reviews.jsonl          # text, label
python recipes/train_reward_model.py --dataset_name reviews.jsonl --kind pairs
python recipes/train_reward_model.py --dataset_name answers.jsonl   # prompt, chosen, rejected
python recipes/ppo_sentiment.py --reward_funcs runs/reward

"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from trl_recipes import load_rows, load_tokenizer, setting
from trl_recipes.arguments import run_recipe
from trl_recipes.distributed import is_main_process, print_main
from trl_recipes.evaluation.reward_model import write_figures
from trl_recipes.report import write_report
from trl_recipes.run_folder import check_run, start_run
from trl_recipes.training.fit import dry_run
from trl_recipes.training.reward_data import read_reward_data
from trl_recipes.training.reward_model import (
    ClassifierSizes,
    RewardModelConfig,
    base_model,
    train_reward_model,
)


@dataclass
class RewardModelArguments:
    """What to learn, and where to start."""

    dataset_name: str | None = setting(None, "File, folder or hub name; embedded when left out.")
    kind: Literal["classes", "number", "pairs"] | None = setting(
        None, "What to learn; else found. pairs may be made of labeled texts."
    )
    text_column: str | None = setting(None, "Column that holds the text.")
    label_column: str = setting("label", "Column that holds the label.")
    class_names: list[str] | None = setting(
        None, "Names of label 0, 1 and so on, worst first; else found."
    )
    pairs_per_text: int = setting(1, "Pairs that each labeled text begins, with --kind pairs.")
    model_name_or_path: str | None = setting(
        None, "Base model, or `embedded`; from scratch when left out."
    )


def main(args: RewardModelArguments, sizes: ClassifierSizes, config: RewardModelConfig) -> None:
    run = check_run(config)

    # Models
    source = args.dataset_name or "the embedded reviews"
    base = base_model(args.model_name_or_path)
    tokenizer = load_tokenizer(base) if base else None

    # Texts
    data, heldout = read_reward_data(
        *(load_rows(args.dataset_name, split=split) for split in ("train", "test")),
        source,
        kind=args.kind,
        text_column=args.text_column,
        label_column=args.label_column,
        names=args.class_names,
        pairs_per_text=args.pairs_per_text,
        tokenizer=tokenizer,
        seed=config.seed,
    )

    # Trainer
    start = args.model_name_or_path or f"a ModernBERT of {sizes.num_layers} layers from scratch"
    if is_main_process():
        print(f"Training {start} on {data} of {source}.")
    train = partial(train_reward_model, data, model_name_or_path=base, sizes=sizes)
    if config.check:
        return print_main(dry_run(train, config))
    begin = partial(start_run, config, (args, sizes, config), write_report)
    trained = train(output_dir=run.model, config=config, before_training=begin)

    # Results
    if is_main_process():
        figures = write_figures(run, heldout, trained, start, source)
        write_report(run, figures.values)
        print(f"train loss {trained['train_loss']:.3f}, mean over the run")
        print(figures.sentences())
        print(f"The model is in {run.model}; recipes take it as --reward_funcs {run}")


if __name__ == "__main__":
    run_recipe(main, RewardModelArguments, ClassifierSizes, RewardModelConfig)
