"""Stages of a chain: done once, resumed after a kill, never reused under other settings.

A stage's folder holds `stage.json`: the settings that it runs with, written when it begins, and
its result, added when all else is on disk.
"""

import atexit
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from trl_recipes.distributed import broadcast_from_main, is_main_process, print_main
from trl_recipes.errors import RecipeError
from trl_recipes.run_folder import RunFolder, check_run, default_of, start_run, write_whole
from trl_recipes.training.fit import dry_run

Report = Callable[[RunFolder], Any] | None

# Settings that change nothing of what a stage leaves.
_NEUTRAL = {"task", "prompt", "stage", "stages", "eval_prompts", "check", "disable_tqdm"}
_NEUTRAL |= {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "save_total_limit"}
_NEUTRAL |= {"report_to", "log_with", "hub_token", "logging_steps", "log_samples", "save_steps"}


def settings_of(*objects: Any) -> dict[str, Any]:
    """Collect the fields of dataclass objects that differ from their defaults and matter."""
    settings: dict[str, Any] = {}
    for item in objects:
        for field in dataclasses.fields(item):
            value = getattr(item, field.name)
            if field.init and field.name not in _NEUTRAL and value != default_of(field):
                settings[field.name] = value
    return json.loads(json.dumps(settings, default=str))


def digest(content: Iterable[Any]) -> str:
    """Hash plain data, such as lists of texts, to 16 hexadecimal digits."""
    found = hashlib.sha256()
    for part in content:
        found.update(repr(part).encode("utf-8", errors="replace"))
    return found.hexdigest()[:16]


@dataclasses.dataclass
class Stage:
    """One stage of a chain, in a folder of its own; `plan_stages` finds out what is there.

    `settings` decide its result. One that is not `wanted` must have finished where a later one
    needs it; `missing` says what to do else.
    """

    name: str
    folder: RunFolder  # or its path
    settings: dict[str, Any]
    wanted: bool = True
    missing: str = "Run it first."
    overwrite: bool = False
    begun: bool = dataclasses.field(default=False, init=False)
    result: dict[str, Any] | None = dataclasses.field(default=None, init=False)

    def __post_init__(self):
        self.folder = RunFolder(self.folder)

    @property
    def done(self) -> bool:
        """Whether it has finished."""
        return self.result is not None

    def read(self) -> None:
        """Read the state that the folder holds; the main process does so for all."""
        note = None if self.overwrite else broadcast_from_main(self._note)
        self.begun = note is not None
        before, self.result = note or (self.settings, None)
        changed = [
            f"{key} was {before.get(key, 'left out')} and is {self.settings.get(key, 'left out')}"
            for key in dict.fromkeys([*before, *self.settings])
            if before.get(key) != self.settings.get(key)
        ]
        if changed:
            raise RecipeError(
                f"--output_dir: `{self.folder}` holds the {self.name} of other settings: "
                f"{'; '.join(changed[:5])}. Give the former settings (they stand in its "
                "config.yaml), choose another folder, or use --overwrite_output_dir to run all "
                "stages anew."
            )

    def write(self, result: Mapping[str, Any] | None) -> None:
        """Note the settings, and the result once all else that the stage leaves is on disk."""
        self.begun, self.result = True, None if result is None else dict(result)
        if is_main_process():
            self.folder.path.mkdir(parents=True, exist_ok=True)
            note = {"settings": self.settings, "result": self.result}
            write_whole(self.folder.stage, json.dumps(note, indent=1) + "\n")

    @contextmanager
    def start(self, config: Any, settings: Sequence[Any] = (), report: Report = None) -> Iterator:
        """Enter `start_run` around the training of this stage, and note the settings."""
        with start_run(config, settings, report) as run:
            self.write(None)
            yield run

    def train(
        self,
        train: Callable[..., dict[str, Any]],
        config: Any,
        settings: Sequence[Any] = (),
        report: Report = None,
    ) -> dict[str, Any]:
        """Train in this folder unless that is done; with `config.check`, dry-run in another one.

        `train` is called with `output_dir`, `config` and `before_training`, and returns figures.
        """
        if self.result is not None:
            if self.result:
                print_main(f"{self._figures()}; there already, with the same settings.")
            return self.result
        if config.check:
            folder = broadcast_from_main(tempfile.mkdtemp)
            if is_main_process():
                atexit.register(shutil.rmtree, folder, ignore_errors=True)
            self.folder = RunFolder(Path(folder, self.folder.path.name))
            print_main(f"The {self.name}: {dry_run(train, config, self.folder.model)}")
            return {}
        config.output_dir, config.overwrite_output_dir = str(self.folder), self.overwrite
        config.resume_from_checkpoint = "true" if self.begun else None
        begin = partial(self.start, config, settings, report)
        self.write(train(output_dir=self.folder.model, config=config, before_training=begin))
        print_main(self._figures())
        return self.result

    def train_policy(self, trainer: Any, settings: Sequence[Any], report: Report) -> None:
        """Train with a trainer of this project in this folder, save the model, and finish."""
        with self.start(trainer.args, settings, report):
            trainer.train()
            trainer.save_model()
        self.write({"steps": trainer.state.global_step})

    def do(self, work: Callable[[], Any]) -> str:
        """Run `work`, which trains nothing, in the main process, once; return its text."""
        if not self.done:
            self.write(None)
            told = work() if is_main_process() else None
            self.write({"told": told if isinstance(told, str) else ""})
        return self.result.get("told", "")

    def _figures(self) -> str:
        shown = (
            f"{name.replace('_', ' ')} {value:{'.3f' if isinstance(value, float) else ','}}"
            for name, value in (self.result or {}).items()
            if not name.startswith("seconds")
        )
        return f"{self.folder}: {', '.join(shown)}"

    def _note(self) -> tuple[dict[str, Any], Any] | None:
        if not self.folder.stage.is_file():
            return None
        try:
            note = json.loads(self.folder.stage.read_text(encoding="utf-8"))
            return dict(note["settings"]), note["result"]
        except (ValueError, LookupError, TypeError) as error:
            raise RecipeError(
                f"`{self.folder.stage}` is damaged ({error}). Use --overwrite_output_dir to run "
                "all stages anew, or choose another --output_dir."
            ) from error


def plan_stages(stages: Sequence[Stage], config: Any) -> str:
    """Find out which stages are there and which to run, and say so in a line; nothing is written.

    What decides a stage decides all after it. Stages after the last wanted one are not looked at;
    where none is wanted, all must have finished. `config` is the trainer's, of the whole run; its
    `resume_from_checkpoint` is set where the stage in its folder was begun.
    """
    wanted = [number for number, stage in enumerate(stages) if stage.wanted]
    last = max(wanted, default=len(stages) - 1)
    settings: dict[str, Any] = {}
    for stage in stages[: last + 1]:
        settings |= stage.settings
        stage.settings = dict(settings)
        stage.overwrite = config.overwrite_output_dir and stage.wanted
        stage.read()
        if not stage.wanted and not stage.done:
            raise RecipeError(
                f"--output_dir: `{stage.folder}` holds no finished {stage.name}. {stage.missing}"
            )
    for stage in stages[last + 1 :]:
        stage.wanted, stage.result = False, {}
    resume = config.resume_from_checkpoint
    if resume and not any(stage.begun for stage in stages):
        raise RecipeError(
            f"--resume_from_checkpoint: `{config.output_dir}` holds no run to go on with. Check "
            "--output_dir."
        )
    main = next((s for s in stages if str(s.folder) == str(config.output_dir)), None)
    begun = main is not None and main.begun and not main.done
    config.resume_from_checkpoint = (resume or "true") if begun else None
    if main is not None and not main.done:
        check_run(config)
    states = ("there" if s.done else "resume" if s.begun else "to do" for s in stages[: last + 1])
    return ", ".join(f"{s.name}: {state}" for s, state in zip(stages, states, strict=False))
