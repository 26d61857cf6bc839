"""The run folder: what a run writes, and where.

What is no flag (recipe, versions, date) stands in comments of config.yaml, which --config reads.
training.json tells what was trained, and of each session (one start of the run) how it ended.
"""

import dataclasses
import datetime
import importlib.metadata
import inspect
import json
import logging
import os
import platform
import re
import shutil
import sys
import time
from argparse import SUPPRESS
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from trl_recipes.describe import device_name, peak_memory
from trl_recipes.distributed import is_main_process
from trl_recipes.errors import RecipeError, RunStopped

# Attribute in which the parser leaves the names of the fields that flags and --config gave.
GIVEN = "_given"
_MARK = "# A run of trl_recipes."
_PACKAGES = ("trl_recipes", "trl", "transformers", "torch", "accelerate", "datasets", "peft")
# Settings of one launch rather than of the run: repeating them would overwrite or resume again.
# The token is a secret.
_NOT_KEPT = {"overwrite_output_dir", "resume_from_checkpoint", "hub_token"}
_log = logging.getLogger(__name__)


class RunFolder:
    """The paths inside one run folder, which need not be there."""

    def __init__(self, path: str | os.PathLike):
        self.path = path = Path(path).expanduser()
        self.config = path / "config.yaml"  # all settings; --config takes it to run the same again
        self.all_stats = path / "all_stats.jsonl"  # one row a step
        self.samples = path / "samples.jsonl"  # some queries, responses and scores of each step
        self.alarms = path / "alarms.jsonl"  # what looked wrong, each said once
        self.plots = path / "plots"
        self.report = path / "report.html"  # all of it on one page
        self.record = path / "training.json"  # what was trained, how it ended, how long it took
        self.comparison = path / "comparison.json"  # before and after, on held-out prompts
        self.model = path / "model"  # policy, value head and tokenizer
        self.checkpoints = path / "checkpoints"
        self.stage = path / "stage.json"  # of a chain: this stage's settings, and what it found
        self.pretrained = path / "pretrained"  # stage that a run of several starts PPO from
        self.reward_model = path / "reward_model"  # stage that trains the reward model

    @property
    def results(self) -> list[Path]:
        """The files and folders that a run leaves, beside config.yaml, its record and a stage's."""
        files = [self.all_stats, self.samples, self.alarms, self.comparison, self.report]
        return [*files, self.plots, self.model, self.checkpoints]

    def places(self) -> str:
        """Say where what a run leaves lies, in four lines."""
        return (
            f"Model:    {self.model}\nPictures: {self.plots}\nStats:    {self.all_stats}\n"
            f"Report:   {self.report}"
        )

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)


def check_run(config: Any) -> RunFolder:
    """Say at once whether a run may start in `config.output_dir`; see `check_output_dir`."""
    return check_output_dir(config.output_dir, **_choices(config))


@contextmanager
def start_run(
    config: Any, settings: Sequence[Any] = (), report: Callable[[RunFolder], Any] | None = None
) -> Iterator[RunFolder]:
    """Prepare the run folder of the training inside, and write its page when that ends in any way.

    Enter it when everything was found fit for training. `settings` are the parsed arguments, for
    config.yaml; `report` writes the page of a run that did a step.
    """
    run = prepare_run(config.output_dir, settings=settings, **_choices(config))
    try:
        yield run
    finally:
        if report and is_main_process() and _holds_something(run.all_stats):
            try:
                report(run)
            except (RecipeError, OSError) as error:
                _log.warning("`%s` was not written: %s", run.report, error)


def begin_run(config: Any) -> None:
    """Refuse a folder that holds a run, as recipes do, and mark it as that of a trainer's run."""
    if not config.saves or config.resume_from_checkpoint:
        return
    run = check_run(config)
    if run.all_stats.exists() or not run.config.exists():  # else `start_run` has made it ready
        prepare_run(run, overwrite=config.overwrite_output_dir, settings=[config])


def _choices(config: Any) -> dict[str, bool]:
    resume = bool(config.resume_from_checkpoint)
    return {"overwrite": config.overwrite_output_dir, "resume": resume}


def check_output_dir(
    output_dir: str | os.PathLike, *, overwrite: bool = False, resume: bool = False
) -> RunFolder:
    """Refuse a folder that holds a run, or something else, or nothing to resume; write nothing.

    A folder whose run never got to train is used again. Only the main process looks.
    """
    if overwrite and resume:
        raise RecipeError(
            "--overwrite_output_dir and --resume_from_checkpoint were both given. Choose one."
        )
    run = RunFolder(check_folder(output_dir))
    if not is_main_process():
        return run
    marked = run.config.is_file() and run.config.read_bytes().startswith(_MARK.encode())
    results = [path for path in run.results if _holds_something(path)]
    if not marked and (results or run.config.exists() or run.record.exists()):
        found = [run.config] if run.config.exists() else results or [run.record]
        raise RecipeError(
            f"--output_dir: `{run}` holds {', '.join(f'`{path.name}`' for path in found)}, but "
            "no config.yaml of a run, so this may be something else. Choose another folder, or "
            "move it away."
        )
    if results and not (overwrite or resume):
        raise RecipeError(
            f"--output_dir: `{run}` already holds a run "
            f"({', '.join(path.name for path in results)}). Choose another folder, or use "
            "--overwrite_output_dir to replace it."
        )
    if resume and not (results or marked):
        raise RecipeError(
            f"--resume_from_checkpoint: `{run}` holds no run to go on with. Check --output_dir."
        )
    return run


def check_folder(path: str | os.PathLike) -> Path:
    """Say at once whether the value of --output_dir can be a folder; nothing is made."""
    if not str(path).strip():
        raise RecipeError("--output_dir is empty. Give the folder to write to.")
    folder = Path(path).expanduser()
    there = _existing(folder)
    if not there.is_dir():
        raise RecipeError(
            f"--output_dir: `{folder}` cannot be a folder, because `{there}` is a file. Choose "
            "another folder."
        )
    return folder


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def check_disk(args: Any, trained: int) -> None:
    """Refuse a run whose model and checkpoints, of so many weights, the disk cannot hold."""
    if not args.should_save or args.save_strategy == "no":
        return
    folder, kept = Path(args.output_dir), args.save_total_limit or 1
    # in float32: weights and two moments a checkpoint, one more while it is written, and the model
    needed = 4 * trained * (3 * (kept + 1) + 1)
    free = shutil.disk_usage(_existing(folder)).free
    if free < needed:
        raise RecipeError(
            f"--output_dir: `{folder}` lies on a disk with {free / 1e9:.1f} GB free, but "
            f"checkpoints and model need about {needed / 1e9:.1f} GB. Free some space, choose "
            "another folder, or keep fewer: --save_total_limit 1, or --save_steps 0 for none."
        )


def prepare_run(
    output_dir: str | os.PathLike,
    *,
    overwrite: bool = False,
    resume: bool = False,
    settings: Sequence[Any] = (),
) -> RunFolder:
    """Make a run folder ready; `overwrite` removes the earlier run, but no file beside it."""
    run = check_output_dir(output_dir, overwrite=overwrite, resume=resume)
    if not is_main_process():
        return run
    if overwrite:
        _remove_run(run)
    try:
        run.plots.mkdir(parents=True, exist_ok=True)
        if not run.config.exists():
            write_whole(run.config, _MARK + "\n")
    except OSError as error:
        raise RecipeError(
            f"--output_dir: `{run}` cannot be made or written ({error.strerror}). Choose another."
        ) from error
    if settings:
        write_config(run, *settings)
    return run


def write_config(run: RunFolder, *settings: Any) -> None:
    """Write config.yaml: our own settings, and every other one that differs from its default."""
    if not is_main_process():
        return
    values: dict[str, Any] = {}
    for parsed in settings:
        values |= _settings(parsed)
    if any(hasattr(parsed, "output_dir") for parsed in settings):
        values["output_dir"] = str(run.path)  # also where a recipe chose it
    header = (
        f"{_MARK} To run it again: --config <this file> --output_dir <another folder>\n"
        f"# recipe: {Path(sys.argv[0]).name}\n"
        f"# started: {_now()}\n"
        f"# {versions()}\n"
    )
    body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True) if values else ""
    write_whole(run.config, header + body)


def correct_config(run: str | os.PathLike, values: Mapping[str, Any]) -> None:
    """Replace the settings that config.yaml tells by those that the run goes on with."""
    config = RunFolder(run).config
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    for name, value in values.items():
        text = re.sub(rf"(?m)^{name}: .*\n", yaml.safe_dump({name: value}), text)
    if text:
        write_whole(config, text)


def read_config(run: str | os.PathLike) -> dict[str, Any]:
    """Read the settings of a run, by name of their flag."""
    run = RunFolder(run)
    if not run.config.is_file():
        raise RecipeError(f"`{run}` holds no run: there is no `{run.config}`. Check the folder.")
    try:
        values = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"`{run.config}` is damaged: {reason}. Fix or delete it.") from error
    if values is not None and not isinstance(values, dict):
        raise RecipeError(f"`{run.config}` is damaged: it holds no settings. Fix or delete it.")
    return values or {}


def read_header(run: RunFolder) -> dict[str, str]:
    """Read `recipe`, `started` and `versions` from config.yaml, where it is there."""
    text = run.config.read_text("utf-8", errors="replace") if run.config.is_file() else ""
    facts = dict(re.findall(r"(?m)^# (recipe|started): (.*)", text))
    if found := re.search(r"(?m)^# (python .*)", text):
        facts["versions"] = found[1]
    return facts


def read_number(run: str | os.PathLike, name: str, default: int) -> int:
    """Read one setting of a run that is a whole number; `default` where the run does not say."""
    value = read_config(run).get(name, default)
    if type(value) is not int:
        raise RecipeError(f"`{run}`: `{name}` in config.yaml is {value!r}, no number. Fix it.")
    return value


def default_of(field: dataclasses.Field) -> Any:
    """Give the default of a dataclass's field, made anew where a factory makes it."""
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def own_fields(cls: type) -> list[str]:
    """Name the fields that classes of ours or of a recipe declare for a dataclass, in order."""
    upstream = ("builtins", "transformers", "trl", "peft")
    ours = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in upstream]
    names = (name for base in reversed(ours) for name in inspect.get_annotations(base))
    return list(dict.fromkeys(names))


def _settings(settings: Any) -> dict[str, Any]:
    """The settings of one dataclass object to write down, as YAML can hold them."""
    own, given = {*own_fields(type(settings)), "seed"}, getattr(settings, GIVEN, None)
    kept: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        if not field.init or field.name in _NOT_KEPT or field.metadata.get("help") == SUPPRESS:
            continue  # no recipe takes the last kind
        value, default = getattr(settings, field.name), default_of(field)
        # one that __post_init__ worked out (default None) could contradict a flag beside --config
        known = value if given is None else default
        differs = value != default if given is None else field.name in given
        if differs or (field.name in own and known is not None):
            kept[field.name] = value
    plain = json.dumps(kept, default=lambda v: vars(v) if dataclasses.is_dataclass(v) else str(v))
    return json.loads(plain)


def versions() -> str:
    """Say which Python and which packages this process runs, in a line."""
    found = [f"python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            continue
    return ", ".join(found)


@contextmanager
def recorded(run: RunFolder, about: Mapping[str, Any], step: Callable[[], int]) -> Iterator[None]:
    """Keep a record of the training inside, from its start on, so that a killed run has one too.

    `about` is plain data: `algorithm`, `about` (a paragraph), `rewards` (weights by name),
    `metrics` (names); `step` gives the last step that was done.
    """
    if not is_main_process():
        yield
        return
    began = time.monotonic()
    session = {"began": _now(), "how": "running", "device": device_name(), "versions": versions()}
    sessions = [*read_record(run).get("sessions", ()), session]
    note(run, **about, sessions=sessions)
    try:
        yield
        session["how"] = "finished"
    except (RunStopped, KeyboardInterrupt) as stopped:
        session |= {"how": "stopped", "said": str(stopped) or "Interrupted at once."}
        raise
    except BaseException as error:
        kind = "" if isinstance(error, RecipeError) else f"{type(error).__name__}: "
        session |= {"how": "failed", "said": f"{kind}{error}"}
        raise
    finally:
        memory = peak_memory()
        session |= {"step": step(), "seconds": time.monotonic() - began}
        session["gigabytes"] = memory if memory == memory else None  # nan: the system does not say
        note(run, sessions=sessions)


def note(run: RunFolder, **facts: Any) -> None:
    """Add facts, plain data by name, to training.json; the main process does."""
    if not is_main_process():
        return
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(read_record(run) | facts, indent=1, default=str, ensure_ascii=False)
        write_whole(run.record, text + "\n")
    except OSError as error:
        _log.warning("`%s` could not be written (%s).", run.record, error.strerror)


def read_record(run: RunFolder) -> dict[str, Any]:
    """Read training.json; nothing where it is missing or damaged."""
    try:
        found = json.loads(run.record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _holds_something(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.exists() and path.stat().st_size > 0


def _remove_run(run: RunFolder) -> None:
    run.stage.unlink(missing_ok=True)  # first: it says that the others are there
    for path in (*run.results, run.record, run.config):
        if path.is_dir() and not path.is_symlink():  # what it points to belongs to somebody else
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all; half of a surrogate pair becomes a question mark."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8", errors="replace")
    unfinished.replace(path)
