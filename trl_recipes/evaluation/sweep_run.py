"""One run of a sweep, in a process of its own: train, measure, leave the figures.

    python -m trl_recipes.evaluation.sweep_run '<Run.to_dict as JSON>' FOLDER

Everything lands in the run's folder; `result.json`, written last, says that the run is finished.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from trl_recipes.data.prompts import LengthSampler, load_prompts
from trl_recipes.embedded import language_model
from trl_recipes.errors import RecipeError, RunStopped
from trl_recipes.evaluation.compare import ModelResult, compare, mean_interval, measure_model
from trl_recipes.evaluation.judges import sentiment_measures
from trl_recipes.evaluation.sweep import (
    CURVE_FILE,
    RESULT_FILE,
    SETTINGS_FILE,
    Run,
    Task,
    config_of,
)
from trl_recipes.grpo import GRPOTrainer, RLOOTrainer
from trl_recipes.models.loading import load_run
from trl_recipes.ppo import PPOTrainer
from trl_recipes.report import write_report
from trl_recipes.report.plots import plot_stats
from trl_recipes.rewards import SentimentReward
from trl_recipes.run_folder import start_run, write_whole
from trl_recipes.stats import append_stats, keep_steps, load_stats

TRAINERS = {"ppo": PPOTrainer, "grpo": GRPOTrainer, "rloo": RLOOTrainer}


class Curve(TrainerCallback):
    """Writes a row a step to `curve.jsonl`, and ends the run when its tokens are generated.

    A row holds `step`, `tokens` (generated so far) and `seconds` (of training so far, without those
    of measuring); every so many tokens also the figures of the policy on held-out prompts.
    """

    def __init__(self, folder: Path, task: Task, measure: Callable[[], ModelResult]):
        self.path, self.task, self.measure = folder / CURVE_FILE, task, measure
        self.last: dict[str, Any] = {"step": 0, "tokens": 0, "seconds": 0.0}
        self._mark = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        """Go on from the last row that a checkpoint knows of, or measure the start."""
        rows = keep_steps(self.path, state.global_step)
        if rows:
            self.last = {name: rows[-1][name] for name in self.last}
        else:
            append_stats(self.path, self.last | self._figures())
        self._mark = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        """After a step; all trainers log once a step."""
        if "tokens/responses_len_mean" not in (logs or {}):
            return
        before = self.last["tokens"]
        tokens = before + round(logs["tokens/responses_len_mean"] * self.task.batch)
        seconds = self.last["seconds"] + time.perf_counter() - self._mark
        self.last = {"step": state.global_step, "tokens": tokens, "seconds": seconds}
        done = tokens >= self.task.tokens
        every = self.task.tokens / self.task.evaluations
        due = done or before // every < tokens // every
        append_stats(self.path, self.last | (self._figures() if due else {}))
        control.should_training_stop = control.should_training_stop or done
        self._mark = time.perf_counter()

    def _figures(self) -> dict[str, float]:
        with torch.random.fork_rng(range(torch.cuda.device_count())):  # the run goes on as if alone
            return figures(self.measure())


def figures(result: ModelResult) -> dict[str, float]:
    """Give what the curves show of a policy's answers; their first measure is the reward."""
    return {
        "reward": result.interval(next(iter(result.scores)))[0],
        "kl": mean_interval(result.kl)[0],
        "perplexity": result.perplexity,
        "distinct_2": result.distinct_2,
        "length": mean_interval(result.lengths)[0],
    }


class SweepRun:
    """A run that is ready to train: its trainer, and what it is measured with; nothing is written.

    With `resume` it goes on from the newest checkpoint in its folder.
    """

    def __init__(self, run: Run, folder: Path, resume: bool = False):
        self.run, self.folder, task = run, folder, run.task
        config = config_of(run, folder, resume)
        name = task.model_name_or_path or str(language_model())
        model, self.tokenizer = load_run(name)
        self.reference, _ = load_run(name)

        def load(seed: int, **chosen: Any) -> Any:
            lengths = LengthSampler(task.min_prompt_length, task.max_prompt_length + 1, seed=seed)
            chosen |= {"length_sampler": lengths, "seed": seed, "model": model}
            chosen |= {"response_length": task.response_length}
            return load_prompts(task.dataset_name, self.tokenizer, **chosen)

        prompts = load(run.seed, split="train")
        self.held_out = load(0, split="test", max_prompts=task.eval_prompts)  # for all the same
        self.reward = SentimentReward(task.reward_model, label=task.label, score="probability")
        self.trainer = TRAINERS[run.algorithm](
            args=config,
            model=model,
            reward_funcs=self.reward,
            train_dataset=prompts,
            processing_class=self.tokenizer,
        )
        self.trainer.add_callback(Curve(folder, task, self.measure))

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
            max_new_tokens=self.run.task.response_length,
        )

    def train(self) -> None:
        """Train to the end, from the newest checkpoint where there is one, and measure it."""
        run, folder, trainer = self.run, self.folder, self.trainer
        with start_run(trainer.args, [trainer.args], write_report) as begun:
            write_whole(folder / SETTINGS_FILE, json.dumps(run.to_dict(), indent=1) + "\n")
            trainer.train()
            trainer.save_model()
        plot_stats(trainer.all_stats, begun.plots / "training.png", title=run.folder_name)

        models: dict[str, tuple[nn.Module, Any]] = {"reference": (self.reference, self.tokenizer)}
        models[run.folder_name] = load_run(folder)
        for model, _ in models.values():
            model.to(trainer.accelerator.device)
        # the reward first
        measures = {f"P({self.reward.label})": self.reward} | sentiment_measures(self.reward)
        length = run.task.response_length
        comparison = compare(models, self.held_out, measures, max_new_tokens=length)
        comparison.save(folder / "comparison.json")
        write_report(folder)
        before, after = (
            figures(result) | {measure: result.interval(measure)[0] for measure in measures}
            for result in comparison.results
        )
        last = load_stats(folder / CURVE_FILE)[-1]
        result = {"run": run.to_dict(), "reference": before, "policy": after}
        result |= {name: last[name] for name in ("step", "tokens", "seconds")}
        write_whole(folder / RESULT_FILE, json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Read what to train from the command line; a mistake is one line that begins with error."""
    described, folder = sys.argv[1:]
    try:
        values = json.loads(described)
        run = Run(**values | {"task": Task(**values["task"])})
        SweepRun(run, Path(folder), resume=Path(folder, SETTINGS_FILE).is_file()).train()
    except (RecipeError, RunStopped) as error:
        known = "error: " if isinstance(error, RecipeError) else ""
        print(f"{known}{error}", file=sys.stderr, flush=True)  # noqa: T201  the log of the run
        sys.exit(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
