"""What a reward function is, and how several of them become one checked, weighted score.

A reward function has the signature of TRL's GRPOTrainer, so one function serves every trainer:

    def reward_func(prompts, completions, completion_ids, **columns) -> list[float | None]

`prompts` and `completions` are lists of texts or of conversations (lists of messages with role and
content) and `completion_ids` a list of token id lists, one entry a sample; every further column of
the data set arrives as a list under its own name. A function without `**columns` gets only the
arguments that it names. None leaves a sample out. It may be `async`. Where TRL takes a model with a
classification head, or its name, so does `Rewards`.
"""

import asyncio
import functools
import inspect
import math
import numbers
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from statistics import fmean, pstdev
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from trl_recipes.data.conversations import Text, Texts, answers, are_conversations, plain_text
from trl_recipes.data.prompts import PROMPT, own_names
from trl_recipes.data.tokenizers import is_character_tokenizer
from trl_recipes.describe import printable
from trl_recipes.distributed import broadcast_from_main, gather, process_index, raise_on_all
from trl_recipes.errors import RecipeError
from trl_recipes.rewards.loading import RewardFunc, load_reward_funcs
from trl_recipes.rewards.models import SentimentReward, reward_of_model

Raw = Mapping[str, Sequence[float | None]]  # what each function gave, by its name

_LARGEST = float(torch.finfo(torch.float32).max)  # scores are trained on in float32
MEASURED = 256  # samples of the start model, of all processes together
_MADE_UP = (" was a joy to watch.", " made no sense at all.")

logger = logging.get_logger(__name__)


class TokenRewards(float):
    """The reward of a response that was given for each of its `tokens`: their sum."""

    def __new__(cls, tokens: Sequence[float]):
        """Add the tokens up."""
        total = super().__new__(cls, math.fsum(tokens))
        total.tokens = list(tokens)
        return total

    def __getnewargs__(self) -> tuple[list[float]]:
        return (self.tokens,)  # what `pickle` and `copy` make it of anew


class Scale(NamedTuple):
    """What one reward function gave on samples, in its own unit; nan where it gave nothing."""

    mean: float
    std: float
    least: float
    most: float
    count: int


class Rewards:
    """Several weighted reward functions as one.

    A model with a classification head stands for the score that it gives, a name or a mapping for
    what it is on the command line (`load_reward_funcs`). A function weighs 1, or its
    `default_weight`. `metrics` are called and logged and never optimized. All go by their
    `__name__`, made distinct with `_2`, `_3`, ...; `normalization` holds shift and scale of each.
    """

    def __init__(
        self,
        reward_funcs: RewardFunc | str | Sequence[RewardFunc | str],
        reward_weights: Sequence[float] | None = None,
        metrics: RewardFunc | str | Sequence[RewardFunc | str] = (),
    ):
        self.reward_funcs = _functions(reward_funcs, "reward_funcs")
        if not self.reward_funcs:
            raise RecipeError("`reward_funcs` is empty. Give at least one reward function.")
        self.weights = _checked_weights(reward_weights, self.reward_funcs)
        functions = [*self.reward_funcs, *_functions(metrics, "metrics")]
        names = _distinct([_name(func) for func in functions])
        count = len(self.reward_funcs)
        self.names, self.metric_names = names[:count], names[count:]
        self.by_name = dict(zip(names, functions, strict=True))
        self.normalization: dict[str, tuple[float, float]] = {}
        self.scales: dict[str, Scale] = {}  # on the start model's samples, once measured

    def __call__(
        self,
        prompts: Texts,
        completions: Texts,
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]] | None = None,
        **extras: Any,
    ) -> tuple[list[float], dict[str, list[float | None]]]:
        """Score a batch of B samples.

        `columns` are further columns of the data set, B entries each; `extras`, such as TRL's
        `trainer_state`, go to every function as they are. Returns the weighted sum of (normalized)
        values for each sample, where None counts as nothing, and the raw values by name.
        """
        arguments = _arguments(prompts, completions, completion_ids, columns, **extras)
        raw = _checked_calls(self.by_name, arguments)
        if any(all(raw[name][row] is None for name in self.names) for row in range(len(prompts))):
            logger.warning_once(
                "Samples that got None from every reward function (%s) count as 0.",
                ", ".join(self.names),
            )
        totals = self._weighted(raw, self.normalization)
        if not all(abs(total) <= _LARGEST for total in totals):
            raise RecipeError(
                f"The weighted sum of {', '.join(self.names)} is beyond what float32 holds "
                f"({_LARGEST:.2g}). Scale the values, or set smaller `reward_weights`."
            )
        return totals, raw

    def check(self, *samples: Any, **extras: Any) -> None:
        """Call every function that is `ready` once, so that a mistake shows before training."""
        ready = {n: func for n, func in self.by_name.items() if getattr(func, "ready", True)}
        _checked_calls(ready, _arguments(*samples, **extras))

    def raw_totals(self, raw: Raw) -> list[float]:
        """Weigh and add the raw values that a call returned, without normalization."""
        return self._weighted(raw, {})

    def about(self) -> dict[str, Any]:
        """Give what the record of a run says of its rewards."""
        weights = dict(zip(self.names, self.weights, strict=True))
        return {"rewards": weights, "metrics": self.metric_names}

    # On samples of the start model. PPO and RLOO weigh the score against a KL price in nats, and
    # one price fits every reward only where rewards have one unit: their deviation on these.

    def wants_reference_norm(self, reward_norm: str) -> bool:
        """Whether rewards are normalized: as told, or unless all are sentiment logits (`auto`)."""
        # the defaults of the KL coefficients were found for these logits
        logits = (isinstance(f, SentimentReward) and f.score == "logit" for f in self.reward_funcs)
        return reward_norm == "reference" or (reward_norm == "auto" and not all(logits))

    def measure(self, raw: Raw, normalize: bool) -> None:
        """Keep what each function gave on samples of the start model, and normalize by it."""
        self.scales = {name: measure(raw[name]) for name in self.names}
        if normalize:
            self.normalize(self.scales)

    def normalize(self, moments: Mapping[str, tuple[float, float]]) -> None:
        """Optimize (value - mean) / std of each function from now on; raw values stay as they are.

        `moments` are those on the start model's samples; a deviation of 0 or nan leaves the scale.
        """
        for name in self.names:
            mean, std = moments[name][:2]
            usable = math.isfinite(std) and std > 1e-8
            scored = math.isfinite(mean)
            if not usable:
                why = "is equal on" if scored else "gave None for"
                logger.warning("`%s` %s all samples of the start model: not scaled.", name, why)
            self.normalization[name] = (mean if scored else 0.0, std if usable else 1.0)

    def restore(self, normalization: Mapping[str, Sequence[float]]) -> None:
        """Normalize as a checkpoint says; a function that is new since then is not scaled."""
        known = {name: tuple(normalization[name]) for name in self.names if name in normalization}
        if known and (new := [name for name in self.names if name not in known]):
            logger.warning("%s: new since the checkpoint, so not normalized.", ", ".join(new))
        self.normalization = known

    def described(self) -> str:
        """Say what each function gave on the start model, in its own unit, and how it is taken."""
        if not self.scales:
            return ""
        each = [
            f"{printable(name)}: mean {s.mean:.4g}, standard deviation {s.std:.3g}, from "
            f"{s.least:.4g} to {s.most:.4g}"
            for name, s in self.scales.items()
        ]
        count, norm, taken = max(s.count for s in self.scales.values()), "none", "as it is"
        if self.normalization:
            norm, taken = "reference", "less its mean, over its standard deviation"
        return (
            f" Rewards on {count} samples of the start model: {'; '.join(each)}. Each is optimized "
            f"{taken} (reward_norm: {norm})."
        )

    def normalization_stats(self) -> dict[str, float]:
        """Give shift and scale of each normalized function, the same at every step."""
        return {
            f"rewards/{name}/{part}": value
            for name, moments in self.normalization.items()
            for part, value in zip(("shift", "scale"), moments, strict=True)
        }

    def by_token(self, raw: Raw) -> list[list[float]] | None:
        """Weigh the rewards that were given token by token, for each response; None without any."""
        rows: list[list[float]] = [[] for _ in raw[self.names[0]]]
        for name, weight in zip(self.names, self.weights, strict=True):
            _, scale = self.normalization.get(name, (0.0, 1.0))
            for row, value in zip(rows, raw[name], strict=True):
                tokens = [weight / scale * one for one in getattr(value, "tokens", [])]
                row[:] = map(sum, zip_longest(row, tokens, fillvalue=0.0))
        return rows if any(rows) else None

    def for_trl(self) -> list[RewardFunc]:
        """Return the functions as TRL's trainers take them: named as here, checked at each call."""
        functions = []
        for name in self.names:
            func = {name: self.by_name[name]}
            functions.append(lambda func=func, **given: _checked_calls(func, given).popitem()[1])
            functions[-1].__name__ = name
        return functions

    def _weighted(self, raw: Raw, normalization: Mapping[str, tuple[float, float]]) -> list[float]:
        parts = []
        for name, weight in zip(self.names, self.weights, strict=True):
            shift, scale = normalization.get(name, (0.0, 1.0))
            parts.append([0.0 if v is None else weight * (v - shift) / scale for v in raw[name]])
        return [math.fsum(sample) for sample in zip(*parts, strict=True)]


def rewards_of(
    config: Any,
    reward_funcs: RewardFunc | list[RewardFunc] | None,
    reward_weights: list[float] | None,
    metrics: RewardFunc | list[RewardFunc] | None,
) -> Rewards | None:
    """Collect reward functions and metrics of a trainer; None where there is no reward function.

    Those that the configuration names stand in place of those passed, its `metrics` beside them.
    """
    if config.reward_funcs:
        reward_funcs, reward_weights = load_reward_funcs(config.reward_funcs), None
    if reward_funcs is None:
        return None
    if config.reward_weights is not None:
        reward_weights = config.reward_weights
    own = [] if metrics is None else metrics if isinstance(metrics, list | tuple) else [metrics]
    named = load_reward_funcs(config.metrics or [], source="--metrics")
    return Rewards(reward_funcs, reward_weights, [*own, *named])


def measure(values: Sequence[float | None]) -> Scale:
    """Summarize what a reward function gave; None counts for nothing."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return Scale(*[math.nan] * 4, 0)
    return Scale(fmean(known), pstdev(known), min(known), max(known), len(known))


def rows_to_measure(rows: int, seed: int, accelerator: Accelerator) -> list[int]:
    """Draw the rows of a data set whose responses this process samples to measure rewards."""
    order = np.random.default_rng(seed).permutation(rows)
    return order[accelerator.process_index : MEASURED : accelerator.num_processes].tolist()


# What functions are called with


def reward_inputs(
    batch: Mapping[str, list], completions: list[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list, list, dict[str, list]]:
    """Take prompts, completions and further columns from a batch, as TRL's GRPOTrainer does.

    Where its column `prompt` holds conversations, each completion is one assistant's message;
    prompts without a column `query` are decoded from `input_ids`.
    """
    columns = own_names({n: values for n, values in batch.items() if n not in PROMPT})
    prompts = batch.get("prompt")
    if prompts and are_conversations(prompts):
        return prompts, answers(completions, prompts), columns
    texts = batch.get("query")
    if not texts:
        texts = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    return texts, completions, columns


def made_up(
    prompts: Texts, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[str], list[list[int]]]:
    """Make up a completion and its ids for each of at most two prompts, to try rewards on."""
    texts = [*_MADE_UP[: len(prompts)]]
    if is_character_tokenizer(tokenizer):  # which may not know every letter of these
        texts = [plain_text(prompt) for prompt in prompts]
    return texts, tokenizer(texts, add_special_tokens=False)["input_ids"]


def score_part(
    rewards: Rewards, once: bool, *samples: Any, **extras: Any
) -> tuple[list[float], dict[str, list[float | None]]]:
    """Score this process's part of a batch, as a call of `rewards` with all four arguments does.

    An error in one process is raised in all. With `once` the main process calls the functions,
    once, with the whole batch in the order of the processes.
    """
    if not once:
        return raise_on_all(functools.partial(rewards, *samples, **extras))
    *texts, columns = samples
    parts = gather([(*map(list, texts), dict(columns))])
    whole = ([row for part in parts for row in part[place]] for place in range(3))
    joined = {name: [value for part in parts for value in part[3][name]] for name in columns}
    scores, raw = broadcast_from_main(functools.partial(rewards, *whole, joined, **extras))
    first = sum(len(part[0]) for part in parts[: process_index()])
    mine = slice(first, first + len(texts[0]))
    return scores[mine], {name: values[mine] for name, values in raw.items()}


def check_rewards(rewards: Rewards, once: bool, *samples: Any, **extras: Any) -> None:
    """Call `rewards.check` in each process or, with `once`, in the main one alone."""
    call = functools.partial(rewards.check, *samples, **extras)
    (broadcast_from_main if once else raise_on_all)(call)


def _arguments(prompts, completions, completion_ids, columns=None, **extras) -> dict[str, Any]:
    """Collect what reward functions may ask for; a column never replaces the texts or extras."""
    texts = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
    given = {name: list(values) for name, values in texts.items()} | extras
    columns = {name: list(values) for name, values in (columns or {}).items()}
    for name in sorted(columns.keys() & given.keys()):
        logger.warning_once(
            "The data set's column `%s` does not reach reward functions: the trainer gives them "
            "something else by this name. Rename the column if they need it.",
            name,
        )
    return columns | given


def _chosen_arguments(func: RewardFunc, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Choose the arguments that `func` takes; a missing one that it needs is an error."""
    for missing in sorted(_needs(func) - arguments.keys()):
        raise RecipeError(
            f"Reward function `{name}` wants `{missing}`, but the data set has no such column. "
            f"There are: {', '.join(sorted(arguments))}."
        )
    parameters = inspect.signature(func).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {name: arguments[name] for name in parameters if name in arguments}


def _needs(func: RewardFunc) -> set[str]:
    parameters = inspect.signature(func).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {parameter.name for parameter in named if parameter.default is parameter.empty}


def needs_columns(func: RewardFunc) -> bool:
    """Tell whether a reward function needs more than a text: a column of the data set, say."""
    known = {"prompts", "completions", "completion_ids"}
    return bool(_needs(func) - known) or getattr(func, "column", None) is not None


def _own(value: Any) -> Any:
    """Copy lists and dicts, those inside included, so that changing them changes no other's."""
    if isinstance(value, dict):
        return {name: _own(entry) for name, entry in value.items()}
    if isinstance(value, list):
        nested = any(isinstance(entry, list | dict) for entry in value)
        return [_own(entry) for entry in value] if nested else value[:]
    return value


# Calling them


def _checked_calls(
    functions: Mapping[str, RewardFunc], arguments: Mapping[str, Any]
) -> dict[str, list[float | None]]:
    """Call each function; asynchronous ones are awaited at the same time, as in TRL."""
    returned: dict[str, Any] = {}
    for name in sorted(functions, key=lambda name: _is_async(functions[name])):
        with _named_errors(name, arguments):
            chosen = _chosen_arguments(functions[name], name, arguments)
            returned[name] = functions[name](**_own(dict(chosen)))
    pending = {name: result for name, result in returned.items() if inspect.isawaitable(result)}
    if pending:
        work = asyncio.run_coroutine_threadsafe(_await_all(pending, arguments), _event_loop())
        returned |= zip(pending, work.result(), strict=True)
    return {name: _checked_values(returned[name], name, arguments) for name in functions}


@contextmanager
def _named_errors(name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Say which function an exception is of and where in it; nothing is called again for that."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # a user's function may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        prompt, completion = (_shown(arguments[key][0]) for key in ("prompts", "completions"))
        raise RecipeError(
            f"Reward function `{name}` raised {type(error).__name__}: {error} "
            f"({frame.filename}, line {frame.lineno}) for a batch that begins with {prompt}, "
            f"completion {completion}. Fix the function, or return None for a sample that it "
            "cannot score."
        ) from error


async def _await_all(pending: Mapping[str, Any], arguments: Mapping[str, Any]) -> list[Any]:
    async def one(name: str) -> Any:
        with _named_errors(name, arguments):
            return await pending[name]

    return await asyncio.gather(*map(one, pending))


@functools.lru_cache(maxsize=1)
def _event_loop() -> asyncio.AbstractEventLoop:
    """Start an event loop in a thread of its own, the same for every call."""
    # A client that a function keeps belongs to one loop; the caller's own may be running.
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="reward functions", daemon=True).start()
    return loop


def _is_async(func: RewardFunc) -> bool:
    return any(map(inspect.iscoroutinefunction, (func, getattr(func, "__call__", None))))  # noqa: B004


# Checking what they are and give


def _functions(given: Any, argument: str) -> list[RewardFunc]:
    """Return one function or several as a list, with models turned into functions."""
    entries = list(given) if isinstance(given, list | tuple) else [given]
    return [_function(entry, f"`{argument}[{i}]`") for i, entry in enumerate(entries)]


def _function(entry: Any, source: str) -> RewardFunc:
    if isinstance(entry, str | Mapping):
        return load_reward_funcs([entry], source=source)[0]
    if hasattr(entry, "config") and hasattr(entry, "forward"):
        return reward_of_model(entry, source)
    if not callable(entry):
        raise RecipeError(
            f"{source} is {entry!r} ({type(entry).__name__}), which cannot be called. Give a "
            "function of prompts and completions."
        )
    return entry


def _checked_weights(weights: Sequence[float] | None, functions: list[RewardFunc]) -> list[float]:
    if weights is None:
        return [float(getattr(func, "default_weight", 1.0)) for func in functions]
    if len(weights) != len(functions):
        raise RecipeError(
            f"`reward_weights` has {len(weights)} entries ({list(weights)}) for {len(functions)} "
            "reward function(s). Give one weight for each function."
        )
    for weight in weights:
        if not isinstance(weight, numbers.Real) or not abs(weight) <= _LARGEST:
            raise RecipeError(f"`reward_weights` holds {weight!r}. Give finite numbers.")
    return [float(weight) for weight in weights]


def _checked_values(values: Any, name: str, arguments: Mapping[str, Any]) -> list[float | None]:
    """Return the values of one function as a list of B floats or None."""
    if hasattr(values, "tolist"):  # numpy arrays and tensors
        values = values.tolist()
    wanted = len(arguments["prompts"])
    if not isinstance(values, list | tuple) or len(values) != wanted:
        count = len(values) if isinstance(values, list | tuple) else f"{values!r:.80}"
        raise RecipeError(
            f"Reward function `{name}` returned {count} for {wanted} completions. It must return "
            f"a list of {wanted} numbers (or None), one a completion."
        )
    return [_checked(value, name, arguments, row) for row, value in enumerate(values)]


def _checked(value: Any, name: str, arguments: Mapping[str, Any], row: int) -> float | None:
    """Return the value of one sample, a number or one for each token, as a float or None."""
    if value is None:
        return None
    if hasattr(value, "tolist"):
        value = value.tolist()
    length = len(arguments["completion_ids"][row])
    if isinstance(value, list | tuple) and len(value) == length:
        return TokenRewards([_checked(one, name, arguments, row) or 0.0 for one in value])
    if not isinstance(value, numbers.Real) or not abs(value) <= _LARGEST:
        prompt, completion = (_shown(arguments[key][row]) for key in ("prompts", "completions"))
        raise RecipeError(
            f"Reward function `{name}` returned {value!r:.80} ({type(value).__name__}) for sample "
            f"{row}: prompt {prompt}, completion {completion} of {length} tokens. It must return a "
            "finite number that float32 holds, a list of one for each token, or None to leave the "
            "sample out."
        )
    return float(value)


def _name(func: RewardFunc) -> str:
    while isinstance(func, functools.partial):
        func = func.func
    return printable(getattr(func, "__name__", type(func).__name__))


def _distinct(names: list[str]) -> list[str]:
    distinct: list[str] = []
    for name in names:
        candidate, number = name, 2
        while candidate in distinct:
            candidate, number = f"{name}_{number}", number + 1
        distinct.append(candidate)
    return distinct


def _shown(text: Text) -> str:
    text = plain_text(text)
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
