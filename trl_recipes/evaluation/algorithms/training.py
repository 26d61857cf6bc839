"""One run, in a process of its own: train, measure, leave the figures.

    python -m trl_recipes.evaluation.algorithms.training '<Run.to_dict as JSON>' FOLDER

Everything lands in the run's folder; `result.json`, written last, says that the run is finished.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from trl_recipes import (
    LengthSampler,
    RecipeError,
    SentimentReward,
    load_prompts,
    load_run,
    load_stats,
    plot_stats,
)
from trl_recipes.embedded import language_model
from trl_recipes.errors import RunStopped
from trl_recipes.evaluation.algorithms.curve import CURVE_FILE, Curve, figures
from trl_recipes.evaluation.algorithms.runner import RESULT_FILE, SETTINGS_FILE, write_json
from trl_recipes.evaluation.algorithms.work import Run, config_of, trainer_class
from trl_recipes.evaluation.compare import ModelResult, compare, measure_model, sentiment_measures
from trl_recipes.report import write_report
from trl_recipes.run_folder import start_run

COMPARISON_FILE = "comparison.json"


@dataclass
class Prepared:
    """A run that is ready to train.

    Attributes:
        run: what it trains.
        folder: that it writes to.
        trainer: PPOTrainer, GRPOTrainer or RLOOTrainer.
        reference: the start model, from which KL and perplexity are measured.
        tokenizer: of both.
        held_out: prompts to measure on, the same ones for every run.
        reward: of the training; the first thing that is measured.
    """

    run: Run
    folder: Path
    trainer: Any
    reference: nn.Module
    tokenizer: Any
    held_out: Any
    reward: SentimentReward

    def measure(self) -> ModelResult:
        """Let the policy as it is now answer the held-out prompts."""
        trainer = self.trainer
        with_values = getattr(trainer, "value_head_model", None)  # PPO's policy has a second head
        policy = trainer.model if with_values is None else with_values.pretrained_model
        return measure_model(
            "policy",
            trainer.accelerator.unwrap_model(policy),
            self.reference.to(trainer.accelerator.device),
            self.tokenizer,
            [dict(row) for row in self.held_out],
            {"reward": self.reward},
            max_new_tokens=self.run.work.response,
        )


def prepare(run: Run, folder: Path, resume: bool = False) -> Prepared:
    """Load what a run needs, and make its trainer; nothing is written.

    Args:
        run: what to train.
        folder: of the run.
        resume: whether to go on from the newest checkpoint there.

    Raises:
        RecipeError: models, data or settings are not fit.
    """
    work = run.work
    config = config_of(run, folder, resume)
    name = work.model or str(language_model())
    model, tokenizer = load_run(name)
    reference, _ = load_run(name)

    def load(seed: int, **chosen: Any) -> Any:
        chosen |= {"length_sampler": LengthSampler(work.shortest, work.longest + 1, seed=seed)}
        chosen |= {"seed": seed, "model": model, "response_length": work.response}
        return load_prompts(work.dataset, tokenizer, **chosen)

    prompts = load(run.seed, split="train")
    held_out = load(0, split="test", max_prompts=work.eval_prompts)
    reward = SentimentReward(work.reward_model, label=work.label, score="probability")
    trainer = trainer_class(run.algorithm)(
        args=config,
        model=model,
        reward_funcs=reward,
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    return Prepared(run, folder, trainer, reference, tokenizer, held_out, reward)


def train(prepared: Prepared) -> None:
    """Train a run to its end, from its newest checkpoint where it has one, and measure it.

    Args:
        prepared: from `prepare`.

    Raises:
        RecipeError: something is not fit for training.
        RunStopped: a signal came, and a checkpoint was written.
    """
    run, folder, trainer = prepared.run, prepared.folder, prepared.trainer
    work, reward = run.work, prepared.reward
    trainer.add_callback(Curve(folder, work.tokens, work.batch, work.evaluations, prepared.measure))
    with start_run(trainer.args, [trainer.args], write_report) as begun:
        write_json(folder / SETTINGS_FILE, run.to_dict())
        trainer.train()
        trainer.save_model()
    plot_stats(trainer.all_stats, begun.plots / "training.png", title=run.folder_name)

    models = {"reference": (prepared.reference, prepared.tokenizer)}
    models[run.folder_name] = load_run(folder)
    for model, _ in models.values():
        model.to(trainer.accelerator.device)
    measures = {f"P({reward.label})": reward} | sentiment_measures(reward)  # the reward first
    comparison = compare(models, prepared.held_out, measures, max_new_tokens=work.response)
    comparison.save(folder / COMPARISON_FILE)
    write_report(folder)
    before, after = (
        figures(result) | {measure: result.interval(measure)[0] for measure in measures}
        for result in comparison.results
    )
    last = load_stats(folder / CURVE_FILE)[-1]
    spent = {name: last[name] for name in ("step", "tokens", "seconds")}
    result = {"run": run.to_dict(), "reference": before, "policy": after, **spent}
    write_json(folder / RESULT_FILE, result)


def main() -> None:
    """Read what to train from the command line; a mistake is one line that begins with error."""
    described, folder = sys.argv[1:]
    try:
        run, begun = Run.from_dict(json.loads(described)), Path(folder, SETTINGS_FILE).is_file()
        train(prepare(run, Path(folder), resume=begun))
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201  the log of the run
        sys.exit(2)
    except RunStopped as stopped:
        print(stopped, file=sys.stderr, flush=True)  # noqa: T201  the log of the run
        sys.exit(stopped.exit_code)


if __name__ == "__main__":
    main()
