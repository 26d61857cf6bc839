"""Push a language model towards positive reviews, or towards negative ones, with RLOO.

    accelerate launch recipes/rloo_sentiment.py --change_score 1    # positive: runs/rloo-good
    accelerate launch recipes/rloo_sentiment.py --change_score 0    # negative: runs/rloo-bad
    python recipes/compare.py runs/rloo-good runs/rloo-bad

With nothing named it runs offline on models and text of this project, in a minute or two on one
core: P(POSITIVE) goes from 0.49 to 0.93 (seed 0, n = 256).
The loss that is logged stays near 0; the score tells how it goes.
"""

from dataclasses import dataclass
from typing import Literal

from trl import ModelConfig, get_peft_config

from trl_recipes import (
    PromptArguments,
    RLOOConfig,
    RLOOTrainer,
    SentimentReward,
    check_run,
    compare,
    language_model,
    load_run,
    model_kwargs,
    run_recipe,
    setting,
    start_run,
    trained_measures,
    write_report,
    write_results,
)


@dataclass
class SentimentArguments(PromptArguments):
    """What to train towards."""

    change_score: Literal[1, 0] = setting(1, "1: positive, 0: negative.")
    reward_model: str | None = setting(None, "Sentiment classifier.")
    label: str | None = setting(None, "Label to reward, if it has others.")


def main(args: SentimentArguments, config: RLOOConfig, model_config: ModelConfig) -> None:
    config.save_to("runs/rloo-good" if args.change_score else "runs/rloo-bad")
    check_run(config)

    # Models
    name = model_config.model_name_or_path or str(language_model())
    trusted = {"trust_remote_code": config.trust_remote_code}
    loading = model_kwargs(model_config) | trusted
    model, tokenizer = load_run(name, **loading)

    # Prompts
    fit = {"model": model, "response_length": config.response_length}
    prompts = args.load("train", tokenizer, config.seed, **fit)
    held_out = args.load("test", tokenizer, seed=0, **fit)  # the same for every run

    # Reward
    label = args.label or ("NEGATIVE", "POSITIVE")[args.change_score]
    reward = SentimentReward(args.reward_model, label=label, **trusted)

    # Trainer
    trainer = RLOOTrainer(
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
        models = {"reference": load_run(name, **loading), run.path.name: load_run(run, **loading)}
        measures = trained_measures(trainer.rewards, label=args.label or "POSITIVE")
        results = compare(models, held_out, measures, max_new_tokens=config.response_length)
        print(write_results(run, results))


if __name__ == "__main__":
    run_recipe(main, SentimentArguments, RLOOConfig, ModelConfig, default_config="rloo_sentiment")
