"""What a reward function is, and how several of them become one checked, weighted score.

A reward function has the signature of TRL's GRPOTrainer, so one function serves every trainer:

    def reward_func(prompts, completions, completion_ids, **columns) -> list[float | None]

`prompts` and `completions` are lists of texts or of conversations (lists of messages with role and
content) and `completion_ids` a list of token id lists, one entry a sample; every further column of
the data set arrives as a list under its own name. A function without `**columns` gets only the
arguments that it names. None leaves a sample out. It may be `async`. Where TRL takes a model with a
classification head, or its name, so does `Rewards`.
"""

import functools
import inspect
import logging
import math
import numbers
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from trl_recipes.describe import printable
from trl_recipes.errors import RecipeError
from trl_recipes.rewards.event_loop import await_all
from trl_recipes.rewards.text import Message, plain_text

RewardFunc = Callable[..., list[float | None]]
Text = str | list[Message]

_log = logging.getLogger(__name__)


class Rewards:
    """Several weighted reward functions as one.

    Args:
        reward_funcs: one reward function or a list of them; a model with a classification head, or
            its name, stands for the score that it gives.
        reward_weights: one finite number a function. None: each function's `default_weight`, which
            is -1 for the penalties of this package, or 1.
        metrics: further such functions, which are called and logged and never optimised.

    Attributes:
        names: a name a function, for logging: its `__name__`, made distinct with `_2`, `_3`, ...
        metric_names: the same for the metrics.
        weights: the weights, in the order of the functions.
        normalisation: shift and scale of each function by name; empty until `normalise`.

    Raises:
        RecipeError: no function, something that cannot be called, weights of another number or
            not finite, or a model that cannot be loaded.
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
        names = _distinct([_name(func) for func in [*self.reward_funcs, *self.metrics]])
        count = len(self.reward_funcs)
        self.names, self.metric_names = names[:count], names[count:]
        self.normalisation: dict[str, tuple[float, float]] = {}
        self._warned = False

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]] | None = None,
        **extras: Any,
    ) -> tuple[list[float], dict[str, list[float | None]]]:
        """Score a batch.

        Args:
            prompts: B texts or conversations.
            completions: B texts or conversations.
            completion_ids: B lists of token ids.
            columns: further columns of the data set, B entries each.
            **extras: what goes to every function as it is, such as TRL's `trainer_state`.

        Returns:
            The weighted sum for each sample, of normalised values after `normalise` (B numbers; a
            None counts as nothing), and the raw values of each function and metric by name.

        Raises:
            RecipeError: a function wants a column that is not there, raised an exception (which is
                the cause of this one), or returned the wrong number or kind of values, or one that
                is not finite.
        """
        arguments = extras | {name: list(values) for name, values in (columns or {}).items()}
        arguments |= {
            "prompts": list(prompts),
            "completions": list(completions),
            "completion_ids": list(completion_ids),
        }
        functions = [*self.reward_funcs, *self.metrics]
        names = [*self.names, *self.metric_names]
        returned = _call_all(functions, names, arguments)
        raw = {
            name: _checked_values(values, name, prompts, completions)
            for name, values in zip(names, returned, strict=True)
        }
        self._warn_of_unscored(raw)
        return self._weighted(raw, self.normalisation), raw

    def raw_totals(self, raw: Mapping[str, Sequence[float | None]]) -> list[float]:
        """Weigh and add raw values, without normalisation.

        Args:
            raw: B values of each function, as a call returned them.
        """
        return self._weighted(raw, {})

    def normalise(self, moments: Mapping[str, tuple[float, float]]) -> None:
        """Fix a shift and a scale for each function: from now on (value - mean) / std is optimised.

        Raw values stay as they are. A spread of 0 or none leaves the scale at 1.

        Args:
            moments: mean and standard deviation of each function on the reference model's samples;
                nan where it scored none.
        """
        for name in self.names:
            mean, std = moments[name]
            usable = math.isfinite(std) and std > 1e-8
            if not usable:
                _log.warning(
                    "`%s` gives all samples of the reference model the same value; it is not "
                    "scaled.",
                    name,
                )
            shift = mean if math.isfinite(mean) else 0.0
            self.normalisation[name] = (shift, std if usable else 1.0)

    def check(
        self,
        prompts: Sequence[Text] = ("The film", "I thought the plot"),
        completions: Sequence[Text] = (" was a joy to watch.", " made no sense at all."),
        completion_ids: Sequence[Sequence[int]] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        **extras: Any,
    ) -> None:
        """Call every function once on two samples, so that a mistake shows before training.

        Args:
            prompts: two texts or conversations; best the first two of the data set.
            completions: two texts or conversations.
            completion_ids: their token ids; made up when None.
            columns: the further columns of the same two rows.
            **extras: as for a call.

        Raises:
            RecipeError: as for a call.
        """
        ids = completion_ids or [[0, 1]] * len(prompts)
        self(list(prompts), list(completions), ids, columns, **extras)

    def for_trl(self) -> list[RewardFunc]:
        """Give the reward functions as TRL's own trainers take them, by their names here.

        They are checked and their exceptions told as by a call. The trainer wants `weights` as its
        `reward_weights`.
        """
        pairs = zip(self.reward_funcs, self.names, strict=True)
        return [_for_trl(func, name) for func, name in pairs]

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


def _functions(given: Any, argument: str) -> list[RewardFunc]:
    """One function or several as a list, with models turned into functions."""
    entries = list(given) if isinstance(given, list | tuple) else [given]
    return [_function(entry, f"`{argument}[{i}]`") for i, entry in enumerate(entries)]


def _function(entry: Any, source: str) -> RewardFunc:
    if isinstance(entry, str) or (hasattr(entry, "config") and hasattr(entry, "forward")):
        from trl_recipes.rewards.reward_model import reward_of_model

        return reward_of_model(entry, source)
    if not callable(entry):
        raise RecipeError(
            f"{source} is {entry!r} ({type(entry).__name__}), which cannot be called. Give a "
            "function of prompts and completions."
        )
    return entry


def _call_all(
    functions: Sequence[RewardFunc], names: Sequence[str], arguments: Mapping[str, Any]
) -> list[Any]:
    """What each function returned, in order; asynchronous ones are awaited together, as in TRL."""
    returned: dict[int, Any] = {}
    for index in sorted(range(len(functions)), key=lambda index: _is_async(functions[index])):
        chosen = _chosen_arguments(functions[index], names[index], arguments)
        with _told_of(functions[index], names[index], chosen):
            returned[index] = functions[index](**chosen)
    pending = [index for index, result in returned.items() if inspect.isawaitable(result)]
    with _told_of(None, ", ".join(names[index] for index in pending), arguments):
        awaited = await_all([returned[index] for index in pending])
    returned |= dict(zip(pending, awaited, strict=True))
    return [returned[index] for index in range(len(functions))]


def _for_trl(func: RewardFunc, name: str) -> RewardFunc:
    """A function that checks what `func` returns."""

    def checked(**arguments: Any) -> list[float | None]:
        (values,) = _call_all([func], [name], arguments)
        return _checked_values(values, name, arguments["prompts"], arguments["completions"])

    checked.__name__ = name
    return checked


@contextmanager
def _told_of(func: RewardFunc | None, name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Say which function an exception is of, where in it, and at which sample."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # a user's function may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        index = 0 if func is None else _first_failing(func, arguments)
        at = f"for sample {index}: prompt" if index is not None else "for a batch that begins with"
        prompt, completion = (
            _shown(arguments[key][index or 0]) if arguments.get(key) else "(not asked for)"
            for key in ("prompts", "completions")
        )
        raise RecipeError(
            f"Reward function `{name}` raised {type(error).__name__}: {error} "
            f"({frame.filename}, line {frame.lineno}) {at} {prompt}, completion {completion}. Mend "
            "the function, or return None for a sample that it cannot score."
        ) from error


def _first_failing(func: RewardFunc, arguments: Mapping[str, Any]) -> int | None:
    """The first sample that makes a function raise by itself; None where none does."""
    count = max(len(values) for values in arguments.values() if isinstance(values, list))
    for index in range(count):
        alone = {
            name: values[index : index + 1] if isinstance(values, list) else values
            for name, values in arguments.items()
        }
        try:
            func(**alone)
        except Exception:  # the same one, or one like it
            return index
    return None


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
        if not isinstance(weight, numbers.Real) or not math.isfinite(weight):
            raise RecipeError(
                f"`reward_weights` holds {weight!r}. Every weight must be a finite number."
            )
    return [float(weight) for weight in weights]


def _checked_values(
    values: Any, name: str, prompts: Sequence[Text], completions: Sequence[Text]
) -> list[float | None]:
    """The values of one function as a list of B floats or None."""
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
        _checked_value(value, name, index, prompts[index], completions[index])
        for index, value in enumerate(values)
    ]


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
    if not isinstance(number, numbers.Real) or not math.isfinite(number):
        kind = "" if isinstance(number, numbers.Real) else f" ({type(value).__name__})"
        raise RecipeError(
            f"Reward function `{name}` returned {_short(repr(value))}{kind} for sample {index}: "
            f"prompt {_shown(prompt)}, completion {_shown(completion)}. It must return a "
            "finite number, or None to leave the sample out."
        )
    return float(number)


def _chosen_arguments(
    func: RewardFunc, name: str, arguments: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The arguments that `func` takes; one that it needs and that is not there is an error."""
    try:
        parameters = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return arguments
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
