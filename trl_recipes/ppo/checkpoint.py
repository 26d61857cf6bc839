"""Checkpoints on disk: written whole or not at all, recognised when damaged, oldest removed.

    checkpoints/step-40/
        model.safetensors       trained weights: policy or adapter, and value head
        optimizer.safetensors   the optimizer's moments
        state.json              every other number that the next step depends on
        manifest.json           size and SHA-256 of the others; written last

Nothing in it is pickled. A folder without a manifest is an unfinished one and is never looked at.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from trl_recipes.errors import RecipeError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished"


class Checkpoint(NamedTuple):
    """What a checkpoint holds."""

    model: dict[str, Tensor]  # trained parameters by name
    optimizer: dict[str, Tensor]  # by `<parameter's number>.<name of the moment>`
    state: dict[str, Any]  # plain numbers, texts and lists


def step_folder(checkpoints: Path, step: int) -> Path:
    """Folder of one step's checkpoint.

    Args:
        checkpoints: folder of them all.
        step: number of the step.
    """
    return checkpoints / f"step-{step}"


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that a kill at any moment leaves it whole or not there.

    Everything goes to a folder of another name, is flushed to the disk, and gets its name at the
    very end.

    Args:
        folder: to be made; one that is there is replaced.
        checkpoint: what to keep.

    Raises:
        OSError: the disk is full or not writable; nothing half-written is left.
    """
    unfinished = folder.with_name(folder.name + _UNFINISHED)
    _remove(unfinished)
    try:
        unfinished.mkdir(parents=True)
        save_file(_contiguous(checkpoint.model), unfinished / "model.safetensors")
        save_file(_contiguous(checkpoint.optimizer), unfinished / "optimizer.safetensors")
        (unfinished / "state.json").write_text(json.dumps(checkpoint.state), encoding="utf-8")
        manifest = {path.name: _fingerprint(path) for path in sorted(unfinished.iterdir())}
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*unfinished.iterdir(), unfinished):
            _flush(path)
        _remove(folder)
        unfinished.rename(folder)
        _flush(folder.parent)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError) or "No space left" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error  # safetensors' own


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint that is known to be whole.

    Args:
        folder: for which `damage` is None.
    """
    return Checkpoint(
        load_file(folder / "model.safetensors"),
        load_file(folder / "optimizer.safetensors"),
        json.loads((folder / "state.json").read_text(encoding="utf-8")),
    )


def damage(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint; None where every byte is as it was written.

    Args:
        folder: of one checkpoint.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, (size, digest) in manifest.items():
            path = folder / name
            if not path.is_file():
                return f"`{name}` is missing"
            if path.stat().st_size != size:
                return f"`{name}` has {path.stat().st_size} bytes, not {size}"
            if _fingerprint(path) != [size, digest]:
                return f"`{name}` is not what was written"
    except OSError as error:
        return f"`{Path(error.filename or MANIFEST).name}` cannot be read ({error.strerror})"
    except (ValueError, AttributeError, TypeError):  # not JSON, or JSON of another shape
        return f"`{MANIFEST}` is not what was written"
    return None


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first; unfinished ones are not among them.

    Args:
        folder: `checkpoints` of the run folder; it need not be there.
    """
    found = [(re.fullmatch(r"step-(\d+)", path.name), path) for path in _entries(folder)]
    return [path for _, path in sorted(((int(m[1]), path) for m, path in found if m), reverse=True)]


def find_checkpoint(folder: Path, wanted: str | bool) -> Path | None:
    """Find the checkpoint to go on from.

    Args:
        folder: `checkpoints` of the run folder.
        wanted: a path, or True (or "true") for the newest whole one.

    Returns:
        Its folder; None where the newest was asked for and the run has none yet.

    Raises:
        RecipeError: the path is no checkpoint or a damaged one, or every one there is damaged.
    """
    if str(wanted).lower() not in ("true", "1", "yes"):
        path = Path(str(wanted)).expanduser()
        if not (path / MANIFEST).is_file():
            known = ", ".join(f"`{p}`" for p in checkpoints_in(folder)) or "none"
            raise RecipeError(
                f"--resume_from_checkpoint: `{path}` is no checkpoint of PPO (it holds no "
                f"{MANIFEST}). Give `true` for the newest one, or one of: {known}."
            )
        reason = damage(path)
        if reason is not None:
            raise RecipeError(
                f"--resume_from_checkpoint: `{path}` is damaged: {reason}. Give `true` to go on "
                "from the newest whole one."
            )
        return path
    reasons = {}
    for path in checkpoints_in(folder):
        reasons[path] = damage(path)
        if reasons[path] is None:
            for skipped in list(reasons)[:-1]:
                logger.warning("Skipped `%s`: it is damaged: %s.", skipped, reasons[skipped])
            return path
    if reasons:
        each = "; ".join(f"`{path.name}`: {reason}" for path, reason in reasons.items())
        raise RecipeError(
            f"--resume_from_checkpoint: every checkpoint in `{folder}` is damaged ({each}). Start "
            "anew with --overwrite_output_dir."
        )
    return None


def remove_old(folder: Path, keep: int | None) -> None:
    """Remove all but the newest checkpoints, and what an interrupted run left unfinished.

    Args:
        folder: `checkpoints` of the run folder.
        keep: how many to keep; None keeps all.
    """
    for path in _entries(folder):
        if path.name.endswith(_UNFINISHED):
            _remove(path)
    if keep is not None:
        for path in checkpoints_in(folder)[keep:]:
            _remove(path)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _remove(folder: Path) -> None:
    """Remove a folder; cut short, it is left without manifest and thus not taken for whole."""
    if folder.exists():
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def _fingerprint(path: Path) -> list:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return [path.stat().st_size, digest.hexdigest()]


def _flush(path: Path) -> None:
    """Wait until the disk has it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
