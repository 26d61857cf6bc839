"""From a text file to a transformer that shouts: tokenizer, baseline, GRPO, evaluation.

    python recipes/grpo_shouting.py                                # everything: runs/shouting
    python recipes/grpo_shouting.py --text_file input.txt --output_dir runs/mine
    python recipes/grpo_shouting.py --stage baseline               # one stage alone

A character-level tokenizer is made from the text, a small decoder-only transformer learns it from
scratch, and GRPO rewards upper-case letters. A stage that is there is skipped, one that was
interrupted is gone on with: by the same command again. With no text named it takes a play of this
project: the share of upper-case letters goes from 0.18 to 0.97 to 0.98, seeds 0 to 2, n = 256,
in two and a half minutes on one core.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from trl_recipes import GRPOConfig, GRPOTrainer, load_run, setting
from trl_recipes.arguments import run_recipe
from trl_recipes.data.characters import cut_prompts
from trl_recipes.data.tokenizers import character_tokenizer
from trl_recipes.report import write_report
from trl_recipes.rewards import KnownWordsReward, UppercaseReward
from trl_recipes.run_folder import RunFolder, start_run
from trl_recipes.training import shouting
from trl_recipes.training.baseline import BaselineConfig, new_model, train_baseline
from trl_recipes.training.dry_run import rehearse


@dataclass
class ShoutingArguments:
    """What to learn from, and which stage to do."""

    text_file: str | None = setting(None, "Text; embedded if left out.")
    stage: Literal["all", "tokenizer", "baseline", "grpo", "evaluation"] = setting(
        "all", "The one stage to do; those before it must be there."
    )
    prompt_length: int = setting(40, "Longest prompt, in characters.")
    eval_prompts: int = setting(256, "Held-out prompts to judge by.")


def main(args: ShoutingArguments, sizes: BaselineConfig, config: GRPOConfig) -> None:
    config.save_to("runs/shouting")
    text = shouting.CharacterText.read(args.text_file, sizes.context_length)
    stages = shouting.plan_stages(text, args, sizes, config)
    run = RunFolder(Path(config.output_dir))

    # Models
    tokenizer = character_tokenizer(text.whole)
    model = new_model(sizes, tokenizer, config.seed)

    # Prompts
    prompts = cut_prompts(text.train, tokenizer, args.prompt_length, 4096, config.seed)
    held_out = cut_prompts(text.heldout, tokenizer, args.prompt_length, args.eval_prompts, 0)

    # Reward
    reward, known = UppercaseReward(), KnownWordsReward(text.train)

    # Trainer
    data = {"train_dataset": prompts, "processing_class": tokenizer}
    grpo = partial(GRPOTrainer, args=config, reward_funcs=reward, **data)
    trainer = grpo(model)  # not trained yet: a mistake is told before the baseline takes its time
    say = trainer.accelerator.print
    say(stages.describe(), trainer.describe(), sep="\n")
    train = partial(train_baseline, text.train, text.heldout, tokenizer, sizes=sizes)
    baseline = shouting.baseline_training(stages, sizes, config)
    if config.check:
        return say(rehearse(train, baseline), trainer.check(), sep="\n\n")
    settings = (args, sizes, config)
    if stage := stages.todo("tokenizer"):
        shouting.keep_tokenizer(tokenizer, stage)
    if stage := stages.todo("baseline"):
        with start_run(baseline, settings, write_report):
            stage.begin()
            losses = train(output_dir=stage.folder / "model", config=baseline)
        say(shouting.tell_baseline(stage.folder, losses))
        stage.finish()
    if stage := stages.todo("grpo"):
        trainer = grpo(load_run(run.path / "baseline")[0])
        with start_run(config, settings, write_report):
            stage.begin()
            trainer.train()
            shouting.keep_policy(trainer, run)
        stage.finish()

    # Results
    if stage := stages.todo("evaluation"):
        stage.begin()
        rewards = [reward, *trainer.rewards.reward_funcs, known]
        shouting.evaluate(run, stage.folder, held_out, rewards, config.response_length)
        stage.finish()
    say(stages.result("evaluation", shouting.RESULTS), run.places(), sep="\n")


if __name__ == "__main__":
    run_recipe(main, ShoutingArguments, BaselineConfig, GRPOConfig, default_config="grpo_shouting")
