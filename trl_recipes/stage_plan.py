"""Several stages in turn, where what decides one decides all behind it."""

import json
from pathlib import Path
from typing import Any

from trl_recipes import stages
from trl_recipes.errors import RecipeError
from trl_recipes.runs import is_main_process


class Stage:
    """A folder with the result of a stage, and the note of the settings that made it.

    Args:
        name: for messages.
        folder: where its result is.
        settings: all that decides how it turns out, by the name of its flag where it has one.
        anew: take it as not begun, whatever is there.

    Attributes:
        begun: there is a note, of a stage that was finished or interrupted.
        finished: there is a result.

    Raises:
        RecipeError: the folder holds what was made with other settings.
    """

    def __init__(self, name: str, folder: Path, settings: dict[str, Any], *, anew: bool = False):
        self.folder = folder
        self.settings = json.loads(json.dumps(settings, default=str))  # as a file gives it back
        self.begun = not anew and stages.has_begun(folder)
        found = stages.result_of(folder, self.settings, f"the {name}") if self.begun else None
        self.finished = found is not None

    def begin(self) -> None:
        """Note that the stage's work starts now."""
        self.begun = True
        if is_main_process():
            self.folder.mkdir(parents=True, exist_ok=True)
        stages.begin(self.folder, self.settings)

    def finish(self) -> None:
        """Note that the result is whole."""
        self.finished = True
        stages.finish(self.folder, self.settings, {})


class Stages:
    """Several stages in turn; what decides one decides all behind it.

    Args:
        wanted: the one to do, or "all"; those before it must be there then, those behind it are not
            looked at.
        anew: do what is wanted again, whatever is there.
    """

    def __init__(self, wanted: str, *, anew: bool = False):
        self.wanted, self.anew = wanted, anew
        self._stages: dict[str, Stage] = {}
        self._settings: dict[str, Any] = {}

    def add(self, name: str, folder: Path, settings: dict[str, Any]) -> None:
        """Add the next stage, and hold what its folder has to what would be made now.

        Args:
            name: its name.
            folder: of its result.
            settings: what decides it beside what decides the stages before it.

        Raises:
            RecipeError: as `Stage`, or the wanted stage needs this one and it is not there.
        """
        if self.wanted in self._stages:
            return
        self._settings |= settings
        wanted = self.wanted in ("all", name)
        stage = Stage(name, folder, dict(self._settings), anew=self.anew and wanted)
        if not wanted and not stage.finished:
            raise RecipeError(
                f"--stage {self.wanted} needs the {name}, and `{folder}` holds none that is "
                f"finished. Run --stage {name} first, or leave --stage out to run all."
            )
        self._stages[name] = stage

    def todo(self, name: str) -> Stage | None:
        """Give a stage that is wanted and not finished; None for others."""
        stage = self._stages.get(name)
        return None if stage is None or stage.finished else stage

    @property
    def begun(self) -> bool:
        """Whether any was begun before."""
        return any(stage.begun for stage in self._stages.values())

    def result(self, name: str, file: str) -> str:
        """Read a text that a stage left; empty where it is not there.

        Args:
            name: of the stage.
            file: in its folder.
        """
        stage = self._stages.get(name)
        return (stage.folder / file).read_text(encoding="utf-8") if stage and stage.finished else ""

    def describe(self) -> str:
        """Say which stages are there, which is gone on with and which are to do."""
        states = {True: "go on", False: "to do"}
        return ", ".join(
            f"{name}: {'there' if stage.finished else states[stage.begun]}"
            for name, stage in self._stages.items()
        )
