"""Stages of a recipe: each done once, and never taken for one that was made from something else."""

import json
from pathlib import Path
from typing import Any

from trl_recipes.errors import RecipeError
from trl_recipes.runs import is_main_process

RECORD = "made_from.json"


class Stage:
    """A folder with the result of a stage, and the record of what it is made from.

    Args:
        name: for messages.
        folder: where its result is.
        made_from: all that decides how it turns out, by the name of its flag where it has one.
        anew: take it as not begun, whatever is there.

    Attributes:
        begun: there is a record, of a stage that was finished or interrupted.
        finished: there is a result.

    Raises:
        RecipeError: the folder holds what was made from something else.
    """

    def __init__(self, name: str, folder: Path, made_from: dict[str, Any], *, anew: bool = False):
        self.name, self.folder = name, folder
        self.made_from = json.loads(json.dumps(made_from, default=str))  # as a file gives it back
        record = None if anew else self._read()
        self.begun, self.finished = record is not None, bool(record and record["finished"])
        if record is not None:
            self._compare(record["made_from"])

    def begin(self) -> None:
        """Record what the stage is made from; its work starts now."""
        self._write(finished=False)

    def finish(self) -> None:
        """Record that the result is whole."""
        self._write(finished=True)

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return {"finished": bool(record["finished"]), "made_from": dict(record["made_from"])}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecipeError(
                f"`{path}` is damaged, so nobody knows what the {self.name} beside it was made "
                "from. Choose another --output_dir, or use --overwrite_output_dir to make it anew."
            ) from error

    def _write(self, finished: bool) -> None:
        self.begun, self.finished = True, finished
        if not is_main_process():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"finished": finished, "made_from": self.made_from}
        unfinished = self.folder / f"{RECORD}.tmp"
        text = json.dumps(record, indent=1, ensure_ascii=False)
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(self.folder / RECORD)

    def _compare(self, before: dict[str, Any]) -> None:
        now = self.made_from
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if names:
            changes = "; ".join(
                f"{name} was {_short(before.get(name))}, is {_short(now.get(name))}"
                for name in names
            )
            raise RecipeError(
                f"--output_dir: the {self.name} in `{self.folder}` was made with other settings: "
                f"{changes}. Choose another --output_dir, or use --overwrite_output_dir to replace "
                "it."
            )


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
        self._made_from: dict[str, Any] = {}

    def add(self, name: str, folder: Path, made_from: dict[str, Any]) -> None:
        """Add the next stage, and hold what its folder has to what would be made now.

        Args:
            name: its name.
            folder: of its result.
            made_from: what decides it beside what decides the stages before it.

        Raises:
            RecipeError: as `Stage`, or the wanted stage needs this one and it is not there.
        """
        if self.wanted in self._stages:
            return
        self._made_from |= made_from
        wanted = self.wanted in ("all", name)
        stage = Stage(name, folder, dict(self._made_from), anew=self.anew and wanted)
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


def _short(value: Any) -> str:
    return "its default" if value is None else str(value)[:60]
