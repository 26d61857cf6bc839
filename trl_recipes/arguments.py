"""YAML and command line into dataclass objects, with errors that a person can act on.

Built on `trl.TrlParser`: flags carry the names of dataclass fields, a YAML file given with
--config holds the same names, and a flag wins over the file.
"""

import argparse
import dataclasses
import difflib
import inspect
import logging
import os
import re
import sys
import time
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn

import datasets
import transformers
import yaml
from trl import TrlParser

from trl_recipes import distributed as processes
from trl_recipes.describe import printable, replace_unknown_characters
from trl_recipes.errors import RecipeError, RunStopped
from trl_recipes.run_folder import GIVEN, own_fields
from trl_recipes.settings import check_evaluation, check_range, check_trackers

# Flags of transformers and TRL that --help shows beside ours.
_SHOWN = (
    "model_name_or_path output_dir seed max_steps save_steps save_total_limit "
    "resume_from_checkpoint learning_rate report_to use_peft lora_r lora_alpha lora_dropout "
    "lora_target_modules lora_target_parameters lora_modules_to_save lora_task_type"
)
_HELP = {
    "model_name_or_path": "Start model: a folder, GGUF file or hub name; embedded when left out.",
    "resume_from_checkpoint": "Go on from a checkpoint: its folder, or true for the newest.",
}
_CONFIG_HELP = "YAML file with the same names as the flags; a flag wins over the file."
# Flags of earlier versions, as many scripts write them, and what they are called now.
_RENAMED = {
    "torch_dtype": "dtype",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "warmup_ratio": "warmup_steps",
}
# Lists whose entries may be `name: {setting: value}` in YAML; each has a loader that checks them.
_WITH_SETTINGS = ("reward_funcs", "metrics")
_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)
_SEE_HELP = "Run with --help to see the flags."
# Another process whose launcher stops all of them after the main one's error never gets to speak.
_OTHERS_WAIT_SECONDS = 2.0


def run_recipe(
    main: Callable[..., Any],
    *dataclass_types: type,
    argv: Sequence[str] | None = None,
    default_config: str | None = None,
    trains: bool = True,
) -> None:
    """Parse the arguments, call `main` with one object for each dataclass, tell mistakes.

    A `RecipeError` is printed to stderr without a traceback and ends the process with exit code 2;
    Ctrl-C and SIGTERM end it with 130 and 143. Where a recipe does not train, the main process does
    its work alone. `default_config` names a YAML file in the folder `configs` beside the script; it
    is read when neither --config nor --model_name_or_path is given.
    """
    replace_unknown_characters()
    processes.join_launch() if trains else processes.leave_launch()
    transformers.logging.disable_progress_bar()  # one bar a run: the one that shows its score
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # its errors are told by ours
    description = inspect.getdoc(inspect.getmodule(main)) or ""
    config = None
    if default_config is not None:
        config = Path(inspect.getfile(main)).parent / "configs" / f"{default_config}.yaml"
    try:
        parsed = parse_arguments(
            *dataclass_types, argv=argv, description=description, default_config=config
        )
        for settings in parsed:
            check_trackers(getattr(settings, "report_to", None))
            check_evaluation(settings)
        main(*parsed)
    except RecipeError as error:
        if not processes.is_main_process():
            time.sleep(_OTHERS_WAIT_SECONDS)
        processes.end_of(f"error: {printable(str(error))}", 2)
    except RunStopped as stopped:
        if processes.is_main_process():
            print(stopped, file=sys.stderr, flush=True)  # noqa: T201  the user's message
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not processes.launched():
            raise
        processes.end_of_error(error)
    finally:
        processes.let_go()


def parse_arguments(
    *dataclass_types: type,
    argv: Sequence[str] | None = None,
    description: str = "",
    default_config: Path | None = None,
) -> tuple[Any, ...]:
    """Parse --config and flags into one object for each dataclass; see `run_recipe`.

    Raises a RecipeError for whatever is wrong with them; SystemExit (0) after --help or --help_all.
    """
    own, flags = _split_own_flags(sys.argv[1:] if argv is None else argv)
    parser = _Parser(dataclass_types)
    helps = own.help or own.help_all
    given = set() if helps else _given_flags(dataclass_types, flags)
    # The default file's settings fit the default model.
    path = own.config or (None if "model_name_or_path" in given else default_config)
    if path is not None:
        values = _read_config(path, parser)
        parser.set_defaults_with_config(**values)
        given |= set(values)
    if helps:  # after the file, whose values are then the defaults
        processes.print_main(_help(parser, description, path, own.help_all))
        sys.exit(0)
    try:
        parsed = parser.parse_args_into_dataclasses(flags, look_for_args_file=False)
    except RecipeError:
        raise
    except (ValueError, ImportError) as error:  # from a __post_init__, which knows no flags
        where = f" or `{path}`" if path is not None else ""
        raise RecipeError(
            f"A setting from the command line{where} was refused: {error} See --help_all."
        ) from error
    for settings in parsed:
        names = given & {field.name for field in dataclasses.fields(settings)}
        object.__setattr__(settings, GIVEN, frozenset(names))  # works for frozen ones too
    return parsed


class _Parser(TrlParser):
    """TrlParser that raises instead of exiting."""

    def __init__(self, dataclass_types: Sequence[type]):
        kinds = [_for_recipes(kind) for kind in dataclass_types]
        super().__init__(kinds, add_help=False, allow_abbrev=False)
        self._negative_number_matcher = _NEGATIVE  # argparse's own does not know -1e-2
        self.flags: dict[str, argparse.Action] = {}
        for action in self._actions:
            self.flags.setdefault(action.dest, action)  # of `--x` and `--no_x` the first
            # `--bf16` alone must mean true for optional booleans too, as it does for plain ones.
            if _is_bool(action) and action.nargs is None:
                action.nargs, action.const = "?", True

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        # HfArgumentParser takes `str | list[str] | None` in one order only; on the command line
        # it makes a text of it, and so does this.
        kinds = typing.get_args(field.type)
        if {str, NoneType} <= set(kinds) and bool not in kinds:
            field.type = str | None
        TrlParser._parse_dataclass_field(parser, field)

    def parse_known_args(self, args=None, namespace=None):
        """Hold every number to its range before a dataclass computes with it."""
        found, rest = super().parse_known_args(args, namespace)
        for name, value in vars(found).items():
            check_range(name, value)
        return found, rest

    def error(self, message: str) -> NoReturn:
        # argparse lists both spellings of a flag; one is enough.
        message = re.sub(r"^argument (--\w+)\S*: ", r"\1: ", message)
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message)
        raise RecipeError(f"{message}. Run with --help to see the flags and what they take.")


def _for_recipes(kind: type) -> type:
    """Turn a dataclass into one whose fields are the flags of a recipe."""
    # no help: for scripts of TRL 0.11 alone; a help that __init__ does not take: for recipes alone
    turned = []
    for entry in dataclasses.fields(kind):
        text = entry.metadata.get("help")
        if text is not None and entry.init == (text == argparse.SUPPRESS):
            other = dataclasses.field(
                default=entry.default, init=not entry.init, metadata=entry.metadata
            )
            turned.append((entry.name, entry.type, other))
    return dataclasses.make_dataclass(kind.__name__, turned, bases=(kind,)) if turned else kind


def _is_bool(action: argparse.Action) -> bool:
    return getattr(action.type, "__name__", "") == "string_to_bool"


def _split_own_flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Take --config, --help and --help_all out of the command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?", const="", action="append")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--help_all", action="store_true")
    own, flags = parser.parse_known_args(argv)
    paths = own.config or []
    if "" in paths:
        raise RecipeError("--config needs the path of a YAML file after it.")
    if len(paths) > 1:
        raise RecipeError(f"--config was given {len(paths)} times ({', '.join(paths)}). Give one.")
    own.config = Path(paths[0]).expanduser() if paths else None
    return own, flags


def _given_flags(dataclass_types: Sequence[type], flags: list[str]) -> set[str]:
    """Names of the flags that stand on the command line; an unknown one is an error."""
    parser = _Parser(dataclass_types)
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    given, unknown = parser.parse_known_args(flags)
    if not unknown:
        return set(vars(given))
    word = unknown[0]
    if not word.startswith("-"):
        raise RecipeError(
            f"`{word}` stands on the command line without a flag before it. {_SEE_HELP}"
        )
    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    raise RecipeError(f"Unknown flag `{word}`. {_instead(name, parser, prefix='--')}")


def _instead(name: str, parser: _Parser, prefix: str = "") -> str:
    """Say what to write in place of an unknown name: a setting refused on purpose, or a typo."""
    for dataclass_type in parser.dataclass_types:
        reason = getattr(dataclass_type, "refused", {}).get(name)
        if reason is not None:
            return f"It is TRL's, and no setting here: {reason}."
    if _RENAMED.get(name) in parser.flags:
        return f"It is called `{prefix}{_RENAMED[name]}` now."
    near = difflib.get_close_matches(name, parser.flags, n=1)
    return f"Did you mean `{prefix}{near[0]}`? {_SEE_HELP}" if near else _SEE_HELP


def _read_config(path: Path, parser: _Parser) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for dataclass_type in parser.dataclass_types:
        hints |= typing.get_type_hints(dataclass_type)
    values: dict[str, Any] = {}
    for key, value in _read_yaml(path).items():
        name = str(key).replace("-", "_")
        if name not in parser.flags:
            raise RecipeError(f"Unknown key `{key}` in `{path}`. {_instead(name, parser)}")
        values[name] = _converted(parser, parser.flags[name], hints[name], value, path)
    return values


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of keys and values; a key given twice is an error."""
    try:
        text = path.read_text(encoding="utf-8")
        values, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"--config: `{path}` could not be read ({reason}). Check the path, or fix the file."
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError(
            f"--config: `{path}` holds a {type(values).__name__}, not `flag: value` lines."
        )
    if len(node.value) > len(values):
        keys = [key.value for key, _ in node.value]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RecipeError(f"--config: `{path}` holds the key `{twice}` twice. Fix the file.")
    return values


def _converted(parser: _Parser, action: argparse.Action, hint: Any, value: Any, path: Path) -> Any:
    """Convert a YAML value as its flag would convert the same text."""
    where, several = f"`{path}`: `{action.dest}`", action.nargs == "+"
    kinds = {typing.get_origin(kind) or kind for kind in (hint, *typing.get_args(hint))}
    if value is None:
        if NoneType in kinds or action.default is None:
            return None
        raise RecipeError(f"{where} is empty. Give a value, or leave the key out for the default.")
    if several:
        entries = value if isinstance(value, list) else [value]
        of_names = action.dest in _WITH_SETTINGS
        return [
            entry if of_names and isinstance(entry, dict) else _scalar(parser, action, entry, where)
            for entry in entries
        ]
    if isinstance(value, dict | list):
        if type(value) in kinds:
            return value
        raise RecipeError(f"{where} takes one value, not {value}.")
    return _scalar(parser, action, value, where)


def _scalar(parser: _Parser, action: argparse.Action, value: Any, where: str) -> Any:
    takes_bool = _is_bool(action) or action.dest == "resume_from_checkpoint"
    if isinstance(value, bool) and not takes_bool:
        raise RecipeError(
            f"{where} is {str(value).lower()}. YAML reads a bare yes, no, on or off as true or "
            "false: put a word in quotes."
        )
    try:
        converted = parser._get_value(action, str(value))
        parser._check_value(action, converted)
    except argparse.ArgumentError as error:
        raise RecipeError(f"{where}: {error.message}. Fix the value.") from error
    return converted


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows each default that the help text does not tell."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=6, width=98)

    def _get_help_string(self, action: argparse.Action) -> str:
        told = action.default in (None, argparse.SUPPRESS) or "default" in action.help
        return action.help if told else f"{action.help} (default: %(default)s)"


def _help(parser: _Parser, description: str, path: Path | None, every_flag: bool) -> str:
    """What --help prints: our flags and some of transformers' and TRL's; or every one."""
    ours = {name for kind in parser.dataclass_types for name in own_fields(kind)}
    for action in parser._actions:
        name, action.option_strings = action.dest, action.option_strings[:1]
        text = None if name in ours else _HELP.get(name)
        shown = every_flag or name in {*ours, *_SHOWN.split()}
        action.help = text or action.help if shown else argparse.SUPPRESS
    usual = os.path.relpath(path) if path else None
    parser.add_argument("--config", metavar="FILE", default=usual, help=_CONFIG_HELP)
    parser.formatter_class = _HelpFormatter
    parser.usage = "%(prog)s [--config FILE] [--flag value ...]"
    parser.description = description.replace("%", "%%")
    parser.epilog = "--help_all lists every flag of transformers.TrainingArguments and TRL, too."
    return parser.format_help()
