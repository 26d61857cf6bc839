"""Make texts fluent, close in meaning to a reference text, and short: PPO on rewards of your own.

    accelerate launch recipes/ppo_custom_reward.py   # --version 1: fluent alone

Offline, seeds 0 to 2, n = 256: perplexity 6.0 to 3.7, 3.8, 4.1; similarity 0.24 to 0.41, 0.40, 0.37
(cosine); too long 33 % to 3, 3, 4 %; distinct-2 0.49 to 0.29, 0.29, 0.31. A minute on two cores.
"""

from dataclasses import dataclass, field
from typing import Literal

from trl import ModelConfig, get_peft_config

from trl_recipes import (
    AutoModelForCausalLMWithValueHead,
    LengthSampler,
    PPOConfig,
    PPOTrainer,
    load_prompts,
    load_run,
    load_tokenizer,
    rewards,
)
from trl_recipes.arguments import model_kwargs, run_recipe
from trl_recipes.compare import compare
from trl_recipes.data import one_prompt
from trl_recipes.embedded import language_model
from trl_recipes.plots import plot_stats
from trl_recipes.runs import check_run, start_run, write_config

WEIGHTS = {1: [3.0, 0.0, 0.0, -0.5], 2: [3.0, 1.0, -1.5, -0.5]}  # in the order of `reward`
REFERENCE = "I went in hoping for nothing and came out amazed."


@dataclass
class RewardArguments:
    """What to reward, on what."""

    version: Literal[1, 2] = field(default=2, metadata={"help": "1: fluent. 2: also near, short."})
    reference_text: str = field(default=REFERENCE, metadata={"help": "Goal, or its .txt file."})
    max_length: int = field(default=20, metadata={"help": "Longer responses cost 1, in tokens."})
    prompt: str = field(default="The story", metadata={"help": "Continued before and after."})
    dataset_name: str | None = field(default=None, metadata={"help": "Texts to take prompts of."})
    max_prompt_length: int = field(default=4, metadata={"help": "Longest prompt, in tokens."})


def main(args: RewardArguments, config: PPOConfig, model_config: ModelConfig) -> None:
    config.save_to(f"runs/ppo-custom-{args.version}")
    how = {"overwrite": config.overwrite_output_dir, "resume": bool(config.resume_from_checkpoint)}
    run = check_run(config.output_dir, **how)

    # Models
    name = model_config.model_name_or_path or str(language_model())
    loading = model_kwargs(model_config)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(name, **loading)
    tokenizer = load_tokenizer(name)

    # Prompts
    def load(seed: int, **chosen):
        lengths = LengthSampler(2, args.max_prompt_length + 1, seed=seed)
        return load_prompts(args.dataset_name, tokenizer, length_sampler=lengths, **chosen)

    prompts = load(config.seed, split="train")
    held_out = load(0, split="test", max_prompts=256)  # the same for every run
    shown = one_prompt(args.prompt, tokenizer, copies=3)

    # Reward
    fluent = rewards.PerplexityReward(name, log=True)  # by the model as it is before training
    near = rewards.SimilarityReward(args.reference_text, fluent.model, fluent.tokenizer)
    reward = [fluent, near, rewards.LengthPenalty(args.max_length), rewards.RepetitionPenalty()]

    # Trainer
    trainer = PPOTrainer(
        args=config,
        model=model,
        reward_funcs=reward,
        reward_weights=WEIGHTS[args.version],
        train_dataset=prompts,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_config),
    )
    trainer.accelerator.print(trainer.describe())
    start_run(config.output_dir, **how)
    write_config(run, args, config, model_config)
    trainer.train()
    trainer.save_model()

    # Results
    if trainer.accelerator.is_main_process:
        plot_stats(trainer.all_stats, run.plots / "training.png", title=run.path.name)
        models = {"reference": load_run(name, **loading), run.path.name: load_run(run.path)}
        measures, limit = {r.__name__: r for r in reward}, config.response_length
        print(compare(models, shown, measures, max_new_tokens=limit).with_scores())
        print(f"\n{compare(models, held_out, measures, max_new_tokens=limit).table()}")
        print(f"\nModel:    {run.model}\nPictures: {run.plots}\nStats:    {run.all_stats}")


if __name__ == "__main__":
    run_recipe(main, RewardArguments, PPOConfig, ModelConfig, default_config="ppo_custom_reward")
