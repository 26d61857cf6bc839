"""The run folder: what a run writes, and where.

    runs/<name>/
        config.yaml        every setting; --config takes it to run the same again
        all_stats.jsonl    one row a step
        samples.jsonl      some queries, responses and scores of each step
        alarms.jsonl       what looked wrong, each said once
        failure.json       what is known of a step that ended the run
        plots/*.png
        report.html        all of it on one page
        training.json      what was trained, how it ended, how long it took
        comparison.json    answers and figures before and after, on held-out prompts
        model/             policy, value head and tokenizer
        checkpoints/step-N/
        stage.json         of a chain: the settings of this stage, and what it found

What is no flag (recipe, versions, date) stands in comment lines of config.yaml, so that the file
is exactly what --config reads.
"""

import dataclasses
import datetime
import enum
import importlib.metadata
import inspect
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from trl_recipes.distributed import is_main_process
from trl_recipes.errors import RecipeError

# Attribute in which the parser leaves the names of the fields that flags and --config gave.
GIVEN = "_given"
_MARK = "# A run of trl_recipes."
_PACKAGES = ("trl_recipes", "trl", "transformers", "torch", "accelerate", "datasets", "peft")
# Settings of one launch rather than of the run: repeating them would overwrite or resume again.
# The token is a secret.
_NOT_KEPT = {"overwrite_output_dir", "resume_from_checkpoint", "hub_token"}
_ALWAYS_KEPT = {"seed"}
# What save_pretrained and the trainers write into model/.
_MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "training_args.bin",
    "README.md",
)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The paths inside one run folder.

    Attributes:
        path: of the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """All settings, as YAML that --config takes."""
        return self.path / "config.yaml"

    @property
    def all_stats(self) -> Path:
        """Statistics, one JSON line a step."""
        return self.path / "all_stats.jsonl"

    @property
    def samples(self) -> Path:
        """Some queries, responses and scores of each step, as JSON lines."""
        return self.path / "samples.jsonl"

    @property
    def alarms(self) -> Path:
        """What looked wrong while it trained, a sentence a JSON line."""
        return self.path / "alarms.jsonl"

    @property
    def failure(self) -> Path:
        """What is known of a step that ended the run."""
        return self.path / "failure.json"

    @property
    def plots(self) -> Path:
        """Folder of the pictures."""
        return self.path / "plots"

    @property
    def report(self) -> Path:
        """The page that shows the run."""
        return self.path / "report.html"

    @property
    def record(self) -> Path:
        """What was trained, how it ended, how long it took."""
        return self.path / "training.json"

    @property
    def comparison(self) -> Path:
        """Answers and figures before and after, on held-out prompts."""
        return self.path / "comparison.json"

    @property
    def model(self) -> Path:
        """Folder of the trained model, value head and tokenizer."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Folder of `step-N` folders."""
        return self.path / "checkpoints"

    @property
    def stage(self) -> Path:
        """What a stage of a chain runs with, and what it found."""
        return self.path / "stage.json"

    @property
    def pretrained(self) -> Path:
        """Folder of the stage that a run of several stages starts PPO from."""
        return self.path / "pretrained"

    @property
    def reward_model(self) -> Path:
        """Folder of the stage that trains the reward model."""
        return self.path / "reward_model"

    def places(self) -> str:
        """Where what a run leaves lies, in four lines."""
        return (
            f"Model:    {self.model}\nPictures: {self.plots}\nStats:    {self.all_stats}\n"
            f"Report:   {self.report}"
        )

    def __str__(self) -> str:
        return str(self.path)


def run_options(config: Any) -> dict[str, Any]:
    """Take what `check_run` and `start_run` want to know out of a trainer's configuration.

    Args:
        config: transformers' TrainingArguments with `overwrite_output_dir`.
    """
    return {
        "output_dir": config.output_dir,
        "overwrite": config.overwrite_output_dir,
        "resume": bool(config.resume_from_checkpoint),
    }


def check_run(
    output_dir: str | os.PathLike, *, overwrite: bool = False, resume: bool = False
) -> RunFolder:
    """Say at once whether a run may start in a folder; nothing is written or removed.

    A folder whose run never got to train (no statistics, model or checkpoint) is used again. Only
    the main process looks.

    Args:
        output_dir: the folder; it need not be there.
        overwrite: whether an earlier run's files may be removed.
        resume: whether to go on with the run that is there.

    Returns:
        The run folder.

    Raises:
        RecipeError: the folder holds a run and neither option was given, or files that no run
            wrote and that this one would overwrite; or nothing to resume.
    """
    if overwrite and resume:
        raise RecipeError(
            "--overwrite_output_dir and --resume_from_checkpoint were both given. Choose one."
        )
    run = RunFolder(check_folder(output_dir))
    if not is_main_process():
        return run
    marked = run.config.is_file() and _is_marked(run.config)
    results = [path for path in _results(run) if _holds_something(path)]
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
    """Say at once whether a folder to write to can be one; nothing is made.

    Args:
        path: the value of --output_dir.

    Raises:
        RecipeError: a file lies there or further up.
    """
    if not str(path).strip():
        raise RecipeError("--output_dir is empty. Give the folder to write to.")
    folder = Path(path).expanduser()
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise RecipeError(
            f"--output_dir: `{folder}` cannot be a folder, because `{there}` is a file. Choose "
            "another folder."
        )
    return folder


def check_disk(folder: Path, needed: int) -> None:
    """Refuse a run whose checkpoints will not fit on the disk.

    Args:
        folder: that it will write to; it need not be there yet.
        needed: bytes.

    Raises:
        RecipeError: says how much is free and how much is needed.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise RecipeError(
            f"--output_dir: `{folder}` lies on a disk with {free / 1e9:.1f} GB free, but "
            f"checkpoints and model need about {needed / 1e9:.1f} GB. Free some space, choose "
            "another folder, or keep fewer: --save_total_limit 1, or --save_steps 0 for none."
        )


def start_run(
    output_dir: str | os.PathLike,
    *,
    overwrite: bool = False,
    resume: bool = False,
    settings: Sequence[Any] = (),
) -> RunFolder:
    """Make a run folder ready, without ever losing an earlier run by accident.

    To be called when everything else was found fit for training, since `overwrite` removes what an
    earlier run wrote. Only the main process writes.

    Args:
        output_dir: the folder; made if it is not there.
        overwrite: remove what an earlier run wrote there, and nothing else.
        resume: go on with the run that is there.
        settings: the parsed arguments, for `write_config`; none writes no settings.

    Returns:
        The run folder.

    Raises:
        RecipeError: as `check_run`, or no folder can be made.
    """
    run = check_run(output_dir, overwrite=overwrite, resume=resume)
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
            f"--output_dir: `{run}` cannot be made or written ({error.strerror}). Choose another "
            "folder."
        ) from error
    if settings:
        write_config(run, *settings)
    return run


def write_config(run: RunFolder, *dataclass_objects: Any, recipe: str | None = None) -> None:
    """Write config.yaml: every setting that differs from its default, and where it came from.

    Args:
        run: the run folder.
        *dataclass_objects: the parsed arguments. Fields of our own classes are written even where
            they have their default; one that was left out and worked out later is a comment.
        recipe: name of the recipe; that of the running script when None.
    """
    if not is_main_process():
        return
    values: dict[str, Any] = {}
    derived: dict[str, Any] = {}
    for settings in dataclass_objects:
        kept, worked_out = _settings(settings)
        values.update(kept)
        derived.update(worked_out)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    if any(hasattr(settings, "output_dir") for settings in dataclass_objects):
        values["output_dir"] = str(run.path)  # also where a recipe chose it
        derived.pop("output_dir", None)
    header = (
        f"{_MARK} To run it again: --config <this file> --output_dir <another folder>\n"
        f"# recipe: {recipe or Path(sys.argv[0]).name}\n"
        f"# started: {now}\n"
        f"# {versions()}\n"
    )
    for name, value in derived.items():
        header += f"# worked out: {name} = {value}\n"
    body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True) if values else ""
    write_whole(run.config, header + body)


def read_config(run: RunFolder | str | os.PathLike) -> dict[str, Any]:
    """Read the settings of a run.

    Args:
        run: the run folder, or its path.

    Returns:
        Settings by name of their flag.

    Raises:
        RecipeError: there is no such run, or its config.yaml is damaged.
    """
    run = run if isinstance(run, RunFolder) else RunFolder(Path(run).expanduser())
    if not run.config.is_file():
        raise RecipeError(f"`{run}` holds no run: there is no `{run.config}`. Check the folder.")
    try:
        values = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: {error.problem}" if mark else "it is no YAML"
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else where
        raise RecipeError(f"`{run.config}` is damaged: {reason}. Mend or delete it.") from error
    if values is not None and not isinstance(values, dict):
        raise RecipeError(f"`{run.config}` is damaged: it holds no settings. Mend or delete it.")
    return values or {}


def read_header(run: RunFolder) -> tuple[dict[str, str], dict[str, str]]:
    """Read what config.yaml says beside the settings.

    Args:
        run: the run folder; it may lack the file.

    Returns:
        `recipe`, `started` and `versions`, those that are there; and what was worked out from the
        settings, by name.
    """
    facts: dict[str, str] = {}
    derived: dict[str, str] = {}
    if not run.config.is_file():
        return facts, derived
    text = run.config.read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        name, _, value = line.removeprefix("# ").partition(": ")
        if not line.startswith("# "):
            break
        if name == "worked out":
            key, _, found = value.partition(" = ")
            derived[key] = found
        elif name in ("recipe", "started"):
            facts[name] = value
        elif line.startswith("# python "):
            facts["versions"] = line.removeprefix("# ")
    return facts, derived


def read_number(run: RunFolder | str | os.PathLike, name: str, default: int) -> int:
    """Read one setting of a run that is a whole number.

    Args:
        run: the run folder, or its path.
        name: of the flag.
        default: what holds where the run does not say.

    Raises:
        RecipeError: as `read_config`, or the setting is no whole number.
    """
    value = read_config(run).get(name, default)
    if type(value) is not int:
        raise RecipeError(
            f"`{run}`: its config.yaml gives `{name}` as {value!r}, which is no whole number. Mend "
            "the file."
        )
    return value


def is_own_class(cls: type) -> bool:
    """Whether a class is from trl_recipes or a recipe, rather than from transformers or trl."""
    return cls.__module__.partition(".")[0] not in ("builtins", "transformers", "trl", "peft")


def own_fields(cls: type) -> list[str]:
    """Names of the fields that classes of ours declare for a dataclass, in their order."""
    names = (
        name
        for base in reversed(cls.__mro__)
        if is_own_class(base)
        for name in inspect.get_annotations(base)
    )
    return list(dict.fromkeys(names))


def _settings(settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of one dataclass object to write down, and those worked out from them.

    A value that __post_init__ worked out (for a field of ours whose default is None) is no setting:
    given back through --config it could contradict a flag beside it.
    """
    own = {*own_fields(type(settings)), *_ALWAYS_KEPT}
    given = getattr(settings, GIVEN, None)
    kept: dict[str, Any] = {}
    derived: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        if not field.init or field.name in _NOT_KEPT:
            continue
        value, default = getattr(settings, field.name), _default(field)
        if given is None:
            keep = value != default or (field.name in own and value is not None)
        else:
            keep = field.name in given or (field.name in own and default is not None)
        if keep:
            kept[field.name] = _plain(value)
        elif field.name in own and value != default:
            derived[field.name] = _plain(value)
    return kept, derived


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _plain(value: Any) -> Any:
    """A value that YAML can hold and that its flag takes back."""
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if dataclasses.is_dataclass(value):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def versions() -> str:
    """Say which Python and which packages this process runs, in a line."""
    found = [f"python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            continue
    return ", ".join(found)


def _is_marked(config: Path) -> bool:
    return config.read_text(encoding="utf-8", errors="replace").startswith(_MARK)


def _results(run: RunFolder) -> list[Path]:
    return [*_result_files(run), run.plots, run.model, run.checkpoints]


def _result_files(run: RunFolder) -> list[Path]:
    return [run.all_stats, run.samples, run.alarms, run.failure, run.comparison, run.report]


def _holds_something(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.exists() and path.stat().st_size > 0


def _remove_run(run: RunFolder) -> None:
    """Remove what a run writes; files of others, even inside its folders, stay."""
    run.stage.unlink(missing_ok=True)  # first: it says that the others are there
    _remove_matching(run.plots, ("*.png",))
    _remove_matching(run.model, _MODEL_FILES)
    _remove_matching(run.checkpoints, ("step-*", "checkpoint-*"))
    for path in (*_result_files(run), run.record, run.config):
        path.unlink(missing_ok=True)


def _remove_matching(folder: Path, patterns: tuple[str, ...]) -> None:
    if folder.is_symlink():  # what it points to belongs to somebody else
        folder.unlink()
        return
    if not folder.is_dir():
        return
    for pattern in patterns:
        for path in list(folder.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all, in UTF-8.

    Args:
        path: the file; its folder is there.
        text: what it will hold; half of a surrogate pair becomes a question mark.

    Raises:
        OSError: it cannot be written.
    """
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8", errors="replace")
    unfinished.replace(path)
