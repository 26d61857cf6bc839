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
import logging
import math
import numbers
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch

from trl_recipes.data.conversations import Text, plain_text
from trl_recipes.data.files import say_once
from trl_recipes.describe import printable
from trl_recipes.distributed import broadcast_from_main, gather, process_index, raise_on_all
from trl_recipes.errors import RecipeError
from trl_recipes.rewards.models import reward_of_model
from trl_recipes.rewards.scale import Scale, describe_scales, measure

RewardFunc = Callable[..., list[float | None]]

_LARGEST = float(torch.finfo(torch.float32).max)  # scores are trained on in float32

_log = logging.getLogger(__name__)


class TokenRewards(float):
    """The reward of a response that was given for each of its `tokens`: their sum."""

    def __new__(cls, tokens: Sequence[float]):
        """Add the tokens up."""
        total = super().__new__(cls, math.fsum(tokens))
        total.tokens = list(tokens)
        return total


class Rewards:
    """Several weighted reward functions as one.

    A model with a classification head, or its name, stands for the score that it gives. Where no
    weights are given each function weighs its `default_weight`, -1 for the penalties of this
    package, or 1. `metrics` are further such functions, called and logged and never optimized.

    Functions go by their `__name__`, made distinct with `_2`, `_3`, ..., in `names` and
    `metric_names`. `normalisation` holds each one's shift and scale; it is empty until `normalise`.
    """

    def __init__(
        self,
        reward_funcs: RewardFunc | str | Sequence[RewardFunc | str],
        reward_weights: Sequence[float] | None = None,
        metrics: RewardFunc | str | Sequence[RewardFunc | str] = (),
    ):
        self.reward_funcs = _functions(reward_funcs, "reward_funcs")
        self.metrics = _functions(metrics, "metrics")
        if not self.reward_funcs:
            raise RecipeError("`reward_funcs` is empty. Give at least one reward function.")
        self.weights = _checked_weights(reward_weights, self.reward_funcs)
        functions = [*self.reward_funcs, *self.metrics]
        names = _distinct([_name(func) for func in functions])
        count = len(self.reward_funcs)
        self.names, self.metric_names = names[:count], names[count:]
        self.by_name = dict(zip(names, functions, strict=True))
        self.normalisation: dict[str, tuple[float, float]] = {}
        self.scales: dict[str, Scale] = {}  # on the start model's samples, once measured
        self._warned = False

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]] | None = None,
        **extras: Any,
    ) -> tuple[list[float], dict[str, list[float | None]]]:
        """Score a batch of B samples.

        `columns` are further columns of the data set, B entries each; `extras` go to every function
        as they are, such as TRL's `trainer_state`. Returns the weighted sum for each sample, of
        normalized values after `normalise` (a None counts as nothing), and the raw values of each
        function and metric by name.
        """
        arguments = _arguments(prompts, completions, completion_ids, columns, extras)
        raw = _checked_calls(self.by_name, arguments)
        self._warn_of_unscored(raw)
        totals = self._weighted(raw, self.normalisation)
        if not all(abs(total) <= _LARGEST for total in totals):
            raise RecipeError(
                f"The weighted sum of {', '.join(self.names)} is beyond what float32 holds "
                f"({_LARGEST:.2g}). Scale the values, or set smaller `reward_weights`."
            )
        return totals, raw

    def check(
        self,
        prompts: Sequence[Text] = ("The film", "I thought the plot"),
        completions: Sequence[Text] = (" was a joy to watch.", " made no sense at all."),
        completion_ids: Sequence[Sequence[int]] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        **extras: Any,
    ) -> None:
        """Call every function once on two samples, so that a mistake shows before training.

        A function whose attribute `ready` is false, such as one whose model is trained later, is
        left out. Token ids are made up when None.
        """
        ids = completion_ids or [[0, 1]] * len(prompts)
        ready = {n: func for n, func in self.by_name.items() if getattr(func, "ready", True)}
        _checked_calls(ready, _arguments(prompts, completions, ids, columns, extras))

    def raw_totals(self, raw: Mapping[str, Sequence[float | None]]) -> list[float]:
        """Weigh and add the raw values that a call returned, without normalization."""
        return self._weighted(raw, {})

    def measure(self, raw: Mapping[str, Sequence[float | None]], normalise: bool) -> None:
        """Keep what each function gave on samples of the start model, and normalize by it."""
        self.scales = {name: measure(raw[name]) for name in self.names}
        if normalise:
            self.normalise(self.scales)

    def described(self) -> str:
        """Say what was measured, and how it is optimized."""
        return f" {describe_scales(self.scales, bool(self.normalisation))}" if self.scales else ""

    def normalization_stats(self) -> dict[str, float]:
        """Give shift and scale of each normalized function, the same at every step."""
        pairs = self.normalisation.items()
        return {
            f"rewards/{name}/{part}": value
            for name, moments in pairs
            for part, value in zip(("shift", "scale"), moments, strict=True)
        }

    def normalise(self, moments: Mapping[str, tuple[float, float]]) -> None:
        """Optimize (value - mean) / std of each function from now on; raw values stay as they are.

        `moments` are mean and standard deviation of each function on the reference model's samples,
        nan where it scored none. A standard deviation of 0 or nan leaves the scale at 1.
        """
        for name in self.names:
            mean, std = moments[name][:2]
            usable = math.isfinite(std) and std > 1e-8
            if not usable:
                _log.warning(
                    "`%s` gives all samples of the reference model the same value; it is not "
                    "scaled.",
                    name,
                )
            shift = mean if math.isfinite(mean) else 0.0
            self.normalisation[name] = (shift, std if usable else 1.0)

    def by_token(self, raw: Mapping[str, Sequence[float | None]]) -> list[list[float]] | None:
        """Weigh the rewards that were given token by token, for each response; None without any.

        They are part of the scores that a call returned; a response without any has an empty list.
        """
        rows: list[list[float]] = [[] for _ in raw[self.names[0]]]
        for name, weight in zip(self.names, self.weights, strict=True):
            _, scale = self.normalisation.get(name, (0.0, 1.0))
            for row, value in zip(rows, raw[name], strict=True):
                tokens = [weight / scale * one for one in getattr(value, "tokens", [])]
                row[:] = map(sum, zip_longest(row, tokens, fillvalue=0.0))
        return rows if any(rows) else None

    def for_trl(self) -> list[RewardFunc]:
        """Return the functions as TRL's trainers take them: named as here, checked at each call.

        The trainer wants `weights` as its `reward_weights`.
        """
        return [_for_trl(self.by_name[name], name) for name in self.names]

    def _weighted(
        self,
        raw: Mapping[str, Sequence[float | None]],
        normalisation: Mapping[str, tuple[float, float]],
    ) -> list[float]:
        parts = []
        for name, weight in zip(self.names, self.weights, strict=True):
            shift, scale = normalisation.get(name, (0.0, 1.0))
            parts.append([0.0 if v is None else weight * (v - shift) / scale for v in raw[name]])
        return [math.fsum(sample) for sample in zip(*parts, strict=True)]

    def _warn_of_unscored(self, raw: Mapping[str, Sequence[float | None]]) -> None:
        samples = list(zip(*(raw[name] for name in self.names), strict=True))
        unscored = sum(all(value is None for value in sample) for sample in samples)
        if unscored and not self._warned:
            self._warned = True  # once is enough: a data set that does this does it all the time
            _log.warning(
                "%d of %d samples got None from every reward function (%s); their score is 0.",
                unscored,
                len(samples),
                ", ".join(self.names),
            )


def score_part(
    rewards: Rewards,
    once: bool,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
    **extras: Any,
) -> tuple[list[float], dict[str, list[float | None]]]:
    """Score this process's part of a batch; every process calls this with its own.

    With `once` the main process calls the functions, once, with the whole batch in the order of the
    processes. Returns what a call of `rewards` does, for the part; an error is raised in all
    processes, wherever it happened.
    """
    if not once:
        call = functools.partial(rewards, prompts, completions, completion_ids, columns, **extras)
        return raise_on_all(call)
    parts = gather([(list(prompts), list(completions), list(completion_ids), dict(columns))])
    texts = ([row for part in parts for row in part[place]] for place in range(3))
    joined = {name: [value for part in parts for value in part[3][name]] for name in columns}
    scores, raw = broadcast_from_main(functools.partial(rewards, *texts, joined, **extras))
    mine = part_of(len(prompts))
    return scores[mine], {name: values[mine] for name, values in raw.items()}


def part_of(count: int) -> slice:
    """Return the place of this process's part, of `count` entries, in the whole batch."""
    before = gather([count])[: process_index()]
    return slice(sum(before), sum(before) + count)


def check_rewards(rewards: Rewards, once: bool, *samples: Any, **extras: Any) -> None:
    """Call `rewards.check` in each process or, with `once`, in the main one alone."""
    (broadcast_from_main if once else raise_on_all)(
        functools.partial(rewards.check, *samples, **extras)
    )


def _functions(given: Any, argument: str) -> list[RewardFunc]:
    """Return one function or several as a list, with models turned into functions."""
    entries = list(given) if isinstance(given, list | tuple) else [given]
    return [_function(entry, f"`{argument}[{i}]`") for i, entry in enumerate(entries)]


def _function(entry: Any, source: str) -> RewardFunc:
    if isinstance(entry, str) or (hasattr(entry, "config") and hasattr(entry, "forward")):
        return reward_of_model(entry, source)
    if not callable(entry):
        raise RecipeError(
            f"{source} is {entry!r} ({type(entry).__name__}), which cannot be called. Give a "
            "function of prompts and completions."
        )
    return entry


def _arguments(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]] | None,
    extras: Mapping[str, Any],
) -> dict[str, Any]:
    """Collect what reward functions may ask for; a column never replaces the texts or extras."""
    texts = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
    given = {name: list(values) for name, values in texts.items()} | dict(extras)
    for name in sorted((columns or {}).keys() & given.keys()):
        say_once(
            f"The data set's column `{name}` does not reach reward functions: the trainer gives "
            "them something else by this name. Rename the column if they need it."
        )
    return {name: list(values) for name, values in (columns or {}).items()} | given


def _own(value: Any) -> Any:
    """Copy lists and dicts, those inside included, so that changing them changes no other's."""
    if isinstance(value, dict):
        return {name: _own(entry) for name, entry in value.items()}
    if isinstance(value, list):
        nested = any(isinstance(entry, list | dict) for entry in value)
        return [_own(entry) for entry in value] if nested else value[:]
    return value


def _checked_calls(
    functions: Mapping[str, RewardFunc], arguments: Mapping[str, Any]
) -> dict[str, list[float | None]]:
    """Call each function; asynchronous ones are awaited at the same time, as in TRL."""
    returned: dict[str, Any] = {}
    for name in sorted(functions, key=lambda name: _is_async(functions[name])):
        chosen = _chosen_arguments(functions[name], name, arguments)
        with _named_errors(name, chosen):
            returned[name] = functions[name](**_own(dict(chosen)))
    pending = {name: result for name, result in returned.items() if inspect.isawaitable(result)}
    returned |= _await_all(pending, arguments)
    samples = [arguments[key] for key in ("prompts", "completions", "completion_ids")]
    return {name: _checked_values(returned[name], name, *samples) for name in functions}


def _for_trl(func: RewardFunc, name: str) -> RewardFunc:
    def checked(**arguments: Any) -> list[float | None]:
        return _checked_calls({name: func}, arguments)[name]

    checked.__name__ = name
    return checked


@contextmanager
def _named_errors(name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Say which function an exception is of and where in it; nothing is called again for that."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # a user's function may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        prompt, completion = (
            _shown(arguments[key][0]) if arguments.get(key) else "(not asked for)"
            for key in ("prompts", "completions")
        )
        raise RecipeError(
            f"Reward function `{name}` raised {type(error).__name__}: {error} "
            f"({frame.filename}, line {frame.lineno}) for a batch that begins with {prompt}, "
            f"completion {completion}. Fix the function, or return None for a sample that it "
            "cannot score."
        ) from error


def _await_all(
    pending: Mapping[str, Awaitable[Any]], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Await all at the same time and return their results by name."""
    if not pending:
        return {}

    async def one(name: str, awaitable: Awaitable[Any]) -> Any:
        with _named_errors(name, arguments):
            return await awaitable

    async def every_one() -> list[Any]:
        return await asyncio.gather(*(one(*item) for item in pending.items()))

    results = asyncio.run_coroutine_threadsafe(every_one(), _event_loop()).result()
    return dict(zip(pending, results, strict=True))


@functools.lru_cache(maxsize=1)
def _event_loop() -> asyncio.AbstractEventLoop:
    """Start an event loop in a thread of its own, the same for every call.

    Clients that a function keeps, of a judge behind an API for instance, belong to the loop that
    they were first used in; and the caller's own loop may be running, as a notebook's is.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="reward functions", daemon=True).start()
    return loop


def _is_async(func: RewardFunc) -> bool:
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(
        getattr(func, "__call__", None)  # noqa: B004  an object whose __call__ is async
    )


def _checked_weights(
    weights: Sequence[float] | None, functions: Sequence[RewardFunc]
) -> list[float]:
    count = len(functions)
    if weights is None:
        return [float(getattr(func, "default_weight", 1.0)) for func in functions]
    if isinstance(weights, numbers.Real):
        weights = [weights]
    if len(weights) != count:
        raise RecipeError(
            f"`reward_weights` has {len(weights)} entries ({list(weights)}) for {count} reward "
            "function(s). Give one weight for each function."
        )
    for weight in weights:
        if not isinstance(weight, numbers.Real) or not abs(weight) <= _LARGEST:
            raise RecipeError(
                f"`reward_weights` holds {weight!r}. Every weight must be a finite number."
            )
    return [float(weight) for weight in weights]


def _checked_values(
    values: Any,
    name: str,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    completion_ids: Sequence[Sequence[int]],
) -> list[float | None]:
    """Return the values of one function as a list of B floats or None."""
    if hasattr(values, "tolist"):  # numpy arrays and tensors
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise RecipeError(
            f"Reward function `{name}` returned {_short(repr(values))} ({type(values).__name__}). "
            f"It must return a list of {len(prompts)} numbers, one a completion."
        )
    if len(values) != len(prompts):
        raise RecipeError(
            f"Reward function `{name}` returned {len(values)} values for {len(prompts)} "
            f"completions; the first prompt is {_shown(prompts[0])} with completion "
            f"{_shown(completions[0])}. It must return one number (or None) a completion."
        )
    return [
        _checked_tokens(value, name, index, *sample)
        if getattr(value, "ndim", 0) == 1 or isinstance(value, list | tuple)
        else _checked_value(value, name, index, *sample[:2])
        for index, (value, *sample) in enumerate(
            zip(values, prompts, completions, completion_ids, strict=True)
        )
    ]


def _checked_tokens(
    values: Any, name: str, index: int, prompt: Text, completion: Text, ids: Sequence[int]
) -> TokenRewards:
    """Return the values of one function for each token of a response."""
    if len(values) != len(ids):
        raise RecipeError(
            f"Reward function `{name}` returned a list of {len(values)} values for sample {index}: "
            f"prompt {_shown(prompt)}, completion {_shown(completion)}, which has {len(ids)} "
            "token(s). Return one number for it, or one for each of its `completion_ids`."
        )
    checked = [_checked_value(value, name, index, prompt, completion) for value in values]
    return TokenRewards([0.0 if value is None else value for value in checked])


def _checked_value(
    value: Any, name: str, index: int, prompt: Text, completion: Text
) -> float | None:
    if value is None:
        return None
    if inspect.iscoroutine(value):
        value.close()
        raise RecipeError(
            f"Reward function `{name}` returned a coroutine for sample {index}, never awaited. "
            "Make the function `async` and return `await asyncio.gather(*coroutines)`."
        )
    number = value
    if not isinstance(number, numbers.Real) and getattr(value, "ndim", None) == 0:
        number = value.item()  # a tensor that holds one number
    if not isinstance(number, numbers.Real) or not abs(number) <= _LARGEST:
        large = (
            isinstance(number, numbers.Rational) and abs(number) > _LARGEST
        )  # python may refuse to write it
        shown = "a number of dozens of digits" if large else _short(repr(value))
        kind = "" if isinstance(number, numbers.Real) else f" ({type(value).__name__})"
        raise RecipeError(
            f"Reward function `{name}` returned {shown}{kind} for sample {index}: "
            f"prompt {_shown(prompt)}, completion {_shown(completion)}. It must return a "
            "finite number that float32 holds, or None to leave the sample out."
        )
    return float(number)


def _chosen_arguments(
    func: RewardFunc, name: str, arguments: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Choose the arguments that `func` takes; a missing one that it needs is an error."""
    try:
        parameters = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return arguments
    if any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters):
        raise RecipeError(
            f"Reward function `{name}` takes an argument by its place alone, but gets all by name. "
            "Give a function of prompts and completions, such as `lambda completions: [...]`."
        )
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in arguments:
            raise RecipeError(
                f"Reward function `{name}` wants `{parameter.name}`, but the data set has no such "
                f"column. There are: {', '.join(sorted(arguments))}."
            )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    return {p.name: arguments[p.name] for p in named if p.name in arguments}


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


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _shown(text: Text) -> str:
    return repr(_short(plain_text(text)))
