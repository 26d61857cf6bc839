"""What a reward function is, and how several of them become one checked, weighted score.

A reward function has the signature of TRL's GRPOTrainer, so one function serves every trainer:

    def reward_func(prompts, completions, completion_ids, **columns) -> list[float | None]

`prompts` and `completions` are lists of texts and `completion_ids` a list of token id lists, one
entry a sample; every further column of the data set arrives as a list under its own name. A
function without `**columns` gets only the arguments that it names. None leaves a sample out.
"""

import functools
import inspect
import logging
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trl_recipes.errors import RecipeError
from trl_recipes.printable import printable

RewardFunc = Callable[..., list[float | None]]

_RESERVED = ("prompts", "completions", "completion_ids")
_log = logging.getLogger(__name__)


class Rewards:
    """Several weighted reward functions as one.

    Args:
        reward_funcs: one reward function or a list of them.
        reward_weights: one finite number a function; 1.0 each when None.

    Attributes:
        names: a name a function, for logging: its `__name__`, made distinct with `_2`, `_3`, ...
        weights: the weights, in the same order.

    Raises:
        RecipeError: no function, something that cannot be called, weights of another number or
            not finite.
    """

    def __init__(
        self,
        reward_funcs: RewardFunc | Sequence[RewardFunc],
        reward_weights: Sequence[float] | None = None,
    ):
        funcs = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        if not funcs:
            raise RecipeError("`reward_funcs` is empty. Give at least one reward function.")
        for number, func in enumerate(funcs):
            if not callable(func):
                raise RecipeError(
                    f"`reward_funcs[{number}]` is {func!r} ({type(func).__name__}), which cannot "
                    "be called. Give a function of prompts and completions."
                )
        self.reward_funcs: list[RewardFunc] = funcs
        self.weights = _checked_weights(reward_weights, len(funcs))
        self.names = _distinct([_name(func) for func in funcs])
        self._accepted = [_accepted_arguments(func) for func in funcs]
        self._warned = False

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> tuple[list[float], dict[str, list[float | None]]]:
        """Score a batch.

        Args:
            prompts: B texts.
            completions: B texts.
            completion_ids: B lists of token ids.
            columns: further columns of the data set, B entries each.

        Returns:
            The weighted sum for each sample (B numbers; a None counts as nothing), and the raw
            values of each function by name.

        Raises:
            RecipeError: a function returned the wrong number or kind of values, or one that is
                not finite. What a function raises itself is not caught.
        """
        raw = {
            name: self._call(index, prompts, completions, completion_ids, columns or {})
            for index, name in enumerate(self.names)
        }
        unscored = sum(all(v is None for v in sample) for sample in zip(*raw.values(), strict=True))
        if unscored and not self._warned:
            self._warned = True  # once is enough: a data set that does this does it all the time
            _log.warning(
                "%d of %d samples got None from every reward function (%s); their score is 0.",
                unscored,
                len(prompts),
                ", ".join(self.names),
            )
        totals = [
            math.fsum(
                weight * value
                for weight, value in zip(self.weights, sample, strict=True)
                if value is not None
            )
            for sample in zip(*raw.values(), strict=True)
        ]
        return totals, raw

    def check(
        self,
        prompts: Sequence[str] = ("The film", "I thought the plot"),
        completions: Sequence[str] = (" was a joy to watch.", " made no sense at all."),
        completion_ids: Sequence[Sequence[int]] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Call every function once on two samples, so that a mistake shows before training.

        Args:
            prompts: two texts; best the first two of the data set.
            completions: two texts.
            completion_ids: their token ids; made up when None.
            columns: the further columns of the same two rows.

        Raises:
            RecipeError: as for a call.
        """
        ids = completion_ids or [[0, 1]] * len(prompts)
        self(list(prompts), list(completions), ids, columns)

    def _call(
        self,
        index: int,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float | None]:
        arguments = {name: list(values) for name, values in columns.items()}
        arguments.update(
            prompts=list(prompts),
            completions=list(completions),
            completion_ids=list(completion_ids),
        )
        accepted = self._accepted[index]
        if accepted is not None:
            arguments = {name: value for name, value in arguments.items() if name in accepted}
        values = self.reward_funcs[index](**arguments)
        return _checked_values(values, self.names[index], prompts, completions)


def _checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1.0] * count
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
    values: Any, name: str, prompts: Sequence[str], completions: Sequence[str]
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
            f"completions; the first prompt is {_short(prompts[0])!r} with completion "
            f"{_short(completions[0])!r}. It must return one number (or None) a completion."
        )
    return [
        _checked_value(value, name, index, prompts[index], completions[index])
        for index, value in enumerate(values)
    ]


def _checked_value(value: Any, name: str, index: int, prompt: str, completion: str) -> float | None:
    if value is None:
        return None
    number = value
    if not isinstance(number, numbers.Real) and getattr(value, "ndim", None) == 0:
        number = value.item()  # a tensor that holds one number
    if not isinstance(number, numbers.Real) or not math.isfinite(number):
        kind = "" if isinstance(number, numbers.Real) else f" ({type(value).__name__})"
        raise RecipeError(
            f"Reward function `{name}` returned {_short(repr(value))}{kind} for sample {index}: "
            f"prompt {_short(prompt)!r}, completion {_short(completion)!r}. It must return a "
            "finite number, or None to leave the sample out."
        )
    return float(number)


def _accepted_arguments(func: RewardFunc) -> set[str] | None:
    """The names that `func` takes, or None where it takes any (or does not say)."""
    try:
        parameters = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


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
