"""Train a text classifier on labeled texts, from scratch or from a base model on.

    python recipes/train_classifier.py --dataset_name reviews.jsonl --output_dir runs/classifier
    python recipes/train_classifier.py --model_name_or_path roberta-base
    python recipes/ppo_sentiment.py --reward_model runs/classifier --dataset_name reviews.jsonl

From scratch it is a small ModernBERT with its own tokenizer. It also learns from fragments of the
texts, because in PPO it scores a short prompt and a few sampled tokens. On 2000 whole film reviews
one pass takes 2 minutes on one core and is right on 0.85 of 200 held-out ones; on 10,662 sentences
three passes take 1.5 minutes and reach 0.75 (n = 1066).
"""

from dataclasses import dataclass, field
from functools import partial

from trl_recipes import load_rows, setting
from trl_recipes.arguments import run_recipe
from trl_recipes.distributed import is_main_process, print_main
from trl_recipes.report import write_report
from trl_recipes.run_folder import check_run, start_run
from trl_recipes.training.fit import dry_run
from trl_recipes.training.reward_data import check_labels_differ, read_labeled
from trl_recipes.training.reward_model import ClassifierConfig, ClassifierSizes, train_reward_model


@dataclass
class ClassifierArguments:
    """What to learn, and where to start."""

    dataset_name: str | None = setting(None, "File, folder or hub name; embedded when left out.")
    text_column: str | None = setting(None, "Column that holds the text.")
    label_column: str = setting("label", "Column that holds the label.")
    class_names: list[str] = field(
        default_factory=lambda: ["NEGATIVE", "POSITIVE"],
        metadata={"help": "Names of label 0, label 1 and so on."},
    )
    model_name_or_path: str | None = setting(None, "Base model; from scratch when left out.")


def main(args: ClassifierArguments, sizes: ClassifierSizes, config: ClassifierConfig) -> None:
    run = check_run(config)

    # Texts
    source = args.dataset_name or "the embedded reviews"
    data, heldout = (
        read_labeled(
            load_rows(args.dataset_name, split=split),
            f"{source} ({split})",
            text_column=args.text_column,
            label_column=args.label_column,
            names=args.class_names,
        )
        for split in ("train", "test")
    )
    check_labels_differ(data, source)

    # Model
    if is_main_process():
        start = args.model_name_or_path or f"a ModernBERT of {sizes.num_layers} layers from scratch"
        print(
            f"Training {start} on {data} of {source}, with {len(heldout.texts)} held out"
            " to measure."
        )
    train = partial(
        train_reward_model,
        data,
        heldout=heldout,
        model_name_or_path=args.model_name_or_path,
        sizes=sizes,
    )
    if config.check:
        return print_main(dry_run(train, config))
    begin = partial(start_run, config, (args, sizes, config), write_report)
    metrics = train(output_dir=run.model, config=config, before_training=begin)

    # Results
    if is_main_process():
        print(f"train loss {metrics['train_loss']:.3f} nats per row, mean over the run")
        print(
            f"held-out accuracy {metrics['heldout_accuracy']:.3f} (n = {len(heldout.texts)} texts)"
        )
        write_report(run, {"held-out accuracy": metrics["heldout_accuracy"]})
        print(f"The model is in {run.model}; recipes take it as --reward_model {run}")


if __name__ == "__main__":
    run_recipe(main, ClassifierArguments, ClassifierSizes, ClassifierConfig)
