"""Reward functions by name, from a command line or a YAML file.

    --reward_funcs my_rewards.py:short my_package.rewards:kind RepetitionPenalty runs/reward-model

    reward_funcs:
      - my_rewards.py:short
      - LengthPenalty: {max_length: 20}

A file of the user's runs only because the user names it there; nothing that comes with a model or
a data set is ever run.
"""

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from trl_recipes.errors import RecipeError
from trl_recipes.rewards import models, rules
from trl_recipes.rewards.similarity import SimilarityReward

RewardFunc = Callable[..., list[float | None]]

_OF_TEXT = (rules.KeywordReward, rules.KnownWordsReward, rules.RegexReward, rules.UppercaseReward)
_OF_TEXT += (rules.LengthPenalty, rules.RepetitionPenalty)
_OF_MODELS = (models.PerplexityReward, models.RewardModelReward, models.SentimentReward)
_OF_MODELS += (SimilarityReward,)
KINDS: dict[str, Callable[..., RewardFunc]] = {k.__name__: k for k in (*_OF_TEXT, *_OF_MODELS)}


def load_reward_funcs(
    specs: Sequence[str | Mapping[str, Any]], *, source: str = "--reward_funcs"
) -> list[RewardFunc]:
    """Turn names into reward functions; `source` is for messages.

    Each is `module.path:function` or `file.py:function`; a kind of this package; a model with a
    classification head; or a mapping of one of the first two to its settings, from which a function
    of the user's makes the reward function.
    """
    return [_load(spec, source) for spec in specs]


def _load(spec: str | Mapping[str, Any], source: str) -> RewardFunc:
    named = {spec: None} if isinstance(spec, str) else spec
    values = list(named.values()) if isinstance(named, Mapping) else []
    if len(values) != 1 or not isinstance(values[0], Mapping | None):
        raise RecipeError(
            f"{source}: {spec!r} is no reward function. Write its name, or `name: {{setting: "
            "value}}`, one in each entry of the list."
        )
    ((name, settings),) = named.items()
    if ":" in name or name.endswith(".py"):
        own = _users_own(name, source)
        return own if isinstance(spec, str) else _make(own, settings or {}, name, source)
    if name in KINDS:
        return _make(KINDS[name], settings or {}, name, source)
    if not isinstance(spec, str) or ("/" not in name and not Path(name).exists()):
        raise RecipeError(
            f"{source}: `{name}` is neither a kind of reward ({', '.join(KINDS)}) nor a "
            "folder of a model. Give one of these, module.path:function or file.py:function."
        )
    return models.reward_of_model(name, source)


def _make(maker: Any, settings: Mapping[str, Any], name: str, source: str) -> RewardFunc:
    parameters = inspect.signature(maker)
    try:
        parameters.bind(**settings)
    except TypeError as error:
        raise RecipeError(
            f"{source}: `{name}` does not take the settings {settings} ({error}). It takes: "
            f"{', '.join(parameters.parameters)}."
        ) from error
    return maker(**settings)


def _users_own(spec: str, source: str) -> Any:
    """Return the object that `module.path:name` or `file.py:name` names."""
    place, name = (spec, "") if spec.endswith(".py") else spec.rpartition(":")[::2]
    is_file = place.endswith(".py")
    module = _file(Path(place).expanduser(), source) if is_file else _module(place, source)
    function = getattr(module, name, None)
    if not callable(function):
        own = module.__name__
        has = [k for k, v in vars(module).items() if getattr(v, "__module__", None) == own]
        wrong = f"has no function `{name}`" if name else "names a file and no function of it"
        raise RecipeError(
            f"{source}: `{place}` {wrong}. Write `{place}:NAME`. It has: "
            f"{', '.join(has) or 'none'}."
        )
    return function


def _file(path: Path, source: str) -> ModuleType:
    if not path.is_file():
        raise RecipeError(
            f"{source}: there is no file `{path}`. Check the path (relative paths start at "
            f"{Path.cwd()})."
        )
    try:
        return _executed(path.resolve(), path.read_bytes())
    except SyntaxError as error:
        raise RecipeError(
            f"{source}: `{path}`, line {error.lineno}, is no python ({error.msg}). Fix it."
        ) from error


@functools.cache
def _executed(path: Path, code: bytes) -> ModuleType:
    name = str(path)  # two files of one name are two modules; one that was edited is a new one
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, path))
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        exec(compile(code, name, "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module(name: str, source: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:  # a recipe's own folder is there, the user's is not
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if f"{name}.".startswith(f"{error.name}."):
            raise RecipeError(
                f"{source}: there is no module `{name}`. Check its name; it is looked for among "
                f"the installed ones and in {here}. A file is named with its ending: file.py:name."
            ) from error
        raise
