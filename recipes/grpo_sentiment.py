"""Push a language model towards positive reviews, or towards negative ones, with GRPO.

    accelerate launch recipes/grpo_sentiment.py --change_score 1    # positive: runs/grpo-good
    accelerate launch recipes/grpo_sentiment.py --change_score 0    # negative: runs/grpo-bad
    python recipes/compare.py runs/grpo-good runs/grpo-bad

With nothing named it runs offline on models and text of this project, in a minute or two on one
core: P(POSITIVE) goes from 0.46 to 0.88 to 0.91, seeds 0 to 2, or to 0.05, seed 0; n = 256.
The loss that is logged stays near 0; the score tells how it goes.
"""

from dataclasses import dataclass, field
from typing import Literal

from trl import ModelConfig, get_peft_config

from trl_recipes import (
    GRPOConfig,
    GRPOTrainer,
    LengthSampler,
    SentimentReward,
    load_prompts,
    load_run,
)
from trl_recipes.arguments import model_kwargs, run_recipe
from trl_recipes.embedded import language_model
from trl_recipes.evaluation.compare import compare, sentiment_measures
from trl_recipes.report import conclude, write_report
from trl_recipes.run_folder import check_run, start_run


@dataclass
class SentimentArguments:
    """What to train towards, on what."""

    change_score: Literal[1, 0] = field(default=1, metadata={"help": "1: positive, 0: negative."})
    dataset_name: str | None = field(default=None, metadata={"help": "Reviews to take prompts of."})
    text_column: str | None = field(default=None, metadata={"help": "Column that holds the text."})
    reward_model: str | None = field(default=None, metadata={"help": "Sentiment classifier."})
    label: str | None = field(default=None, metadata={"help": "Label to reward, if it has others."})
    min_prompt_length: int = field(default=2, metadata={"help": "Shortest prompt, in tokens."})
    max_prompt_length: int = field(default=8, metadata={"help": "Longest prompt, in tokens."})
    eval_prompts: int = field(default=256, metadata={"help": "Held-out prompts to judge by."})


def main(args: SentimentArguments, config: GRPOConfig, model_config: ModelConfig) -> None:
    config.save_to("runs/grpo-good" if args.change_score else "runs/grpo-bad")
    check_run(config)

    # Models
    name = model_config.model_name_or_path or str(language_model())
    trusted = {"trust_remote_code": config.trust_remote_code}
    loading = model_kwargs(model_config) | trusted
    model, tokenizer = load_run(name, **loading)

    # Prompts
    def load(seed: int, **chosen):
        lengths = LengthSampler(args.min_prompt_length, args.max_prompt_length + 1, seed=seed)
        chosen |= {"text_column": args.text_column, "length_sampler": lengths, "seed": seed}
        chosen |= {"model": model, "response_length": config.response_length}
        return load_prompts(args.dataset_name, tokenizer, **chosen)

    prompts = load(config.seed, split="train")
    held_out = load(0, split="test", max_prompts=args.eval_prompts)  # the same for every run

    # Reward
    label = args.label or ("NEGATIVE", "POSITIVE")[args.change_score]
    reward = SentimentReward(args.reward_model, label=label, **trusted)

    # Trainer
    trainer = GRPOTrainer(
        args=config,
        model=model,
        reward_funcs=reward,
        train_dataset=prompts,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_config),
    )
    trainer.accelerator.print(trainer.describe())
    if config.check:
        return trainer.accelerator.print(trainer.check())
    with start_run(config, (args, config, model_config), write_report) as run:
        trainer.train()
        trainer.save_model()

    # Results
    if trainer.accelerator.is_main_process:
        sources = {"reference": name, run.path.name: run.path}
        models = {source: load_run(path, **loading) for source, path in sources.items()}
        measures = sentiment_measures(reward, label=args.label or "POSITIVE")
        results = compare(models, held_out, measures, max_new_tokens=config.response_length)
        print(conclude(run, results))


if __name__ == "__main__":
    run_recipe(main, SentimentArguments, GRPOConfig, ModelConfig, default_config="grpo_sentiment")
