"""Several models on the same prompts: scores, a judge, and distance from the reference.

Every model answers the same prompts with the same response lengths and the same seed, by pure
sampling at temperature 1, so that a difference between two columns is a difference between models.
Measures are reward functions (`prompts, completions, completion_ids, **columns` -> one number or
None a sample), whether a model was trained on them or not.
"""

import functools
import json
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

from trl_recipes.describe import printable
from trl_recipes.errors import RecipeError
from trl_recipes.models.forward import context_length, response_logits
from trl_recipes.models.packing import pad_rows
from trl_recipes.models.sampling import generate_responses
from trl_recipes.rewards import RewardFunc, Rewards
from trl_recipes.rewards.text import reward_inputs
from trl_recipes.run_folder import write_whole
from trl_recipes.stats import distinct_n

PAD = 0  # any token id will do: masks come from lengths
NARROWEST = 22  # columns of text narrower than this are stacked instead


@dataclass(frozen=True)
class ModelResult:
    """What one model answered and how that measures; lists have one entry a prompt."""

    name: str
    responses: list[str]  # without special tokens
    token_ids: list[list[int]]  # of each response, its end token too
    scores: dict[str, list[float | None]]  # by measure; None where it gave none
    # log-probability under the model minus that under the reference, summed over the tokens of each
    # response, in nats: its mean estimates the KL from the reference
    kl: list[float]
    reference_nll: list[float]  # minus the log-probability under the reference, in nats

    def interval(self, measure: str) -> tuple[float, float]:
        """Mean of a measure over the responses that it scored, and its 95 percent half width."""
        return mean_interval(self.scored(measure))

    def scored(self, measure: str) -> list[float]:
        """Values of a measure, without the responses that it left out."""
        return [value for value in self.scores[measure] if value is not None]

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each response, an end token counted."""
        return [len(ids) for ids in self.token_ids]

    @property
    def perplexity(self) -> float:
        """Perplexity of all responses under the reference: exp of nats per response token."""
        return math.exp(sum(self.reference_nll) / sum(self.lengths))

    @property
    def distinct_2(self) -> float:
        """Distinct pairs of neighbouring tokens over all such pairs in the responses."""
        return distinct_n(self.token_ids, 2)


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
        """Lay the figures out for a terminal: a line a figure, a column a model."""
        rows = {printable(m): [_cell(r, m) for r in self.results] for m in self.measures}
        rows["KL (nats/response)"] = [_plus_minus(*mean_interval(r.kl)) for r in self.results]
        rows["perplexity"] = [_number(r.perplexity) for r in self.results]
        rows["distinct-2"] = [_number(r.distinct_2) for r in self.results]
        rows["length (tokens)"] = [_plus_minus(*mean_interval(r.lengths)) for r in self.results]
        table = pd.DataFrame(rows, index=[printable(r.name) for r in self.results]).T
        return (
            f"n = {len(self.prompts)} responses of each model to the same prompts, seed "
            f"{self.seed}; mean ± half of its 95 % interval.\nPerplexity is under the reference "
            f"model.\n\n{table.to_string(col_space=17)}"
        )

    def side_by_side(self, count: int = 5, width: int | None = None) -> str:
        """Show the first prompts with each model's answer, wrapped to `width` or the terminal."""
        width = max(NARROWEST, width or shutil.get_terminal_size().columns)
        column = (width - 3 * (len(self.results) - 1)) // len(self.results)
        blocks = []
        for row, prompt in enumerate(self.prompts[:count]):
            heads = [f"[{_number(r.scores[self.measures[0]][row])}] {r.name}" for r in self.results]
            answers = [r.responses[row] for r in self.results]
            lines = textwrap.wrap(f"> {printable(prompt)} ...", width)
            if column < NARROWEST:
                for head, answer in zip(heads, answers, strict=True):
                    lines += _wrap(head, width) + _wrap(answer, width, indent="  ")
            else:
                cells = [
                    _wrap(h, column) + _wrap(a, column) for h, a in zip(heads, answers, strict=True)
                ]
                height = max(map(len, cells))
                padded = [cell + [""] * (height - len(cell)) for cell in cells]
                lines += [
                    " | ".join(f"{text:{column}}" for text in line).rstrip()
                    for line in zip(*padded, strict=True)
                ]
            blocks.append("\n".join(lines))
        return f"[{printable(self.measures[0])}] model\n\n" + "\n\n".join(blocks)

    def with_scores(self, count: int = 3) -> str:
        """Show the first prompts with each model's whole text and every measure of it."""
        lines = []
        for row, prompt in enumerate(self.prompts[:count]):
            for result in self.results:
                scores = (f"{name} {_number(v[row])}" for name, v in result.scores.items())
                text = " ".join(printable(prompt + result.responses[row]).split())
                lines += [f"{printable(result.name)}: {text}", f"    {', '.join(scores)}"]
            lines.append("")
        return "\n".join(lines).rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Give every number and text, ready for JSON: summaries and what they were made from."""
        return {
            "n": len(self.prompts),
            "seed": self.seed,
            "reference": self.results[0].name,
            "prompts": self.prompts,
            "models": {result.name: _result_dict(result) for result in self.results},
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

    `models` holds model and tokenizer by name, all with one vocabulary, put into eval mode.
    `prompts` are rows with `query` (text) and `input_ids`, as `load_prompts` gives them; their
    further columns go to the `measures`, reward functions by name of which the first is called the
    score. `max_new_tokens` is one number, or one for each prompt. KL and perplexity are measured
    from the model named `reference`; `batch_size` does not change the figures.
    """
    rows = [dict(row) for row in prompts]
    if not rows or not measures:
        raise RecipeError(
            f"compare got {len(rows)} prompts and {len(measures)} measures; both need one."
        )
    if reference not in models:
        raise RecipeError(f"compare: no reference '{reference}' among the models {list(models)}.")
    reference_model, tokenizer = models[reference]
    for name, (_, other) in models.items():
        if other.get_vocab() != tokenizer.get_vocab():
            raise RecipeError(
                f"'{name}' has another vocabulary than '{reference}', so their probabilities cannot"
                " be compared token by token. Compare models that share a tokenizer."
            )
    longest = max_new_tokens if isinstance(max_new_tokens, int) else max(max_new_tokens)
    check_context(reference_model, max(len(row["input_ids"]) for row in rows), longest)
    shared = (reference_model, tokenizer, rows, measures)
    sampling = {"max_new_tokens": max_new_tokens, "seed": seed, "batch_size": batch_size}
    results = [
        measure_model(name, models[name][0], *shared, **sampling)
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
    scores = {}
    for measure, function in measures.items():  # checked as in training
        _, by_name = Rewards([function])(prompts, answers, ids, columns)
        (scores[measure],) = by_name.values()
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

    Queries and responses are token ids, each of shape (length,); so is each result, in nats, on the
    CPU. `batch_size` does not change the values.
    """
    device = next(model.parameters()).device
    logprobs: list[Tensor] = []
    for start in range(0, len(queries), batch_size):
        chunk = slice(start, start + batch_size)
        query_ids, query_mask = pad_rows([q.to(device) for q in queries[chunk]], PAD, "right")
        ids, mask = pad_rows([r.to(device) for r in responses[chunk]], PAD, "right")
        logits, _ = response_logits(model, query_ids, query_mask, ids, mask)
        labels = ids[mask.bool()].unsqueeze(1)
        taken = logits.gather(1, labels)[:, 0] - logits.logsumexp(1)
        logprobs += taken.cpu().split([len(response) for response in responses[chunk]])
    return logprobs


def check_context(model: nn.Module, query_length: int, response_length: int) -> None:
    """Refuse what does not fit into a model's context; lengths in tokens, of the longest ones."""
    context = context_length(model.config)
    needed = query_length + response_length
    if context is None:
        return
    if model.config.is_encoder_decoder:
        if max(query_length, response_length) > context:
            raise RecipeError(
                f"A source of {query_length} tokens or a response of {response_length} is longer "
                f"than the {context} that the model's encoder and decoder hold each. Shorten it."
            )
    elif needed > context:
        raise RecipeError(
            f"A prompt of {query_length} tokens and a response of {response_length} need {needed},"
            f" but the model's context holds {context}. Shorten the prompt or the response."
        )


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Give the mean of independent values, and half the width of its 95 percent interval.

    The interval is Student's t; nan where there are too few values (0 and 1).
    """
    n = len(values)
    if n < 2:
        return (values[0] if n else math.nan), math.nan
    return fmean(values), _t_quantile_95(n - 1) * stdev(values) / math.sqrt(n)


@functools.cache
def _t_quantile_95(df: int) -> float:
    """The t with 95 percent of Student's distribution between -t and t, integrated numerically.

    The density of theta = atan(t / sqrt(df)) is proportional to cos(theta) ** (df - 1).
    """
    theta = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(theta) ** (df - 1)
    mass = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(df) * math.tan(np.interp(0.95 * mass[-1], mass, theta))


def _result_dict(result: ModelResult) -> dict[str, Any]:
    summary = {measure: result.scored(measure) for measure in result.scores}
    summary |= {"kl": result.kl, "length": result.lengths}
    per_response = {"response": result.responses, "length": result.lengths, **result.scores}
    per_response |= {"kl": result.kl, "reference_nll": result.reference_nll}
    return {
        **{key: _summary(values) for key, values in summary.items()},
        "perplexity": result.perplexity,
        "distinct_2": result.distinct_2,
        "responses": [
            dict(zip(per_response, row, strict=True))
            for row in zip(*per_response.values(), strict=True)
        ],
    }


def _summary(values: Sequence[float]) -> dict[str, float]:
    mean, half = mean_interval(values)
    return {"mean": mean, "half_width_95": half, "n": len(values)}


def _cell(result: ModelResult, measure: str) -> str:
    scored = len(result.scored(measure))
    left_out = "" if scored == len(result.responses) else f" (n {scored})"
    return _plus_minus(*result.interval(measure)) + left_out


def _plus_minus(mean: float, half: float) -> str:
    return f"{_number(mean)} ± {_number(half)}"


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{round(value, 3) + 0.0:.3f}"  # + 0.0 makes -0.000 read 0.000


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    clean = " ".join(printable(text).split())
    return textwrap.wrap(clean, width, initial_indent=indent, subsequent_indent=indent) or [""]
