"""PPO, GRPO and RLOO on one task with the same number of generated tokens, a process for each run.

Each run is a `Stage`: a finished one is not run again, and a stopped one goes on where it stopped.
Its process is `python -m trl_recipes.evaluation.sweep RUN`, with the `Run` as JSON.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from transformers import TrainerCallback, TrainingArguments

from trl_recipes.callbacks import StopSignals
from trl_recipes.data.prompts import PromptArguments
from trl_recipes.describe import markdown_table
from trl_recipes.embedded import language_model
from trl_recipes.errors import RecipeError, RunStopped
from trl_recipes.evaluation.compare import ModelResult, compare, measure_model
from trl_recipes.evaluation.judges import sentiment_measures
from trl_recipes.grpo import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl_recipes.models.loading import load_run
from trl_recipes.ppo import PPOConfig, PPOTrainer
from trl_recipes.report import write_report, write_results
from trl_recipes.report.plots import COLORS, GREY, Picture, save_figure, style_axes
from trl_recipes.rewards import SentimentReward
from trl_recipes.run_folder import check_output_dir, prepare_run
from trl_recipes.settings import setting
from trl_recipes.stats import append_stats, keep_steps, load_stats
from trl_recipes.training.stage import Stage

ALGORITHMS = {
    "ppo": (PPOConfig, PPOTrainer),
    "grpo": (GRPOConfig, GRPOTrainer),
    "rloo": (RLOOConfig, RLOOTrainer),
}
# Further settings that are the same for all, so that no algorithm may have its own.
_SHARED = ("temperature", "reward_funcs", "max_completion_length", "total_episodes")
_SHARED += ("steps_per_generation", "generation_batch_size")
# Statistics whose mean over the steps stands in a result.
_MEANS = {
    "ppo/policy/clipfrac": "clipfrac",
    "clip_ratio/region_mean": "clipfrac",  # of GRPO and RLOO
    "ppo/val/var_explained": "var_explained",
}
CURVE_FILE, LOG_FILE = "curve.jsonl", "log.txt"
COMMAND = (sys.executable, "-m", "trl_recipes.evaluation.sweep")
POLL_SECONDS = 0.1


@dataclass
class Task(PromptArguments):
    """What all runs share."""

    tokens: int = setting(100_000, "Tokens that each run generates; it ends with their batch.")
    batch: int = setting(128, "Responses a step.")
    response_length: int = setting(16, "Most tokens of a response.")
    evaluations: int = setting(10, "How often to measure on the way.")
    model_name_or_path: str | None = setting(None, "Start model.")
    reward_model: str | None = setting(None, "Sentiment classifier.")
    label: str = setting("POSITIVE", "Its probability is the reward.")


@dataclass(frozen=True)
class Run:
    """One run in a folder: an algorithm with a seed and its own settings on the shared task."""

    algorithm: str
    seed: int
    task: Task
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.algorithm.upper()} seed {self.seed}"

    def stage(self, overwrite: bool = False) -> Stage:
        """Read what its folder holds of this run; refuse a folder that holds another one."""
        decide = {"seed": self.seed} | asdict(self.task) | self.settings
        stage = Stage(str(self), self.folder, json.loads(json.dumps(decide)), overwrite=overwrite)
        stage.read()
        if not stage.begun:
            check_output_dir(self.folder, overwrite=overwrite)
        return stage


def make_runs(
    task: Task, algorithms: Sequence[str], seeds: Sequence[int], own: Mapping[str, Any], place: Path
) -> list[Run]:
    """Make and check runs, one a seed and algorithm, in `place`; `own` settings may be JSON."""
    for name in algorithms:
        if name not in ALGORITHMS:
            raise RecipeError(f"--algorithms: `{name}` is unknown. Use {', '.join(ALGORITHMS)}.")
    settings = {name: _own_settings(name, own.get(name)) for name in algorithms}
    runs = [
        Run(name, seed, task, place / f"{name}-seed{seed}", settings[name])
        for seed in dict.fromkeys(seeds)
        for name in settings
    ]
    for run in runs:
        config_of(run)
    return runs


def _own_settings(name: str, given: Any) -> dict[str, Any]:
    try:
        return dict(json.loads(given) if isinstance(given, str) else given or {})
    except (ValueError, TypeError) as error:
        raise RecipeError(
            f"--{name} is {given!r}, which is no JSON object. Give one such as "
            "'{\"learning_rate\": 1e-5}', or settings under this key in a YAML file."
        ) from error


def config_of(run: Run, resume: bool = False) -> TrainingArguments:
    """Build the configuration of a run's trainer; `max_steps` is for responses of one token."""
    (kind, _), flag, task = ALGORITHMS[run.algorithm], f"--{run.algorithm}", run.task
    shared = {
        "output_dir": str(run.folder),
        "seed": run.seed,
        "batch_size": task.batch,
        "response_length": task.response_length,
        "max_steps": math.ceil(task.tokens / task.batch),
        "lr_scheduler_type": "constant",  # the number of steps is known only at the end
        "logging_steps": 1,
        "save_total_limit": 1,
        "disable_tqdm": True,
        "resume_from_checkpoint": "true" if resume else None,
    }
    if run.algorithm == "ppo":  # it would draw the limit of each response
        shared["min_response_length"] = None
    for name in run.settings:
        if name in shared or name in _SHARED:
            raise RecipeError(
                f"{flag}: `{name}` is the same for every algorithm. Leave it out there, and use "
                "the flags of the recipe."
            )
    try:
        return kind(**{"save_steps": 10} | run.settings | shared)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{flag}: {error} Fix these settings; `python recipes/{run.algorithm}_sentiment.py "
            "--help_all` lists them."
        ) from error


def run_all(
    runs: Sequence[Run], jobs: int, say: Callable[[str], None], overwrite: bool = False
) -> list[str]:
    """Run each in a process of its own, `jobs` at a time, and give a sentence for each that failed.

    `jobs` is 0 for one a core, or one alone on a GPU; `say` is told when a run begins and ends.
    Raises RunStopped where SIGTERM or Ctrl-C came; every run has then written a checkpoint.
    """
    jobs = jobs or (1 if torch.cuda.is_available() else os.cpu_count() or 1)
    waiting, going, failures = list(runs), [], []
    with StopSignals() as signals:
        try:
            while waiting or going:
                if signals.received is not None:  # every run finishes its step and saves
                    for _, process in going:
                        process.send_signal(signals.received)
                    for _, process in going:
                        process.wait()
                    words = f"Stopped by {signals.received.name}. The same command goes on where "
                    raise RunStopped(f"{words}it stopped.", 128 + signals.received)
                while waiting and len(going) < jobs:
                    run = waiting.pop(0)
                    going.append((run, _start(run, jobs, overwrite)))
                    say(f"{run}: begun, {len(runs) - len(waiting)} of {len(runs)}")
                time.sleep(POLL_SECONDS)
                for run, process in [pair for pair in going if pair[1].poll() is not None]:
                    going.remove((run, process))
                    if process.returncode:
                        failures.append(_failure(run, process.returncode))
                    say(failures[-1] if process.returncode else _summary(run))
        finally:
            for _, process in going:
                process.kill()
    return failures


def _start(run: Run, jobs: int, overwrite: bool) -> subprocess.Popen:
    if overwrite:
        prepare_run(run.folder, overwrite=True)
        (run.folder / CURVE_FILE).unlink(missing_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / LOG_FILE).open("wb") as log:
        return subprocess.Popen(
            [*COMMAND, json.dumps(asdict(run), default=str)],
            env={"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches it once, through us
        )


def _failure(run: Run, code: int) -> str:
    log = run.folder / LOG_FILE
    said = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(said) if line.strip()), "it said nothing")
    killed = " (killed, most likely for want of memory)" if code == -9 else ""
    return f"{run} failed. Exit code {code}{killed}, `{log}`: {last}"


def _summary(run: Run) -> str:
    found = run.stage().result
    before, after = found["reference"]["reward"], found["policy"]["reward"]
    return (
        f"{run}: reward {before:.3f} to {after:.3f}, {found['tokens']} tokens in "
        f"{found['seconds']:.0f} s of training"
    )


# One run, in its process


class Curve(TrainerCallback):
    """Writes a row a step to `curve.jsonl`, and ends the run when its tokens are generated.

    A row holds `step`, `tokens` (generated so far) and `seconds` (of training so far, without those
    of measuring); every so many tokens also the figures of the policy on held-out prompts.
    """

    def __init__(self, run: Run, measure: Callable[[], ModelResult]):
        self.path, self.task, self.measure = run.folder / CURVE_FILE, run.task, measure
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
        """Write the row of a step; all trainers log once a step."""
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
    """Collect the means of a policy's answers; their first measure is the reward, too."""
    found = result.to_dict()
    means = {name: found[name]["mean"] for name in (*result.scores, "kl", "length")}
    means |= {name: found[name] for name in ("perplexity", "distinct_2")}
    return {"reward": means[next(iter(result.scores))]} | means


class SweepRun:
    """A run that is ready to train: its trainer, and what it is measured with; nothing is written.

    With `resume` it goes on from the newest checkpoint in its folder.
    """

    def __init__(self, run: Run, resume: bool = False):
        self.run, task = run, run.task
        name = task.model_name_or_path or str(language_model())
        model, self.tokenizer = load_run(name)
        self.reference, _ = load_run(name)

        fitting = {"model": model, "response_length": task.response_length}
        prompts = task.load("train", self.tokenizer, run.seed, **fitting)
        self.held_out = task.load("test", self.tokenizer, seed=0, **fitting)  # for all the same
        self.reward = SentimentReward(task.reward_model, label=task.label, score="probability")
        self.trainer = ALGORITHMS[run.algorithm][1](
            args=config_of(run, resume),
            model=model,
            reward_funcs=self.reward,
            train_dataset=prompts,
            processing_class=self.tokenizer,
        )
        self.trainer.add_callback(Curve(run, self.measure))

    def measure(self) -> ModelResult:
        """Let the current policy answer the held-out prompts."""
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
        folder, trainer, task = self.run.folder, self.trainer, self.run.task
        stage = self.run.stage()
        with stage.start(trainer.args, [trainer.args], write_report) as run:
            trainer.train()
            trainer.save_model()

        models = {"reference": (self.reference, self.tokenizer)}
        models[folder.name] = load_run(folder)
        for model, _ in models.values():
            model.to(trainer.accelerator.device)
        measures = {f"P({self.reward.label})": self.reward} | sentiment_measures(self.reward)
        comparison = compare(models, self.held_out, measures, max_new_tokens=task.response_length)
        write_results(run, comparison)
        before, after = map(figures, comparison.results)
        last, steps = load_stats(folder / CURVE_FILE)[-1], pd.DataFrame(load_stats(folder)).mean()
        means = {name: steps[key] for key, name in _MEANS.items() if key in steps}
        result = {"reference": before, "policy": after | means}
        result |= {name: last[name] for name in ("step", "tokens", "seconds")}
        stage.write(result | {"responses": last["step"] * task.batch})


# What was found: a table over the seeds, and a picture


# Figures of the table, with decimals.
FIGURES = {
    "kl": ("KL, nats per response", 2),
    "perplexity": ("perplexity", 2),
    "distinct_2": ("distinct-2", 3),
    "length": ("length, tokens", 1),
    "clipfrac": ("clipped, fraction of tokens", 3),
    "var_explained": ("variance explained", 3),
    "responses": ("responses", 0),
    "tokens": ("tokens generated", 0),
    "step": ("steps", 0),
    "seconds": ("seconds", 1),
}
INK = dict(zip(ALGORITHMS, COLORS, strict=False))
POINTS = 50  # of the shared grid on which the seeds' curves are averaged
# Panels of the picture: column of the curves, title, axis, and how a legend says where it ends.
PANELS = (
    ("tokens", "How high with the same tokens?", "tokens generated", "{reward:.2f}"),
    ("seconds", "How fast?", "seconds of training", "{seconds:.0f} s"),
    ("kl", "How far from the start?", "KL from the start, nats per response", "{kl:.1f} nats"),
)


@dataclass(frozen=True)
class Results:
    """The finished runs of a sweep by algorithm, with the result and the measured rows of each."""

    runs: list[Run]
    found: list[dict[str, Any]]
    curves: list[list[dict[str, float]]]

    def over_seeds(self) -> dict[str, pd.DataFrame]:
        """Give mean, least and most of each figure over the seeds, a row each, by algorithm."""
        rows = [
            {n: v for n, v in row.items() if n in FIGURES} | row["policy"] for row in self.found
        ]
        algorithms = [run.algorithm for run in self.runs]
        groups = pd.DataFrame(rows).groupby(algorithms, sort=False)
        return {name: group.agg(["mean", "min", "max"]) for name, group in groups}

    @property
    def scores(self) -> list[str]:
        """Names of what the runs are scored by, the reward first."""
        known = self.found[0]["reference"]  # the start model, the same for all
        return [name for name in known if name not in FIGURES and name != "reward"]

    def table(self) -> str:
        """Format the figures as Markdown: a row each, mean (least to most) over the seeds."""
        before, after = self.found[0]["reference"], self.over_seeds()
        known = {name for figures in after.values() for name in figures}
        rows = [["", "before", *map(str.upper, after)]]
        for name in [*self.scores, *(name for name in FIGURES if name in known)]:
            title, digits = FIGURES.get(name, (name, 3))
            cells = [_shown(before.get(name), digits)]
            for figures in after.values():
                mean, least, most = (_shown(v, digits) for v in figures.get(name, [np.nan] * 3))
                cells.append(mean if least == most else f"{mean} ({least} to {most})")
            rows.append([title, *cells])
        return markdown_table(rows)

    def conditions(self) -> str:
        """Say what was the same for all runs, and what each algorithm had of its own."""
        task, seeds = self.runs[0].task, dict.fromkeys(str(run.seed) for run in self.runs)
        own = json.dumps({run.algorithm: run.settings for run in self.runs})
        return (
            f"Mean (least to most) of the seeds {', '.join(seeds)}; {task.tokens} tokens in steps "
            f"of {task.batch} responses; {task.eval_prompts} held-out prompts; settings: {own}"
        )


def load_results(runs: Sequence[Run]) -> Results | None:
    """Read the results of the runs that have finished; None where none has."""
    order = list(dict.fromkeys(run.algorithm for run in runs))
    runs = sorted(runs, key=lambda run: order.index(run.algorithm))
    done = [(run, found) for run in runs if (found := run.stage().result) is not None]
    if not done:
        return None
    runs, found = map(list, zip(*done, strict=True))
    curves = ([row for row in load_stats(r.folder / CURVE_FILE) if "reward" in row] for r in runs)
    return Results(runs, found, list(curves))


def plot_results(results: Results, path: str | Path | None = None) -> Figure:
    """Draw the held-out reward against tokens, seconds and KL, at equal tokens over the seeds.

    Each seed is a faint line, their mean a strong one.
    """
    figure = Picture(figsize=(12, 5.2), layout="constrained")
    ends = {name: after.loc["mean"] for name, after in results.over_seeds().items()}
    curves = {name: _on_one_grid(results, name) for name in ends}
    before = results.found[0]["reference"]["reward"]
    for axes, (along, title, below, ending) in zip(
        figure.subplots(1, 3, sharey=True), PANELS, strict=True
    ):
        for name, columns in curves.items():
            x, y, color = columns[along], columns["reward"], INK[name]
            axes.plot(x.T, y.T, color=color, linewidth=1, alpha=0.35)
            style = {"marker": "o", "markevery": [-1], "color": color, "linewidth": 2.8}
            label = f"{name.upper()} {ending.format(**ends[name] + 0.0)}"
            axes.plot(x.mean(0), y.mean(0), label=label, **style)
        style_axes(axes, title, grid="y")
        axes.title.set_fontsize(14)
        axes.tick_params(labelsize=12)
        axes.set_xlabel(below, fontsize=13)
        axes.axhline(before, color=GREY, linestyle=(0, (4, 3)), label=f"before {before:.2f}")
        axes.legend(loc="best", frameon=False, fontsize=12)
    figure.axes[0].set_ylabel(f"{results.scores[0]}, held-out prompts", fontsize=13)
    words = f"{', '.join(map(str.upper, ends))} with {results.runs[0].task.tokens:,} tokens each"
    figure.suptitle(words, fontsize=15, fontweight="bold")
    return save_figure(figure, path)


def _on_one_grid(results: Results, algorithm: str) -> dict[str, np.ndarray]:
    """The columns of an algorithm's curves at the same tokens, each of shape (seeds, POINTS)."""
    runs = zip(results.runs, results.curves, strict=True)
    curves = [pd.DataFrame(curve) for run, curve in runs if run.algorithm == algorithm]
    grid = np.linspace(0, min(curve["tokens"].max() for curve in curves), POINTS)
    return {
        name: np.array([np.interp(grid, curve["tokens"], curve[name]) for curve in curves])
        for name in ("tokens", "seconds", "kl", "reward")
    }


def _shown(value: float | None, digits: int) -> str:
    if value is None or np.isnan(value):
        return ""
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0 makes -0.0 read 0.0


def main() -> None:
    """Read what to train from the command line; a mistake is one line that begins with error."""
    values = json.loads(sys.argv[1])
    try:
        made = {"task": Task(**values["task"]), "folder": Path(values["folder"])}
        run = Run(**values | made)
        SweepRun(run, resume=run.stage().begun).train()
    except (RecipeError, RunStopped) as error:
        known = "error: " if isinstance(error, RecipeError) else ""
        print(f"{known}{error}", file=sys.stderr, flush=True)  # noqa: T201  the log of the run
        sys.exit(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
