"""The whole chain on one data set: a reward model from some reviews, PPO against it on the others.

accelerate launch recipes/rlhf.py                            # offline; again: skips what is done
python recipes/rlhf.py --task generate --prompt "The film"   # before and after, scored
"""

from dataclasses import dataclass
from typing import Literal

from trl import ModelConfig, get_peft_config

from trl_recipes import PPOConfig, PPOTrainer, PromptArguments, load_run, load_tokenizer, setting
from trl_recipes.arguments import run_recipe
from trl_recipes.data.prompts import one_prompt
from trl_recipes.distributed import is_main_process, print_main
from trl_recipes.embedded import language_model
from trl_recipes.evaluation.compare import compare
from trl_recipes.evaluation.judges import mood_judges
from trl_recipes.evaluation.reward_model import write_figures
from trl_recipes.models.loading import model_kwargs
from trl_recipes.report import write_report, write_results
from trl_recipes.run_folder import RunFolder
from trl_recipes.training.reward_model import LearnedReward, RewardArguments
from trl_recipes.training.stage import Stage, plan_stages, settings_of


@dataclass
class RlhfArguments(PromptArguments):
    """What to do, towards what, and who judges."""

    task: Literal["train", "generate"] = setting("train", "What to do.")
    prompt: str = setting("The film", "Continued by --task generate.")
    label: str = setting("POSITIVE", "Label to reward.")
    judge: str | None = setting(None, "Classifier that judges the result.")


def main(args: RlhfArguments, stage: RewardArguments, config: PPOConfig, model_config: ModelConfig):
    config.save_to("runs/rlhf")
    run, train = RunFolder(config.output_dir), args.task == "train"

    # Models
    name = model_config.model_name_or_path or str(language_model())
    trusted = {"trust_remote_code": config.trust_remote_code}
    loading, tokenizer = model_kwargs(model_config) | trusted, load_tokenizer(name, **trusted)

    # Prompts
    prompts = args.load("train", tokenizer, config.seed)
    held_out = args.load("test", tokenizer, seed=0)  # the same for every run

    # Reward
    reward = LearnedReward(stage, args, config, label=args.label)
    judges = mood_judges(args.label, args.dataset_name, args.judge, **trusted)
    missing = "Train first (--task train), with the same settings."
    learning = Stage("reward model", run.path / "reward", reward.settings, train, missing)
    policy = Stage("policy", run.path, settings_of(args, config, model_config), train, missing)
    plan_stages([learning, policy], config)

    # Trainer
    if not policy.done:
        trainer = PPOTrainer(
            args=config,
            model=load_run(name, **loading)[0],
            reward_funcs=reward,
            metrics=judges,
            train_dataset=reward.unseen(prompts),
            processing_class=tokenizer,
            peft_config=get_peft_config(model_config),
        )
        print_main(reward.learns, trainer.describe())
    figures = learning.train(reward.train, reward.config, (stage,), write_report)
    reward.load(learning.folder.model)
    if not config.check and is_main_process():
        told = write_figures(learning.folder, reward.heldout, figures, reward.base, reward.source)
        print("Reward model:", told.sentences())
    if not policy.done:
        if config.check:
            return print_main(trainer.check())
        policy.train_policy(trainer, (args, stage, config, model_config), write_report)

    # Results
    if is_main_process():
        models = {"reference": load_run(name, **loading), "rlhf": load_run(run, **loading)}
        measures = {"learned score": reward} | {f"judge ({j.__name__})": j for j in judges}
        asked = held_out if train else one_prompt(args.prompt, tokenizer, copies=3)
        results = compare(models, asked, measures, max_new_tokens=config.response_length)
        print(write_results(run, results) if train else results.side_by_side())


if __name__ == "__main__":
    run_recipe(main, RlhfArguments, RewardArguments, PPOConfig, ModelConfig, default_config="rlhf")
