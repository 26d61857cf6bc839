"""From a text file to a transformer that shouts: tokenizer, baseline, GRPO, evaluation.

    python recipes/grpo_shouting.py                                # everything: runs/shouting
    python recipes/grpo_shouting.py --text_file input.txt --stage baseline

Called again it resumes. On the embedded play the share of capitals goes from 0.17 to 0.92 (seed 0).
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from trl_recipes import GRPOConfig, GRPOTrainer, load_run, load_stats, run_recipe, setting
from trl_recipes.data.files import read_text
from trl_recipes.data.tokenizers import character_tokenizer
from trl_recipes.distributed import print_main
from trl_recipes.embedded.dialogue import write_dialogue
from trl_recipes.evaluation.compare import compare
from trl_recipes.evaluation.judges import word_figures
from trl_recipes.report import write_report, write_results
from trl_recipes.report.plots import plot_stats
from trl_recipes.rewards import KnownWordsReward, UppercaseReward
from trl_recipes.run_folder import RunFolder
from trl_recipes.training.language_model import (
    BaselineConfig,
    cut_prompts,
    divide_text,
    new_model,
    plan_shouting,
    train_baseline,
)


@dataclass
class ShoutingArguments:
    """What to learn from, and which stage to do."""

    text_file: str | None = setting(None, "Text; embedded if left out.")
    stage: Literal["all", "tokenizer", "baseline", "grpo", "evaluation"] = setting(
        "all", "The one stage to do; those before it must be there."
    )
    prompt_length: int = setting(40, "Longest prompt, in characters.")
    eval_prompts: int = setting(256, "Held-out prompts to judge by.")


def report_baseline(run: RunFolder) -> None:
    plot_stats(load_stats(run), run.plots / "training.png", "baseline")
    write_report(run)


def main(args: ShoutingArguments, sizes: BaselineConfig, config: GRPOConfig) -> None:
    config.save_to("runs/shouting")
    run, settings = RunFolder(config.output_dir), (args, sizes, config)
    text = read_text(args.text_file, "--text_file") if args.text_file else write_dialogue()
    train_text, heldout_text = divide_text(text, sizes.context_length, args.text_file or "the play")
    alphabet, baseline, grpo, last, plan = plan_shouting(run, args, sizes, config, text)

    # Models
    tokenizer = character_tokenizer(text)

    # Prompts
    prompts = cut_prompts(train_text, tokenizer, args.prompt_length, 4096, config.seed)
    held_out = cut_prompts(heldout_text, tokenizer, args.prompt_length, args.eval_prompts, 0)

    # Reward
    reward, known = UppercaseReward(), KnownWordsReward(train_text)

    # Trainer
    data = {"train_dataset": prompts, "processing_class": tokenizer}
    make_trainer = partial(GRPOTrainer, args=config, reward_funcs=reward, **data)
    trainer = make_trainer(new_model(sizes, tokenizer, config.seed))  # finds mistakes
    print_main(plan, trainer.describe(), sep="\n")
    if not config.check:
        alphabet.do(lambda: tokenizer.save_pretrained(alphabet.folder))
    train = partial(train_baseline, train_text, heldout_text, tokenizer, sizes=sizes)
    baseline.train(train, sizes.training(config), settings, report_baseline)
    if config.check:
        return print_main(trainer.check())
    if not grpo.done:
        trainer = make_trainer(load_run(baseline.folder)[0])
        grpo.train_policy(trainer, settings, write_report)

    # Results
    def evaluate():
        models = {"baseline": load_run(baseline.folder), "GRPO": load_run(run)}
        measures = {r.__name__: r for r in (reward, *trainer.rewards.reward_funcs, known)}
        chosen = {"max_new_tokens": config.response_length, "reference": "baseline"}
        results = compare(models, held_out, measures, **chosen)
        shown = f"{results.side_by_side(5, width=100)}\n\n{word_figures(results, known.words)}"
        return write_results(run, results, shown)

    print_main(last.do(evaluate) or run.places())


if __name__ == "__main__":
    run_recipe(main, ShoutingArguments, BaselineConfig, GRPOConfig, default_config="grpo_shouting")
