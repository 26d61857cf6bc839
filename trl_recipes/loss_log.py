"""The statistics of a training on transformers' Trainer, as rows of all_stats."""

from pathlib import Path

from transformers import TrainerCallback

from trl_recipes.stats import append_stats, keep_steps

ROWS = 100  # about as many as a picture can show
# our key and the Trainer's; the last two are TRL's, of reward models
_NAMES = {
    "loss/train": "loss",
    "loss/heldout": "eval_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "accuracy": "accuracy",
    "margin": "margin",
}


class LossLog(TrainerCallback):
    """Writes losses and what belongs to them to all_stats: each hundredth of the run, or oftener.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop what was logged after the checkpoint that training goes on from."""
        if state.is_world_process_zero:
            keep_steps(self.path, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a row; the Trainer's own logging may be rarer than the run is long."""
        if state.global_step % max(1, state.max_steps // ROWS) == 0:
            control.should_log = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Keep the losses of this log."""
        row = {key: logs[name] for key, name in _NAMES.items() if name in (logs or {})}
        if row and state.is_world_process_zero:
            append_stats(self.path, {"step": state.global_step} | row)
