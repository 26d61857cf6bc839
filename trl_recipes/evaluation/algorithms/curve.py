"""How a run comes along: tokens, seconds and, now and then, the policy on held-out prompts."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from trl_recipes.evaluation.compare import ModelResult, mean_interval
from trl_recipes.stats import append_stats, keep_steps

CURVE_FILE = "curve.jsonl"


class Curve(TrainerCallback):
    """Writes a row a step to `curve.jsonl`, and ends the run when its tokens are generated.

    A row holds `step`, `tokens` (generated so far) and `seconds` (of training so far, without those
    of measuring); every so many tokens also `reward`, `kl`, `perplexity` and `distinct_2` of the
    policy on held-out prompts.

    Args:
        folder: of the run.
        tokens: to generate.
        batch: responses a step.
        evaluations: how often to measure, at equal distances of tokens.
        measure: lets the policy as it is now answer the held-out prompts.
    """

    def __init__(
        self,
        folder: Path,
        tokens: int,
        batch: int,
        evaluations: int,
        measure: Callable[[], ModelResult],
    ):
        self.path, self.tokens, self.batch = folder / CURVE_FILE, tokens, batch
        self.evaluations, self.measure = evaluations, measure
        self.last: dict[str, Any] = {"step": 0, "tokens": 0, "seconds": 0.0}
        self._mark = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        """Go on from the last row that a checkpoint knows of, or measure the start."""
        rows = keep_steps(self.path, state.global_step)
        if rows:
            self.last = {name: rows[-1][name] for name in self.last}
        else:
            append_stats(self.path, self.last | self._measured())
        self._mark = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        """After a step; both trainers log once a step."""
        if "tokens/responses_len_mean" not in (logs or {}):
            return
        before = self.last["tokens"]
        new = round(logs["tokens/responses_len_mean"] * self.batch)
        seconds = self.last["seconds"] + time.perf_counter() - self._mark
        self.last = {"step": state.global_step, "tokens": before + new, "seconds": seconds}
        done = self.last["tokens"] >= self.tokens
        every = self.tokens / self.evaluations
        due = done or before // every < self.last["tokens"] // every
        append_stats(self.path, self.last | (self._measured() if due else {}))
        control.should_training_stop = control.should_training_stop or done
        self._mark = time.perf_counter()

    def _measured(self) -> dict[str, float]:
        devices = range(torch.cuda.device_count())
        with torch.random.fork_rng(devices):  # the run goes on as if nobody had looked
            return figures(self.measure())


def figures(result: ModelResult) -> dict[str, float]:
    """Give what the curves show of a policy's answers.

    Args:
        result: of the answers; its first measure is the reward.

    Returns:
        `reward`, its mean; `kl` from the reference, in nats a response; `perplexity` under the
        reference; `distinct_2`; `length` in tokens.
    """
    return {
        "reward": result.interval(next(iter(result.scores)))[0],
        "kl": mean_interval(result.kl)[0],
        "perplexity": result.perplexity,
        "distinct_2": result.distinct_2,
        "length": mean_interval(result.lengths)[0],
    }
