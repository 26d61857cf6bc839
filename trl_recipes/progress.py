"""The progress bar of a run: score, KL and response length first, losses in the plots."""

from tqdm.auto import tqdm
from transformers import TrainerCallback

# What the bar shows of a step's statistics, where it is known.
SHOWN = (
    ("score", "env/reward_mean", "6.2f"),
    ("KL", "objective/kl", "6.2f"),
    ("length", "tokens/responses_len_mean", "4.1f"),
)


class StepProgress(TrainerCallback):
    """Shows one bar of training steps, on the main process."""

    def __init__(self):
        self.bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar."""
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit="step",
                dynamic_ncols=True,
                bar_format="{desc}{bar:20} step {n_fmt}/{total_fmt}, {remaining} left",
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Lead with what tells whether the run goes well."""
        if self.bar is not None and logs is not None and "env/reward_mean" in logs:
            parts = [f"{name} {logs[key]:{form}}" for name, key, form in SHOWN if key in logs]
            self.bar.set_description_str("  ".join(parts) + " ", refresh=False)

    def on_step_end(self, args, state, control, **kwargs):
        """Advance the bar."""
        if self.bar is not None:
            self.bar.update(1)

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
