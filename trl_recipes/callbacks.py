"""What all trainers do beside their algorithm: progress, losses, resume, stop on a signal, push."""

import copy
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate import Accelerator
from huggingface_hub import HfApi
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import TrainOutput

from trl_recipes.checkpointing import find_checkpoint, share_checkpoint, whole_checkpoints
from trl_recipes.distributed import gather, has_ended, is_main_process, neighbors
from trl_recipes.errors import RecipeError, RunStopped
from trl_recipes.run_folder import RunFolder, recorded
from trl_recipes.stats import append_alarms, append_samples, append_stats, keep_steps

logger = logging.getLogger(__name__)


class StepProgress(ProgressCallback):
    """Shows transformers' bar of steps, led by score, KL and response length, or by the loss."""

    SCORES = (
        ("score", "env/reward_mean", "6.2f"),
        ("KL", "objective/kl", "6.2f"),
        ("length", "tokens/responses_len_mean", "4.1f"),
    )
    shown = (("loss", "loss", "6.3f"),)  # of a training on texts

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if (bar := self.training_bar) is not None:
            bar.bar_format = "{desc}{bar:20} step {n_fmt}/{total_fmt}, {remaining} left"
            bar.initial = bar.n = self.current_step = state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Lead with what tells whether the run goes well."""
        if self.training_bar is not None and logs is not None:
            if "env/reward_mean" in logs:  # a row without it may follow, of a batch seen before
                self.shown = self.SCORES
            if self.shown[0][1] in logs:
                known = [entry for entry in self.shown if entry[1] in logs]
                parts = [f"{name} {float(logs[key]):{form}}" for name, key, form in known]
                self.training_bar.set_description_str("  ".join(parts) + " ", refresh=False)


def show_progress(trainer: Trainer) -> None:
    """Show our bar of steps in the place of transformers', or none with `disable_tqdm`."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(StepProgress)


class LossLog(TrainerCallback):
    """Writes losses to all_stats, each hundredth of the run or oftener."""

    ROWS = 100  # about as many as a picture can show
    NAMES = (  # our key and the Trainer's; the last two are TRL's, of reward models
        ("loss/train", "loss"),
        ("loss/heldout", "eval_loss"),
        ("learning_rate", "learning_rate"),
        ("grad_norm", "grad_norm"),
        ("accuracy", "accuracy"),
        ("margin", "margin"),
    )

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop what was logged after the checkpoint that training goes on from."""
        if state.is_world_process_zero:
            keep_steps(self.path, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a row; the Trainer's own logging may be rarer than the run is long."""
        if state.global_step % max(1, state.max_steps // self.ROWS) == 0:
            control.should_log = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write the losses of this log."""
        row = {key: logs[name] for key, name in self.NAMES if name in (logs or {})}
        if row and state.is_world_process_zero:
            append_stats(self.path, {"step": state.global_step} | row)


def write_row(
    folder: str | Path, row: dict, alarms: Sequence[str], samples: Mapping[str, list]
) -> None:
    """Append one step's row, what alarms said of it and a few samples to the run folder."""
    run = RunFolder(folder)
    append_stats(run.all_stats, row)
    append_alarms(run.alarms, row["step"], alarms)
    if samples:
        append_samples(run.samples, row["step"], samples)


def tell(trainer: Trainer, event: str) -> None:
    """Call a method of the trainer's callbacks, such as `on_step_begin`, as transformers does."""
    told = getattr(trainer.callback_handler, event)
    trainer.control = told(trainer.args, trainer.state, trainer.control)


def end_step(trainer: Trainer, logs: dict[str, Any], new_epoch: bool) -> None:
    """End a step as transformers' loop does: log and save where settings or callbacks ask for it.

    `new_epoch` says that the next step is the first of an epoch.
    """
    tell(trainer, "on_step_end")
    args, state, control = trainer.args, trainer.state, trainer.control
    last = state.global_step >= state.max_steps or control.should_training_stop
    if last or new_epoch:
        tell(trainer, "on_epoch_end")
    if trainer.control.should_log:
        trainer.log(logs)
    if trainer.control.should_save and args.saves:
        trainer._save_checkpoint(None, None)
        tell(trainer, "on_save")
    if new_epoch and not last:
        tell(trainer, "on_epoch_begin")


class StopSignals:
    """Notes the first SIGTERM or Ctrl-C, in `received`; a second one stops at once.

    So does the launcher's SIGTERM where another process has ended: nothing could be saved.
    """

    WATCHED = (signal.SIGTERM, signal.SIGINT)
    PASSED_ON_SECONDS = 1.0  # a launcher passes a Ctrl-C on that its processes have already got

    def __init__(self):
        self.received: signal.Signals | None = None
        self._when = 0.0
        self._neighbors: list[int] = []
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._neighbors = neighbors()
        if threading.current_thread() is threading.main_thread():  # python allows no other
            self._handlers = {name: signal.signal(name, self._note) for name in self.WATCHED}
        return self

    def __exit__(self, *error: Any) -> None:
        for name, handler in self._handlers.items():
            signal.signal(name, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if any(map(has_ended, self._neighbors)):
            os._exit(1)
        if self.received is not None:
            if self._neighbors and time.monotonic() - self._when < self.PASSED_ON_SECONDS:
                return
            raise KeyboardInterrupt
        self.received, self._when = signal.Signals(number), time.monotonic()
        if is_main_process():
            sys.stderr.write(
                f"\n{self.received.name}: finishing this step, then saving. Once more stops at "
                "once.\n"
            )


class StopOnSignal(TrainerCallback):
    """Makes a trainer save a checkpoint and end after the step of a signal to any process."""

    def __init__(self, signals: StopSignals, accelerator: Accelerator):
        self.signals, self.accelerator = signals, accelerator

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for both where a signal came."""
        if self.signals.received:
            self.accelerator.set_trigger()
        if self.accelerator.check_trigger():
            number = max(gather([int(self.signals.received or 0)]))
            self.signals.received = signal.Signals(number)
            control.should_save = control.should_training_stop = True


def train_or_stop(
    trainer: Trainer,
    before_training: Callable[[], AbstractContextManager] | None = None,
    train: Callable[..., TrainOutput] | None = None,
    about: Mapping[str, Any] | None = None,
) -> TrainOutput:
    """Run a trainer in the folder that its `args` name, until it ends or is told to.

    `before_training`, of a training on texts, makes the run folder ready around it; losses are
    logged there. `train`, by default the trainer's own, is called with `resume_from_checkpoint`;
    `about` is for the record of the run. Without either no record is kept. Raises RunStopped where
    SIGTERM or Ctrl-C came; a checkpoint is then written.
    """
    args, run = trainer.args, RunFolder(trainer.args.output_dir)
    checkpoint = find_checkpoint(args)
    started = nullcontext()
    if before_training is not None:
        started = before_training()
        if not any(isinstance(c, LossLog) for c in trainer.callback_handler.callbacks):
            trainer.add_callback(LossLog(run.all_stats))
        about = {"about": _about(trainer)}
    ddp = trainer.accelerator.ddp_handler
    if ddp is not None and args.ddp_find_unused_parameters is None:
        ddp.find_unused_parameters = False  # else torch looks for some at each step, and warns
    if checkpoint is not None:
        share_checkpoint(checkpoint)
        checkpoint = str(checkpoint)
    train = partial(train or trainer.train, resume_from_checkpoint=checkpoint)
    with started, whole_checkpoints(trainer):
        if about is None:
            result = train()
        else:
            with recorded(run, about, lambda: trainer.state.global_step):
                result = _train(trainer, train)
    if result is None:  # of PPO
        return None
    losses = gather([result.training_loss])  # since its last log, transformers' is of one process
    return result._replace(training_loss=sum(losses) / len(losses))


def _train(trainer: Trainer, train: Callable[[], TrainOutput]) -> TrainOutput:
    with StopSignals() as signals:
        stop = StopOnSignal(signals, trainer.accelerator)
        trainer.add_callback(stop)
        result = train()
        trainer.remove_callback(stop)
    step, steps = trainer.state.global_step, trainer.state.max_steps
    if signals.received is not None and step < steps:
        raise RunStopped(
            f"Stopped by {signals.received.name} after step {step} of {steps}. To go on: the same "
            "command with --resume_from_checkpoint true.",
            128 + signals.received,
        )
    return result


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


def own_copy(config: Any) -> Any:
    """Copy a trainer's configuration, so that what is worked out for it is not for the next."""
    config = copy.copy(config)  # push_to_hub is left to push_model: Trainer pushes whole folders
    config.pushes, config.push_to_hub = config.push_to_hub, False
    try:
        if config.pushes:
            HfApi(token=config.hub_token).whoami()
    except Exception as error:  # offline, no token, a wrong one: each has an error of its own
        raise RecipeError(
            f"`push_to_hub`: no network, or no token for the hub ({error!s:.100}). Log in with "
            "`hf auth login`, or leave it out and upload later: `hf upload NAME RUN/model`."
        ) from error
    return config


def push_model(config: Any, folder: Path) -> None:
    """Upload a saved model where `push_to_hub` asked for it; an upload that fails is told."""
    if not config.pushes:
        return
    try:
        upload_model(config, folder)
    except Exception as error:
        name = hub_name(config)
        logger.warning("Not pushed (%s): upload it with `hf upload %s %s`.", error, name, folder)


def hub_name(config: Any) -> str:
    """Name the repository of a run: as `hub_model_id` says, or as its folder."""
    folder = Path(config.output_dir).absolute()
    return config.hub_model_id or folder.name


def upload_model(
    config: Any, folder: str | Path, name=None, token=None, private=None, **upload: Any
) -> str:
    """Upload a folder to the hub, by default as the configuration says; return the commit's URL."""
    api = HfApi(token=config.hub_token if token is None else token)
    private = config.hub_private_repo if private is None else private
    name = api.create_repo(name or hub_name(config), private=private, exist_ok=True).repo_id
    return str(api.upload_folder(repo_id=name, folder_path=folder, **upload))
