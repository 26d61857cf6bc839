"""YAML and command line into dataclass objects, with errors that a person can act on.

Built on `trl.TrlParser`: flags carry the names of dataclass fields, a YAML file given with
--config holds the same names, and a flag wins over the file.
"""

import argparse
import dataclasses
import difflib
import inspect
import os
import re
import sys
import textwrap
import time
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import transformers
import yaml
from trl import ModelConfig, TrlParser

from trl_recipes import distributed as processes
from trl_recipes import run_folder as runs
from trl_recipes.describe import printable
from trl_recipes.errors import RecipeError, RunStopped
from trl_recipes.settings import check_range, check_trackers

# Inherited flags that every recipe explains, with the sentence that it prints for them.
SHARED_FLAGS = {
    "model_name_or_path": "Model to start from: a folder or a hub name; embedded when left out.",
    "dataset_name": "Data set: a file, a folder or a hub name; embedded when left out.",
    "reward_model": "Model that gives the reward: a folder or a hub name; embedded when left out.",
    "reward_funcs": "Reward functions.",
    "output_dir": "Folder that the run writes to.",
    "overwrite_output_dir": "Replace the run that the output folder holds.",
    "seed": "Seed of everything that is random.",
    "max_steps": "Number of training steps.",
    "save_steps": "Steps from one checkpoint to the next.",
    "save_total_limit": "Number of checkpoints to keep.",
    "resume_from_checkpoint": "Go on from a checkpoint: its folder, or true for the newest.",
    "learning_rate": "Learning rate at the start.",
    "report_to": "Trackers to log to besides the run folder.",
    "use_peft": "Train a LoRA adapter instead of the whole model.",
    "lora_r": "Rank of the LoRA matrices.",
    "lora_alpha": "Scale of the LoRA matrices, divided by their rank.",
    "lora_dropout": "Dropout of the LoRA matrices.",
    "lora_target_modules": "Names of the modules that get LoRA matrices.",
    "lora_target_parameters": "Names of the parameters that get LoRA matrices.",
    "lora_modules_to_save": "Names of modules to train whole beside the LoRA matrices.",
    "lora_task_type": "Task that peft prepares the adapter for.",
    "trainable": "Which weights are trained.",
    "check": "Check everything, try a few steps, say what the run takes; write nothing.",
}
_CONFIG_HELP = "YAML file with the same names as the flags; a flag wins over the file."
# Lists whose entries may be `name: {setting: value}` in YAML; each has a loader that checks them.
_WITH_SETTINGS = ("reward_funcs", "metrics")
# Another process whose launcher stops all of them after the main one's error never gets to speak.
_OTHERS_WAIT_SECONDS = 2.0


def run_recipe(
    main: Callable[..., Any],
    *dataclass_types: type,
    argv: Sequence[str] | None = None,
    default_config: str | None = None,
    trains: bool = True,
) -> None:
    """Parse the arguments, call `main` with them, and turn mistakes into messages.

    A `RecipeError` is printed to stderr without a traceback and ends the process with exit code 2;
    Ctrl-C and SIGTERM end it with 130 and 143. Of several processes the main one speaks; another
    one does only when the launcher has not stopped it soon after, which means that the main one
    had no error.

    Args:
        main: called with one object for each dataclass.
        *dataclass_types: what to parse into.
        argv: the command line without the script; that of the process when None.
        default_config: what is read when neither --config nor --model_name_or_path is given: the
            name of a YAML file in the folder `configs` beside the script that defines `main`,
            without its suffix.
        trains: whether several processes of a launch share the work; else the main one does it
            alone and the others end.
    """
    processes.join_launch() if trains else processes.leave_launch()
    transformers.logging.disable_progress_bar()  # one bar a run: the one that shows its score
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
    """Parse --config and flags into one object for each dataclass.

    Args:
        *dataclass_types: dataclasses whose fields are the flags.
        argv: the command line without the script; that of the process when None.
        description: printed above the flags by --help.
        default_config: the YAML file to read when neither --config nor --model_name_or_path is
            given: it holds settings that fit the embedded model.

    Returns:
        One object for each dataclass, in the same order.

    Raises:
        RecipeError: an unknown flag or YAML key, a value of the wrong type or refused by the
            dataclass, a missing required flag, or a YAML file that cannot be read.
        SystemExit: after --help or --help_all, with code 0.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(dataclass_types, add_help=False, allow_abbrev=False)
    helps = [word for word in argv if word in ("-h", "--help", "--help_all")]
    chosen, flags = _split_config([word for word in argv if word not in helps])
    given = set() if helps else _given_flags(dataclass_types, flags)
    own_model = "model_name_or_path" in given  # the default file's settings fit the default model
    config_path = chosen or (None if own_model else default_config)
    if config_path is not None:
        given |= _apply_config(parser, config_path)
    if helps:  # after the file, so that the defaults told are those that hold
        if processes.is_main_process():
            text = _help(parser, description, config_path)
            print(_help_all(parser) if "--help_all" in helps else text)  # noqa: T201
        sys.exit(0)
    try:
        parsed = parser.parse_args_into_dataclasses(flags, look_for_args_file=False)
    except RecipeError:
        raise
    except (ValueError, ImportError) as error:  # from a __post_init__, which knows no flags
        where = f" or `{config_path}`" if config_path is not None else ""
        raise RecipeError(
            f"A setting from the command line{where} was refused: {error} Run with --help_all to "
            "see every flag."
        ) from error
    for settings in parsed:
        names = given & {field.name for field in dataclasses.fields(settings)}
        object.__setattr__(settings, runs.GIVEN, frozenset(names))  # works for frozen ones too
    return parsed


def model_kwargs(model_config: ModelConfig) -> dict[str, Any]:
    """Turn TRL's model flags into arguments of `from_pretrained`.

    Args:
        model_config: revision, dtype, attention and quantisation.
    """
    from trl import get_quantization_config  # takes seconds, which a misspelt flag need not wait

    kwargs = {
        "revision": model_config.model_revision,
        "dtype": model_config.dtype,
        "attn_implementation": model_config.attn_implementation,
        "quantization_config": get_quantization_config(model_config),
    }
    return {name: value for name, value in kwargs.items() if value is not None}


class _Parser(TrlParser):
    """TrlParser that raises instead of exiting."""

    def __init__(self, dataclass_types: Sequence[type], **kwargs: Any):
        super().__init__(list(dataclass_types), **kwargs)
        for action in self._actions:
            # `--bf16` alone must mean true for optional booleans too, as it does for plain ones.
            if _is_bool(action) and action.option_strings and action.nargs is None:
                action.nargs, action.const = "?", True

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        # HfArgumentParser takes `str | list[str] | None` in one order only; on the command line
        # it makes a text of it, and so does this.
        kinds = typing.get_args(field.type)
        if {str, type(None)} <= set(kinds) and bool not in kinds:
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


def _is_bool(action: argparse.Action) -> bool:
    return getattr(action.type, "__name__", "") == "string_to_bool"


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The action of each flag by name; of `--x` and `--no_x` the first."""
    actions: dict[str, argparse.Action] = {}
    for action in parser._actions:
        actions.setdefault(action.dest, action)
    return actions


def _split_config(argv: list[str]) -> tuple[Path | None, list[str]]:
    """Take `--config FILE` or `--config=FILE` out of the command line."""
    found: list[str] = []
    flags: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--config":
            value = next(words, "--")
            if value.startswith("--"):
                raise RecipeError("--config needs the path of a YAML file after it.")
            found.append(value)
        elif word.startswith("--config="):
            found.append(word.removeprefix("--config="))
        else:
            flags.append(word)
    if len(found) > 1:
        raise RecipeError(f"--config was given {len(found)} times ({', '.join(found)}). Give one.")
    return (Path(found[0]).expanduser() if found else None), flags


def _given_flags(dataclass_types: Sequence[type], flags: list[str]) -> set[str]:
    """Names of the flags that stand on the command line; an unknown one is an error."""
    parser = _Parser(dataclass_types, add_help=False, allow_abbrev=False)
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    given, unknown = parser.parse_known_args(flags)
    if unknown:
        raise RecipeError(_unknown_flag(unknown[0], parser))
    return set(vars(given))


def _apply_config(parser: _Parser, path: Path) -> set[str]:
    """Make the values of a YAML file the parser's defaults; their names."""
    actions, hints = _actions(parser), _type_hints(parser)
    values: dict[str, Any] = {}
    for key, value in _read_yaml(path).items():
        name = str(key).replace("-", "_")
        if name not in actions:
            raise RecipeError(f"Unknown key `{key}` in `{path}`. {_nearest(name, actions)}")
        values[name] = _yaml_value(value, actions[name], hints[name], key, path)
    parser.set_defaults_with_config(**values)
    return set(values)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for key_node, _ in node.value:
            if keys.count(key_node.value) > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key `{key_node.value}` stands there twice",
                    problem_mark=node.value[-1][0].start_mark,
                )
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            values = yaml.load(file, Loader=_Loader)
    except FileNotFoundError as error:
        raise RecipeError(f"--config: there is no file `{path}`. Check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise RecipeError(
            f"--config: `{path}` could not be read ({reason}). Give a YAML file in UTF-8."
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise RecipeError(f"--config: `{path}`{line}: {problem}. Mend the file.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError(
            f"--config: `{path}` holds a {type(values).__name__}, not `flag: value` lines."
        )
    return values


def _type_hints(parser: _Parser) -> dict[str, Any]:
    return {
        name: hint
        for dataclass_type in parser.dataclass_types
        for name, hint in typing.get_type_hints(dataclass_type).items()
    }


def _yaml_value(value: Any, action: argparse.Action, hint: Any, key: str, path: Path) -> Any:
    """Convert a YAML value as its flag would convert the same text."""
    allowed = typing.get_args(hint) or (hint,)
    kinds = {typing.get_origin(kind) or kind for kind in (hint, *allowed)}
    if value is None:
        if type(None) in kinds or action.default is None:
            return None
        raise RecipeError(
            f"`{path}`: `{key}` is empty. Give a value, or leave the key out for the default "
            f"({action.default})."
        )
    if isinstance(value, dict):
        if dict in kinds:
            return value
        raise RecipeError(f"`{path}`: `{key}` takes one value, not keys and values ({value}).")
    if isinstance(value, list):
        if action.nargs == "+":
            return [
                entry
                if key in _WITH_SETTINGS and isinstance(entry, dict)
                else _scalar(entry, action, key, path)
                for entry in value
            ]
        if list in kinds:
            return value
        raise RecipeError(f"`{path}`: `{key}` takes one value, not a list ({value}).")
    converted = _scalar(value, action, key, path)
    return [converted] if action.nargs == "+" else converted


def _scalar(value: Any, action: argparse.Action, key: str, path: Path) -> Any:
    if isinstance(value, bool) and not _is_bool(action):
        raise RecipeError(
            f"`{path}`: `{key}` is {str(value).lower()}, but it takes {_takes(action)}. YAML reads "
            "a bare yes, no, on or off as true or false: put a word in quotes."
        )
    if value is None or isinstance(value, list | dict):
        raise RecipeError(f"`{path}`: `{key}` holds {value!r} in its list. Give plain values.")
    try:
        converted = action.type(str(value)) if callable(action.type) else value
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise RecipeError(
            f"`{path}`: `{key}` is {value!r}, but it takes {_takes(action)}. Mend the value."
        ) from error
    check_range(action.dest, converted, where=f"`{path}`: ")
    if action.choices is not None and converted not in action.choices:
        raise RecipeError(
            f"`{path}`: `{key}` is {value!r}, but it takes {_takes(action)}. Mend the value."
        )
    return converted


def _takes(action: argparse.Action) -> str:
    """What a flag takes, in words."""
    if action.choices is not None:
        return "one of " + ", ".join(str(choice) for choice in action.choices)
    words = {"int": "a whole number", "float": "a number", "str": "a text"}
    name = getattr(action.type, "__name__", str(action.type))
    return "true or false" if _is_bool(action) else words.get(name, name)


def _unknown_flag(word: str, parser: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f"`{word}` stands on the command line without a flag before it. {_SEE_HELP}"
    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    return f"Unknown flag `{word}`. {_nearest(name, _actions(parser), prefix='--')}"


_SEE_HELP = "Run with --help to see the flags."


def _nearest(name: str, actions: dict[str, Any], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, actions, n=1)
    return f"Did you mean `{prefix}{near[0]}`? {_SEE_HELP}" if near else _SEE_HELP


def _help(parser: _Parser, description: str, config_path: Path | None) -> str:
    """Usage, description, and our flags in one group for each dataclass."""
    actions = _actions(parser)
    script = Path(sys.argv[0]).name
    parts = [f"usage: {script} [--config FILE] [--flag value ...]"]
    if description:
        parts.append(description)
    usual = os.path.relpath(config_path) if config_path else "none"
    read = f"{_CONFIG_HELP} Default: {usual}."
    parts.append("\n".join(_entry("--config FILE", read)))
    for dataclass_type in parser.dataclass_types:
        own = runs.own_fields(dataclass_type)
        fields = {field.name for field in dataclasses.fields(dataclass_type) if field.init}
        lines = [f"{dataclass_type.__name__}:"]
        for name in dict.fromkeys([*own, *SHARED_FLAGS]):
            if name in fields:
                action = actions[name]
                text = action.help if name in own and action.help else None
                text = text or SHARED_FLAGS.get(name) or action.help or ""
                lines += _entry(_usage(action), _with_default(text, action))
        if len(lines) > 1:
            parts.append("\n".join(lines))
    parts.append(
        "Every flag of transformers.TrainingArguments and of the trl classes behind these works "
        "too;\n--help_all lists them."
    )
    return "\n\n".join(parts)


def _help_all(parser: _Parser) -> str:
    parser.add_argument("--config", metavar="FILE", help=_CONFIG_HELP)
    return parser.format_help()


def _entry(flag: str, text: str) -> list[str]:
    wrapped = textwrap.wrap(text, width=90, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return [f"  {flag}", *wrapped]


def _usage(action: argparse.Action) -> str:
    name = action.option_strings[0]
    if action.choices is not None:
        return f"{name} {{{','.join(str(choice) for choice in action.choices)}}}"
    if _is_bool(action):
        return f"{name} [true|false]"
    kind = getattr(action.type, "__name__", "value")
    metavar = {"int": "INT", "float": "NUMBER", "str": "TEXT"}.get(kind, "VALUE")
    return f"{name} {metavar} [{metavar} ...]" if action.nargs == "+" else f"{name} {metavar}"


def _with_default(text: str, action: argparse.Action) -> str:
    """The help text as a sentence, followed by the default."""
    text = " ".join(text.split())
    if text and not text.endswith((".", "!", "?")):
        text += "."
    default = getattr(action.default, "value", action.default)
    if isinstance(default, bool):
        default = str(default).lower()
    if isinstance(default, list):
        default = " ".join(str(entry) for entry in default)
    if action.required:
        return f"{text} Required.".lstrip()
    if default is None:  # the text may say what happens then
        return text if "default" in text or "left out" in text else f"{text} Default: none."
    return f"{text} Default: {default}.".lstrip()
