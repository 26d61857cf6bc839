"""Checkpoints of every trainer: transformers' folders, whole or not there, and how to find one.

checkpoints/checkpoint-40/
model.safetensors    trained weights (an adapter's lie in adapter_model.safetensors)
optimizer.pt         the optimizer's moments
scheduler.pt         the learning rate's schedule
rng_state*.pth       the random generators of each process
trainer_state.json   every other number that the next step depends on
"""

import json
import logging
import os
import random
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from trl_recipes.distributed import broadcast_from_main, gather, is_main_process
from trl_recipes.errors import RecipeError
from trl_recipes.run_folder import RunFolder, correct_config
from trl_recipes.stats import keep_steps

_log = logging.getLogger(__name__)

# Settings that lie in a checkpoint's optimizer, by their keys there.
_OF_OPTIMIZER = (
    ("initial_lr", "learning_rate"),
    ("weight_decay", "weight_decay"),
    ("betas", "adam_beta1 and adam_beta2"),
    ("eps", "adam_epsilon"),
    ("momentum", "momentum"),
)
UNFINISHED = ".unfinished"  # holds the checkpoint that is being written, or being removed
_BLOCK = 1 << 26  # bytes of a file that travel at once


@contextmanager
def whole_checkpoints(trainer: Trainer) -> Iterator[None]:
    """Have a trainer write each checkpoint into `checkpoints/` of its run, whole or not at all.

    A folder gets its name when it lies on the disk as a whole. A full disk ends no run. A run that
    goes on from its last step takes no other.
    """
    load = trainer._load_optimizer_and_scheduler
    trainer._save_checkpoint = partial(_save_whole, trainer, trainer._save_checkpoint)
    trainer._load_optimizer_and_scheduler = partial(_load_and_tell, trainer, load)
    trainer._run_epoch = partial(_run_unless_done, trainer, trainer._run_epoch)
    try:
        yield
    finally:
        for name in ("_save_checkpoint", "_load_optimizer_and_scheduler", "_run_epoch"):
            delattr(trainer, name)


def _run_unless_done(trainer: Trainer, run_epoch: Any, **kwargs: Any) -> None:
    # transformers asks whether the last step is done only after a step
    if trainer.state.global_step < trainer.state.max_steps:
        run_epoch(**kwargs)


def _load_and_tell(trainer: Trainer, load: Any, checkpoint: str | None) -> None:
    with told_of_kept_settings(trainer):
        load(checkpoint)


@contextmanager
def told_of_kept_settings(trainer: Trainer) -> Iterator[dict[str, tuple]]:
    """Warn of settings that the optimizer, loaded within the block, takes from its checkpoint.

    The block may add more by name, each as it is asked for and as it goes on; config.yaml
    gets the latter. Raises RecipeError where the checkpoint is of another kind of optimizer.
    """
    optimizer = trainer.optimizer
    asked, kept = dict(optimizer.param_groups[0]), {}
    try:
        yield kept
        loaded = optimizer.param_groups[0]
        if lacking := asked.keys() - loaded.keys():
            raise _other_optimizer(optimizer, f"it lacks {', '.join(sorted(lacking))}")
    except RecipeError:
        raise
    except (ValueError, IndexError) as error:  # torch's, and where moments are of more weights
        raise _other_optimizer(optimizer, error) from error
    kept |= {name: (asked[key], loaded[key]) for key, name in _OF_OPTIMIZER if key in asked}
    other = {name: (now, new) for name, (new, now) in kept.items() if new != now}
    if other and is_main_process():
        told = "; ".join(f"{name} {now}, not {new}" for name, (now, new) in other.items())
        _log.warning("The run goes on with its checkpoint's settings: %s.", told)
        correct_config(trainer.args.output_dir, {name: now for name, (now, _) in other.items()})


def _save_whole(trainer: Trainer, save: Any, model: Any = None, trial: Any = None) -> None:
    args, accelerator = trainer.args, trainer.accelerator
    checkpoints = RunFolder(args.output_dir).checkpoints
    place = checkpoints / f"checkpoint-{trainer.state.global_step}"
    unfinished = checkpoints / UNFINISHED
    if accelerator.is_local_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    accelerator.wait_for_everyone()  # none writes before what was left there is gone
    own, args.output_dir, failed = args.output_dir, str(unfinished), None
    try:
        save(model, trial)
    except (OSError, SafetensorError, RuntimeError) as error:
        # a full disk, for which safetensors and torch.save have no error of their own
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        failed = str(error)
    finally:
        args.output_dir = own
    errors = gather([failed])  # all have written: one that still does moves files about
    failed = next(filter(None, errors), None)
    if failed is None and accelerator.is_local_main_process:
        try:
            for path in (*unfinished.rglob("*"), unfinished):
                _flush(path)
        except OSError as error:
            failed = str(error)
    failed = next(filter(None, gather([failed])), None)
    if failed is not None:
        _log.warning(
            "`%s` could not be written (%s). The run goes on, and the checkpoints before it are "
            "whole. Free some space.",
            place,
            failed,
        )
    best = f"checkpoint-{trainer.state.best_global_step}"
    for turn in (accelerator.is_main_process, accelerator.is_local_main_process):
        if turn and unfinished.is_dir():  # in the second turn on a disk of its own
            if failed is None:
                if place.exists():
                    place.rename(unfinished / "old")
                (unfinished / place.name).rename(place)
                _flush(checkpoints)
                old = checkpoints_in(checkpoints)[args.save_total_limit or sys.maxsize :]
                for path in (path for path in old if path.name != best):
                    path.rename(unfinished / path.name)  # cut short, it is taken for none
            shutil.rmtree(unfinished, ignore_errors=True)
        accelerator.wait_for_everyone()  # none goes on, or ends, before it is written
    if (checkpoints / best).is_dir():
        trainer.state.best_model_checkpoint = str(checkpoints / best)


def _other_optimizer(optimizer: Any, why: Any) -> RecipeError:
    return RecipeError(
        "--resume_from_checkpoint: the checkpoint's optimizer is none like this run's "
        f"{type(getattr(optimizer, 'optimizer', optimizer)).__name__} ({why}). Resume with the "
        "`optim` or `optimizer` that the run began with."
    )


def checkpoints_in(checkpoints: Path) -> list[Path]:
    """List the checkpoints of a run, newest first; the folder need not be there."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in checkpoints.glob("*")]
    return [path for _, path in sorted(((int(m[1]), path) for m, path in found if m), reverse=True)]


def damage(checkpoint: Path) -> str | None:
    """Name a file of a checkpoint that is missing, cut short or has a broken header."""
    path = last = checkpoint / TRAINER_STATE_NAME
    try:
        for path in (last, *sorted(p for p in checkpoint.rglob("*") if p.is_file())):
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix in (".pt", ".pth", ".bin"):
                zipfile.ZipFile(path).close()
    except FileNotFoundError:
        return f"`{path.name}` is missing"
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        return f"`{path.name}` is cut short or damaged ({error})"
    return None


def find_checkpoint(args: TrainingArguments) -> Path | None:
    """Find the checkpoint to resume from, in the main process for all.

    `resume_from_checkpoint` names its folder, or asks for the newest whole one of the run (true).
    """
    wanted = args.resume_from_checkpoint
    if not wanted:
        return None
    if not getattr(args, "saves", True):
        raise RecipeError("`resume_from_checkpoint` needs `output_dir`: the run to go on with.")
    return broadcast_from_main(partial(_find, RunFolder(args.output_dir), str(wanted)))


def _find(run: RunFolder, wanted: str) -> Path | None:
    known = checkpoints_in(run.checkpoints)
    if wanted.lower() not in ("true", "1", "yes"):
        path = Path(wanted).expanduser()
        if reason := damage(path):
            names = ", ".join(f"`{each}`" for each in known) or "none"
            raise RecipeError(
                f"--resume_from_checkpoint: `{path}` is no whole checkpoint: {reason}. Give "
                f"`true` for the newest whole one, or one of: {names}."
            )
        return path
    reasons = []
    for path in known:
        reason = damage(path)
        if reason is None:
            if reasons:
                _log.warning("Skipped: %s.", "; ".join(reasons))
            return path
        reasons.append(f"`{path}` is damaged: {reason}")
    if reasons:
        raise RecipeError(
            f"--resume_from_checkpoint: no whole checkpoint is left ({'; '.join(reasons)}). Start "
            "anew with --overwrite_output_dir."
        )
    _log.warning("`%s` has no checkpoint yet: starting at its first step.", run)
    return None


def share_checkpoint(checkpoint: Path) -> None:
    """Copy what a machine with a disk of its own lacks of the main process's checkpoint to it."""
    sizes = broadcast_from_main(partial(_sizes, checkpoint))
    here = _sizes(checkpoint)
    lacking = [name for name, size in sizes.items() if here.get(name) != size]
    writes = int(os.environ.get("LOCAL_RANK", "0")) == 0
    for name in sorted(set(gather(lacking))):
        path = checkpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") if name in lacking and writes else nullcontext() as file:
            for start in range(0, sizes[name], _BLOCK):
                block = broadcast_from_main(partial(_read, path, start))
                if file is not None:
                    file.write(block)
    gather([None])  # none reads before all is there


def _sizes(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _read(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(_BLOCK)


def drop_later_rows(output_dir: str, step: int) -> list[dict[str, Any]]:
    """Drop what a run logged after a step that it goes back to; the rows of all_stats are left."""
    run = RunFolder(output_dir)
    for path in (run.samples, run.alarms):
        keep_steps(path, step)
    return keep_steps(run.all_stats, step)


def random_states() -> dict[str, Any]:
    """Take the state of every random generator that a step draws from."""
    states = {"python": random.getstate(), "torch": torch.get_rng_state()}
    states["numpy"] = np.random.get_state()  # noqa: NPY002  as users and transformers do
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` took."""
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])


def _flush(path: Path) -> None:
    """Wait until the disk has a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
