"""Reward functions by name, from a command line or a YAML file.

    --reward_funcs my_rewards.py:short my_package.rewards:kind RepetitionPenalty runs/reward-model

    reward_funcs:
      - my_rewards.py:short
      - LengthPenalty: {max_length: 20}

A file of the user's runs only because the user names it there; nothing that comes with a model or
a data set is ever run.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from trl_recipes import rewards
from trl_recipes.errors import RecipeError
from trl_recipes.rewards.base import RewardFunc, Rewards


def load_reward_funcs(
    specs: Sequence[str | Mapping[str, Any]], *, source: str = "--reward_funcs"
) -> list[RewardFunc]:
    """Turn names into reward functions.

    Args:
        specs: each one of
            `module.path:function` or `file.py:function`, the user's own;
            the name of a kind of this package, such as `RepetitionPenalty`;
            a model with a classification head: a folder or a hub name;
            a mapping of one of the first two to its settings, `{LengthPenalty: {max_length: 20}}`;
            a function of the user's then gets the settings and gives the reward function.
        source: where they came from, for messages.

    Raises:
        RecipeError: there is no such file, module, function or model, it cannot be called, or it
            does not take the settings.
    """
    return [_load(spec, source) for spec in specs]


def rewards_of(
    config: Any,
    reward_funcs: Callable | list[Callable] | None,
    reward_weights: list[float] | None,
    metrics: Callable | list[Callable] | None,
) -> Rewards | None:
    """Collect reward functions and metrics; those that the configuration names go first.

    Args:
        config: of a trainer; its `reward_funcs` stand in place of those passed, its
            `reward_weights` likewise, its `metrics` beside them.
        reward_funcs: one reward function or several.
        reward_weights: weight of each.
        metrics: one function or several that are only logged.

    Returns:
        None where there is no reward function.

    Raises:
        RecipeError: as `Rewards` and `load_reward_funcs`.
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


def kinds() -> list[str]:
    """Name the kinds of rewards that this package has."""
    return [name for name in rewards.__all__ if name.endswith(("Reward", "Penalty"))]


def _load(spec: str | Mapping[str, Any], source: str) -> RewardFunc:
    if isinstance(spec, str):
        if ":" in spec:
            return _users_own(spec, source)
        if spec in kinds():
            return _make(getattr(rewards, spec), {}, spec, source)
        if "/" not in spec and not Path(spec).exists():
            raise RecipeError(
                f"{source}: `{spec}` is neither a kind of reward ({', '.join(kinds())}) nor a "
                "folder of a model. Give one of these, module.path:function or file.py:function."
            )
        from trl_recipes.rewards.reward_model import reward_of_model

        return reward_of_model(spec, source)
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise RecipeError(
            f"{source}: {spec!r} is no reward function. Write its name, or `name: {{setting: "
            "value}}`, one in each entry of the list."
        )
    ((name, settings),) = spec.items()
    if not isinstance(settings, Mapping | None):
        raise RecipeError(
            f"{source}: the settings of `{name}` are {settings!r}, not names and values."
        )
    maker = _users_own(name, source) if ":" in name else getattr(rewards, name, None)
    if maker is None or (":" not in name and name not in kinds()):
        raise RecipeError(
            f"{source}: there is no kind of reward `{name}`. There are: {', '.join(kinds())}."
        )
    return _make(maker, dict(settings or {}), name, source)


def _make(maker: Any, settings: dict[str, Any], name: str, source: str) -> RewardFunc:
    parameters = inspect.signature(maker)
    try:
        parameters.bind(**settings)
    except TypeError as error:
        known = ", ".join(parameters.parameters)
        raise RecipeError(
            f"{source}: `{name}` does not take the settings {settings} ({error}). It takes: "
            f"{known}."
        ) from error
    return maker(**settings)


def _users_own(spec: str, source: str) -> Any:
    """The object that `module.path:name` or `file.py:name` names."""
    place, _, name = spec.rpartition(":")
    module = (
        _file(Path(place).expanduser(), source) if place.endswith(".py") else _module(place, source)
    )
    if not hasattr(module, name):
        has = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        raise RecipeError(
            f"{source}: `{place}` has no function `{name}`. It has: {', '.join(has) or 'none'}."
        )
    function = getattr(module, name)
    if not callable(function):
        raise RecipeError(
            f"{source}: `{spec}` is {function!r} ({type(function).__name__}), which cannot be "
            "called. Name a function of prompts and completions."
        )
    return function


def _file(path: Path, source: str) -> ModuleType:
    if not path.is_file():
        raise RecipeError(
            f"{source}: there is no file `{path}`. Check the path (relative paths start at "
            f"{Path.cwd()})."
        )
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"{path.stem}_{digest}"  # two files of one name are two modules
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, SyntaxError):
            raise RecipeError(
                f"{source}: `{path}`, line {error.lineno}, is no python ({error.msg}). Mend it."
            ) from error
        raise
    return module


def _module(name: str, source: str) -> ModuleType:
    here = str(Path.cwd())
    added = here not in sys.path  # a recipe's own folder is there, the user's is not
    if added:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name or name.startswith(f"{error.name}.") or error.name == name:
            raise RecipeError(
                f"{source}: there is no module `{name}`. Check its name; it is looked for among "
                f"the installed ones and in {here}. A file is named with its ending: file.py:name."
            ) from error
        raise
    finally:
        if added:
            sys.path.remove(here)
