"""Several models on the same prompts: scores, a judge, and distance from the reference.

Every model answers the same prompts with the same response lengths and the same seed, by pure
sampling at temperature 1, so that a difference between two columns is a difference between models.
Measures are reward functions, whether a model was trained on them or not.
"""

import functools
import itertools
import json
import logging
import math
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import TrainerState

from trl_recipes.describe import printable
from trl_recipes.errors import RecipeError
from trl_recipes.models.forward import pad_rows, response_logits
from trl_recipes.models.generation import generate_responses
from trl_recipes.models.loading import check_lengths
from trl_recipes.report.plots import figure_cells, plus_minus
from trl_recipes.rewards import RewardFunc, Rewards
from trl_recipes.rewards.base import reward_inputs
from trl_recipes.run_folder import write_whole
from trl_recipes.stats import distinct_n

_log = logging.getLogger(__name__)

PAD = 0  # any token id will do: masks come from lengths
FIGURES = {"response", "responses", "length", "kl", "reference_nll", "perplexity", "distinct_2"}


@dataclass(frozen=True)
class ModelResult:
    """One model's answers and their measures; lists have one entry per prompt."""

    name: str
    responses: list[str]  # without special tokens
    token_ids: list[list[int]]  # of each response, its end token too
    scores: dict[str, list[float | None]]  # by measure; None where it gave none
    # log-probability under the model minus that under the reference, summed over the tokens of each
    # response, in nats: its mean estimates the KL from the reference
    kl: list[float]
    reference_nll: list[float]  # minus the log-probability under the reference, in nats

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each response, an end token counted."""
        return [len(ids) for ids in self.token_ids]

    @property
    def perplexity(self) -> float:
        """Perplexity of all responses under the reference: exp of nats per response token."""
        return math.exp(sum(self.reference_nll) / sum(self.lengths))

    def to_dict(self) -> dict[str, Any]:
        """Collect all numbers and texts for JSON: summaries and what they were made from."""
        rows = {"response": self.responses, "length": self.lengths, **self.scores, "kl": self.kl}
        rows["reference_nll"] = self.reference_nll
        summaries = {}
        for name in (*self.scores, "kl", "length"):
            known = [value for value in rows[name] if value is not None]
            mean, half = mean_interval(known)
            summaries[name] = {"mean": mean, "half_width_95": half, "n": len(known)}
        responses = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
        totals = {"perplexity": self.perplexity, "distinct_2": distinct_n(self.token_ids, 2)}
        return summaries | totals | {"responses": responses}


@dataclass(frozen=True)
class Comparison:
    """Models on the same prompts, the reference first; every model sampled from `seed`."""

    prompts: list[str]
    results: list[ModelResult]
    seed: int

    @property
    def measures(self) -> list[str]:
        """Names of the measures, the score first."""
        return list(self.results[0].scores)

    def table(self) -> str:
        """Format the figures for a terminal: a row per figure, a column per model."""
        columns = {}
        for result in self.results:
            cells = figure_cells(result.to_dict(), self.measures)
            columns[printable(result.name)] = {printable(n): cell for n, cell in cells.items()}
        return (
            f"n = {len(self.prompts)} responses of each model to the same prompts, seed "
            f"{self.seed}; mean ± half of its 95 % interval.\nPerplexity is under the reference "
            f"model.\n\n{pd.DataFrame(columns).to_string(col_space=17)}"
        )

    def side_by_side(self, count: int = 5, width: int | None = None) -> str:
        """Show the first prompts with each model's answer, wrapped to `width` or the terminal."""
        width = width or shutil.get_terminal_size().columns
        column = max(4, (width - 3 * (len(self.results) - 1)) // len(self.results))
        blocks = [f"[{printable(self.measures[0])}] model"]
        for row, prompt in enumerate(self.prompts[:count]):
            lines = textwrap.wrap(f"> {printable(prompt)} ...", width)
            cells = []
            for result in self.results:
                score = plus_minus(result.scores[self.measures[0]][row], None)
                texts = (f"[{score}] {result.name}", result.responses[row])
                texts = (" ".join(printable(text).split()) for text in texts)
                cells.append([part for t in texts for part in textwrap.wrap(t, column) or [""]])
            for parts in itertools.zip_longest(*cells, fillvalue=""):
                lines.append(" | ".join(f"{part:{column}}" for part in parts).rstrip())
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks)

    def with_scores(self, count: int = 3) -> str:
        """Show the first prompts with each model's whole text and every measure of it."""
        lines = []
        for row, prompt in enumerate(self.prompts[:count]):
            for result in self.results:
                scores = (f"{n} {plus_minus(v[row], None)}" for n, v in result.scores.items())
                text = " ".join(printable(prompt + result.responses[row]).split())
                lines += [f"{printable(result.name)}: {text}", f"    {', '.join(scores)}"]
            lines.append("")
        return "\n".join(lines).rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Collect all numbers and texts for JSON: summaries and what they were made from."""
        return {
            "n": len(self.prompts),
            "seed": self.seed,
            "reference": self.results[0].name,
            "prompts": self.prompts,
            "models": {result.name: result.to_dict() for result in self.results},
        }

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON; numbers that are not finite become null."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        finite = json.loads(json.dumps(self.to_dict()), parse_constant=lambda _: None)
        write_whole(path, json.dumps(finite, indent=1, ensure_ascii=False) + "\n")


def compare(
    models: Mapping[str, tuple[nn.Module, Any]],
    prompts: Iterable[Mapping[str, Any]],
    measures: Mapping[str, RewardFunc],
    *,
    max_new_tokens: int | Sequence[int],
    reference: str = "reference",
    seed: int = 0,
    batch_size: int = 64,
) -> Comparison:
    """Let every model answer the same prompts and measure the answers.

    `models` holds model and tokenizer by name, all with one vocabulary. `prompts` are rows with
    `query` (text) and `input_ids`; other columns go to the `measures`, reward functions by name of
    which the first is called the score. `max_new_tokens` is one number, or one for each prompt. KL
    and perplexity are measured from the model named `reference`.
    """
    rows = [dict(row) for row in prompts]
    if not rows or not measures:
        raise RecipeError(f"compare: {len(rows)} prompts, {len(measures)} measures; it needs both.")
    if reference not in models:
        raise RecipeError(f"compare: no reference '{reference}' among the models {list(models)}.")
    start, tokenizer = models[reference]
    for name, (_, other) in models.items():
        if other.get_vocab() != tokenizer.get_vocab():
            raise RecipeError(
                f"'{name}' has another vocabulary than '{reference}', so their probabilities cannot"
                " be compared token by token. Compare models that share a tokenizer."
            )
    # a user's function may be called `length`, as a figure is that every comparison has
    measures = {f"{n} (reward)" if n in FIGURES else n: f for n, f in measures.items()}
    most = max_new_tokens if isinstance(max_new_tokens, int) else max(max_new_tokens)
    check_lengths(max(len(row["input_ids"]) for row in rows), most, start, "`max_new_tokens`")
    sampling = {"max_new_tokens": max_new_tokens, "seed": seed, "batch_size": batch_size}
    results = [
        measure_model(name, models[name][0], start, tokenizer, rows, measures, **sampling)
        for name in sorted(models, key=lambda name: name != reference)
    ]
    return Comparison(prompts=[row["query"] for row in rows], results=results, seed=seed)


def measure_model(
    name: str,
    model: nn.Module,
    reference_model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    measures: Mapping[str, RewardFunc],
    *,
    max_new_tokens: int | Sequence[int],
    seed: int = 0,
    batch_size: int = 64,
) -> ModelResult:
    """Let one model answer prompts and measure the answers, as `compare` does for several."""
    queries = [torch.as_tensor(row["input_ids"]) for row in rows]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    torch.manual_seed(seed)
    responses = generate_responses(
        model.eval(),
        queries,
        pad_token_id=PAD,
        eos_token_id=tokenizer.eos_token_id,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    own, ref = (
        response_logprobs(policy, queries, responses, batch_size)
        for policy in (model, reference_model.eval())
    )
    completions = tokenizer.batch_decode(responses, skip_special_tokens=True)
    ids = [response.tolist() for response in responses]
    prompts, answers, columns = reward_inputs(columns, completions, tokenizer)
    # what trainers give to reward functions besides, as at the start of a training
    extras = {"trainer_state": TrainerState(max_steps=1)}
    extras |= dict.fromkeys(("log_extra", "log_metric"), lambda *_: None)
    scores = dict.fromkeys(measures, [None] * len(rows))
    for measure, function in measures.items():
        try:  # checked as in training
            _, by_name = Rewards([function])(prompts, answers, ids, columns, **extras)
            (scores[measure],) = by_name.values()
        except RecipeError as error:  # the other figures are worth having
            _log.warning("`%s` of `%s` is not measured: %s", measure, name, error)
    return ModelResult(
        name=name,
        responses=completions,
        token_ids=ids,
        scores=scores,
        kl=[float((p - q).sum()) for p, q in zip(own, ref, strict=True)],
        reference_nll=[-float(q.sum()) for q in ref],
    )


@torch.no_grad()
def response_logprobs(
    model: nn.Module, queries: Sequence[Tensor], responses: Sequence[Tensor], batch_size: int = 64
) -> list[Tensor]:
    """Give the log-probability of each response token after its query, at temperature 1.

    Queries, responses (token ids) and results (nats, on the CPU) have shape (length,) each.
    """
    device = next(model.parameters()).device
    logprobs: list[Tensor] = []
    for start in range(0, len(queries), batch_size):
        chunk = slice(start, start + batch_size)
        query_ids, query_mask = pad_rows([q.to(device) for q in queries[chunk]], PAD, "right")
        ids, mask = pad_rows([r.to(device) for r in responses[chunk]], PAD, "right")
        logits = response_logits(model, query_ids, query_mask, ids, mask)[0].float()
        labels = ids[mask.bool()].unsqueeze(1)
        taken = logits.gather(1, labels)[:, 0] - logits.logsumexp(1)
        logprobs += taken.cpu().split([len(response) for response in responses[chunk]])
    return logprobs


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Give the mean of independent values and half the width of its 95 % interval (Student's t)."""
    n = len(values)
    if n < 2:
        return (values[0] if n else math.nan), math.nan
    return fmean(values), _t_quantile_95(n - 1) * stdev(values) / math.sqrt(n)


@functools.cache
def _t_quantile_95(df: int) -> float:
    """The t with 95 percent of Student's distribution between -t and t, integrated numerically."""
    # the density of theta = atan(t / sqrt(df)) is proportional to cos(theta) ** (df - 1)
    theta = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(theta) ** (df - 1)
    mass = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(df) * math.tan(np.interp(0.95 * mass[-1], mass, theta))
