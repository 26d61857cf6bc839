"""SIGTERM and Ctrl-C: end after the current step, with a checkpoint to go on from."""

import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from trl_recipes.distributed import (
    another_failed,
    broadcast_from_main,
    gather,
    greatest,
    has_ended,
    is_main_process,
    neighbours,
)
from trl_recipes.errors import RecipeError, RunStopped
from trl_recipes.loss_log import LossLog
from trl_recipes.lost_peer import notice_lost_machines
from trl_recipes.models.sharding import check_embeddings, wrap_by_layer
from trl_recipes.run_folder import RunFolder, recorded

_log = logging.getLogger(__name__)


class StopSignals:
    """Notes the first SIGTERM or Ctrl-C while its block runs; a second one stops at once.

    Of several processes, one that gets the launcher's SIGTERM because another has ended ends at
    once too, also in the middle of waiting for that one: there is nothing that it could save.

    Attributes:
        received: the signal, or None.
    """

    WATCHED = (signal.SIGTERM, signal.SIGINT)
    PASSED_ON_SECONDS = 1.0  # a launcher passes a Ctrl-C on that its processes have already got

    def __init__(self):
        self.received: signal.Signals | None = None
        self._when = 0.0
        self._neighbours: list[int] = []
        self._wakeup: socket.socket | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._neighbours = neighbours()
        if threading.current_thread() is threading.main_thread():  # python allows no other
            self._handlers = {name: signal.signal(name, self._note) for name in self.WATCHED}
            if self._neighbours:
                self._watch()
        return self

    def __exit__(self, *error: Any) -> None:
        for name, handler in self._handlers.items():
            signal.signal(name, handler)
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)
            self._wakeup.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if self._neighbours and time.monotonic() - self._when < self.PASSED_ON_SECONDS:
                return
            raise KeyboardInterrupt
        self.received, self._when = signal.Signals(number), time.monotonic()
        if is_main_process():
            sys.stderr.write(
                f"\n{self.received.name}: finishing this step, then saving. Once more stops at "
                "once.\n"
            )

    def _watch(self) -> None:
        """Look after the neighbours at each signal in a thread: this one may wait for one of them.

        Python runs a signal's handler only when the main thread is back from what it waits for.
        """
        woken, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)

        def look() -> None:
            with woken:
                while woken.recv(1):
                    if another_failed() or any(map(has_ended, self._neighbours)):
                        os._exit(1)

        threading.Thread(target=look, name="neighbours", daemon=True).start()


class StopOnSignal(TrainerCallback):
    """Makes a transformers trainer save a checkpoint and end after the step of a signal.

    Args:
        signals: entered around `train`.
    """

    def __init__(self, signals: StopSignals):
        self.signals = signals

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for both where a signal came, to this process or to another."""
        number = greatest(int(self.signals.received or 0))
        if number:
            self.signals.received = signal.Signals(number)
            control.should_save = control.should_training_stop = True


def stop_run(received: signal.Signals, step: int, steps: int) -> NoReturn:
    """End a run that has written its checkpoint.

    Args:
        received: what ended it.
        step: the last one.
        steps: of the whole run.

    Raises:
        RunStopped: always; says how to go on.
    """
    raise RunStopped(
        f"Stopped by {received.name} after step {step} of {steps}. To go on: the same command with "
        "--resume_from_checkpoint true.",
        128 + received,
    )


def train_or_stop(
    trainer: Trainer,
    before_training: Callable[[], AbstractContextManager] | None = None,
    train: Callable[..., TrainOutput] | None = None,
    about: Mapping[str, Any] | None = None,
) -> TrainOutput:
    """Run a transformers trainer in a run folder, with its checkpoints in `checkpoints/`.

    Where there is a run folder, a training on texts leaves its losses there, and each leaves its
    record and its page, however it ends.

    Args:
        trainer: its `args` say where, how often it saves, and whether to resume: from a
            checkpoint's folder, or `true` for the newest whole one.
        before_training: gives what is entered around the training when all was found fit for it, to
            make the run folder ready; None for a training on texts that leaves no run.
        train: called with `resume_from_checkpoint`; None takes the trainer's own `train`.
        about: for the record, with `train`; see `trl_recipes.run_folder.recorded`.

    Returns:
        What the trainer's `train` gave.

    Raises:
        RecipeError: there is no such checkpoint.
        RunStopped: SIGTERM or Ctrl-C came, and a checkpoint was written.
    """
    args = trainer.args
    run, wanted = RunFolder(Path(args.output_dir)), args.resume_from_checkpoint
    find = partial(_find_checkpoint, run.checkpoints, str(wanted))
    checkpoint = broadcast_from_main(find) if wanted else None
    check_embeddings(trainer.model, trainer.accelerator)
    wrap_by_layer(trainer.model, trainer.accelerator)
    started = nullcontext()
    record = nullcontext() if about is None else recorded(run, about, lambda: _step(trainer))
    if before_training is not None:
        started = before_training()
        if not any(isinstance(c, LossLog) for c in trainer.callback_handler.callbacks):
            trainer.add_callback(LossLog(run.all_stats))
        record = recorded(run, {"about": _about(trainer)}, lambda: _step(trainer))
    ddp = trainer.accelerator.ddp_handler
    if ddp is not None and args.ddp_find_unused_parameters is None:
        ddp.find_unused_parameters = False  # else torch looks for some at each step, and warns
    args.dataloader_pin_memory &= torch.accelerator.is_available()  # else torch warns
    notice_lost_machines()
    with started, record:
        return _train(trainer, run, checkpoint, train or trainer.train)


def _train(
    trainer: Trainer, run: RunFolder, checkpoint: str | None, train: Callable[..., TrainOutput]
) -> TrainOutput:
    args = trainer.args
    if args.save_strategy == "no":
        return _of_all(train(resume_from_checkpoint=checkpoint))
    args.output_dir = str(run.checkpoints)
    try:
        with StopSignals() as signals:
            trainer.add_callback(StopOnSignal(signals))
            result = train(resume_from_checkpoint=checkpoint)
    finally:
        args.output_dir = str(run.path)
    if signals.received is not None and trainer.state.global_step < trainer.state.max_steps:
        trainer.accelerator.wait_for_everyone()  # the main process has written the checkpoint
        stop_run(signals.received, trainer.state.global_step, trainer.state.max_steps)
    return _of_all(result)


def _of_all(result: TrainOutput) -> TrainOutput:
    """The same with the mean loss of all processes: since its last log, transformers' is of one."""
    losses = gather([result.training_loss])
    return result._replace(training_loss=sum(losses) / len(losses))


def _about(trainer: Trainer) -> str:
    """A training on texts in a sentence or two."""
    args, model = trainer.args, trainer.model
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    steps, passes = f"{args.max_steps} steps", f"{args.num_train_epochs:g} pass(es) over them"
    return (
        f"{type(model).__name__}, training {count:,} parameters on {len(trainer.train_dataset):,} "
        f"rows: {steps if args.max_steps > 0 else passes}, {rows} rows a step. Learning rate "
        f"{args.learning_rate:g} at its highest; {'bfloat16 autocast' if args.bf16 else 'float32'} "
        f"on {args.device}, {args.world_size} process(es), seed {args.seed}."
    )


def _step(trainer: Trainer) -> int:
    return trainer.state.global_step


def _find_checkpoint(folder: Path, wanted: str) -> str | None:
    """The checkpoint to go on from; None where the run has none yet."""
    if wanted.lower() not in ("true", "1", "yes"):
        if not _is_whole(Path(wanted).expanduser()):
            raise RecipeError(
                f"--resume_from_checkpoint: `{wanted}` is no whole checkpoint (its "
                "trainer_state.json, written last, is missing or damaged). Give `true` for the "
                "newest one."
            )
        return wanted
    names = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("*")]
    found = {int(match[1]): path for match, path in names if match}
    for _, path in sorted(found.items(), reverse=True):
        if _is_whole(path):
            return str(path)
        _log.warning("Skipped `%s`: it was not written to its end.", path)
    _log.warning("`%s` has no checkpoint yet: starting at the first step.", folder.parent)
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Whether transformers got to write the last file of a checkpoint."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
