"""Push a language model towards positive reviews, or towards negative ones, with PPO.

    accelerate launch recipes/ppo_sentiment.py --change_score 1     # positive: runs/ppo-good
    accelerate launch recipes/ppo_sentiment.py --change_score 0     # negative: runs/ppo-bad
    python recipes/compare.py runs/ppo-good runs/ppo-bad

With nothing named it runs offline on models and text that this project makes. By name, with the
hub: --config recipes/configs/ppo_sentiment_imdb.yaml. The algorithm: Ziegler et al. 2019
(arXiv:1909.08593).
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoTokenizer
from trl import ModelConfig, get_peft_config

from trl_recipes import (
    AutoModelForCausalLMWithValueHead,
    LengthSampler,
    PPOConfig,
    PPOTrainer,
    RecipeError,
    SentimentReward,
    collator,
    load_prompts,
    load_run,
)
from trl_recipes.arguments import run_recipe
from trl_recipes.compare import compare, sentiment_measures
from trl_recipes.embedded import language_model
from trl_recipes.plots import plot_stats
from trl_recipes.runs import start_run, write_config


@dataclass
class SentimentArguments:
    """What to train towards, on what."""

    change_score: int = field(default=1, metadata={"help": "1: positive reviews, 0: negative."})
    dataset_name: str | None = field(default=None, metadata={"help": "Reviews to take prompts of."})
    text_column: str | None = field(default=None, metadata={"help": "Column that holds the text."})
    reward_model: str | None = field(default=None, metadata={"help": "Sentiment classifier."})
    labels: list[str] = field(
        default_factory=lambda: ["NEGATIVE", "POSITIVE"],
        metadata={"help": "The classifier's labels that change_score 0 and 1 reward."},
    )
    min_prompt_length: int = field(default=2, metadata={"help": "Shortest prompt, in tokens."})
    max_prompt_length: int = field(default=8, metadata={"help": "Longest prompt, in tokens."})
    eval_prompts: int = field(default=256, metadata={"help": "Held-out prompts to judge by."})

    def __post_init__(self):
        if self.change_score not in (0, 1):
            raise RecipeError(f"--change_score is {self.change_score}. Give 1 (positive) or 0.")


def main(args: SentimentArguments, config: PPOConfig, model_config: ModelConfig) -> None:
    config.save_to("runs/ppo-good" if args.change_score else "runs/ppo-bad")
    run = start_run(config.output_dir, overwrite=config.overwrite_output_dir)

    # Models
    name = model_config.model_name_or_path or str(language_model())
    model = AutoModelForCausalLMWithValueHead.from_pretrained(name)
    tokenizer = AutoTokenizer.from_pretrained(name)

    # Prompts
    lengths = LengthSampler(args.min_prompt_length, args.max_prompt_length + 1, seed=config.seed)
    source = {"text_column": args.text_column, "length_sampler": lengths, "seed": config.seed}
    prompts = load_prompts(args.dataset_name, tokenizer, split="train", **source)
    held_out = load_prompts(
        args.dataset_name, tokenizer, split="test", max_prompts=args.eval_prompts, **source
    )

    # Reward
    reward = SentimentReward(args.reward_model, label=args.labels[args.change_score])

    # Trainer
    trainer = PPOTrainer(
        args=config,
        model=model,
        reward_funcs=reward,
        train_dataset=prompts,
        processing_class=tokenizer,
        data_collator=collator,
        peft_config=get_peft_config(model_config),
    )
    trainer.accelerator.print(trainer.describe())
    write_config(run, args, config, model_config)
    trainer.train()

    # Results
    trainer.save_model()
    if not trainer.accelerator.is_main_process:
        return
    plot_stats(trainer.all_stats, run.plots / "training.png", title=Path(config.output_dir).name)
    models = {"reference": load_run(name), "trained": load_run(config.output_dir)}
    comparison = compare(
        models, held_out, sentiment_measures(reward), max_new_tokens=config.response_length
    )
    comparison.save(run.plots.parent / "comparison.json")
    print(comparison.side_by_side(3), comparison.table(), sep="\n\n")
    print(f"\nModel:    {run.model}\nPictures: {run.plots}\nStats:    {run.all_stats}")


if __name__ == "__main__":
    run_recipe(main, SentimentArguments, PPOConfig, ModelConfig, default_config="ppo_sentiment")
