"""Checkpoint and exact resume of PPO, and steps that are tried and undone."""

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.logging import get_logger
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.utils import SAFE_WEIGHTS_NAME

from trl_recipes.callbacks import push_model
from trl_recipes.checkpointing import (
    drop_later_rows,
    random_states,
    set_random_states,
    told_of_kept_settings,
)
from trl_recipes.describe import describe_check
from trl_recipes.errors import RecipeError
from trl_recipes.models import adapters
from trl_recipes.models.sharding import full_tensors, shard_like
from trl_recipes.ppo import checks, setup
from trl_recipes.ppo.models import save_actor_critic

logger = get_logger(__name__)

DRY_STEPS = 4  # the first one checks and warms up; the others tell how long a step takes
_KEPT = ("init_kl_coef", "reward_norm")  # settings that say where a run begins, and no more
_OWN = "PPOTrainer"  # under which trainer_state.json holds what only PPO has


class PPOCheckpoints:
    """Mixin of PPOTrainer: a resumed run takes the steps of an uninterrupted one."""

    def _training_state(self) -> dict[str, Any]:
        """Collect everything that the next step depends on, except randomness; copies nothing."""
        return {
            "model": self._trained_parameters(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
            "step": self.state.global_step,
            "ppo": {
                "episode": self.state.episode,  # the position in the data follows from it
                "kl_coef": self.kl_ctl.value,
                "running": dict(vars(self.scaling.running)),
                "normalization": self.rewards.normalization if self.rewards else {},
                "trust_sampling": self.first_batch.trust_sampling,
                "processes": self.accelerator.num_processes,
                "settings": {name: getattr(self.config, name) for name in _KEPT},
            },
        }

    def _set_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `_training_state` collected, or what a checkpoint holds of it."""
        own = state["ppo"]
        self._set_trained_parameters(state["model"])
        self._set_optimizer_state(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["scheduler"])
        self.state.global_step, self.state.episode = state["step"], own["episode"]
        self.kl_ctl.value = own["kl_coef"]
        vars(self.scaling.running).update(own["running"])
        if self.rewards:
            self.rewards.restore(own["normalization"])
        self.first_batch.trust_sampling = own["trust_sampling"]
        self.first_batch.updated = self.first_batch.evaluated = state["step"] > 0

    def _trained_parameters(self) -> dict[str, Tensor]:
        """Parameters that training changes, by name; weights that are tied appear once."""
        parameters = self._actor_critic().named_parameters()
        return {name: p.detach() for name, p in parameters if p.requires_grad}

    def _set_trained_parameters(self, saved: Mapping[str, Tensor]) -> None:
        current = self._trained_parameters()
        shapes, saved_shapes = ({n: tuple(p.shape) for n, p in s.items()} for s in (current, saved))
        if shapes != saved_shapes:
            name = min(set(shapes.items()) ^ set(saved_shapes.items()))[0]
            raise RecipeError(
                "--resume_from_checkpoint: the checkpoint is of other weights than this run "
                f"trains: `{name}` is {saved_shapes.get(name, 'not there')} in it and "
                f"{shapes.get(name, 'not there')} here. Resume with the model, "
                "`trainable` and LoRA settings that the run began with."
            )
        for name, parameter in current.items():
            parameter.copy_(shard_like(saved[name], parameter))

    def _set_optimizer_state(self, state: Mapping[str, Any]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {number: dict(own) for number, own in state["state"].items()}
        for number, own in moments.items():
            for name, value in own.items():
                if isinstance(value, Tensor) and value.shape == parameters[number].shape:
                    own[name] = shard_like(value, parameters[number])
        self.optimizer.load_state_dict({**state, "state": moments})

    # Before training

    def describe(self) -> str:
        """Say in one paragraph what `train` is about to do, with the batch arithmetic in words."""
        checks.check_before_training(self)
        setup.measure_rewards(self)
        return checks.description(self)

    def check(self) -> str:
        """Try the first steps of `train`, write nothing, restore everything; say what was found."""
        checks.check_before_training(self)
        before, randomness = copy.deepcopy(self._training_state()), random_states()
        seconds = []
        for _ in range(DRY_STEPS):
            started = time.perf_counter()
            batch = self._next_batch()
            self._train_on(*self._collect(batch))
            self.state.episode += self.config.global_batch_size
            seconds.append(time.perf_counter() - started)
        self._set_training_state(before)
        set_random_states(randomness)
        self.captured_passes = setup.captured_passes(self, self._small_pass)
        kept = adapters.kept_by(self._actor_critic(), self.ref_model)
        checked = "ratio 1 before the first update, the KL to the reference"
        sample = tuple(batch[name][0] for name in ("query", "response", "score"))
        return describe_check(seconds, self.args.num_total_batches, checked, sample, kept)

    # Saving and loading

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save policy, value head and tokenizer in the hub's format; None is the run's `model/`."""
        folder = Path(output_dir or Path(self.args.output_dir) / "model")
        writes = self.accelerator.is_main_process
        save_actor_critic(self._actor_critic(), folder, writes, self.args.merge_adapter)
        if writes:
            self.tokenizer.save_pretrained(folder)
            if not _internal_call:
                push_model(self.args, folder)

    def _save_checkpoint(self, model: Any = None, trial: Any = None) -> None:
        """Write a checkpoint; sharded weights are gathered first."""
        state, writes = self._training_state(), self.args.should_save
        weights = full_tensors(state["model"], keep=writes)
        optimizer = state["optimizer"]
        for number, moments in optimizer["state"].items():
            tensors = {name: value for name, value in moments.items() if isinstance(value, Tensor)}
            optimizer["state"][number] = {**moments, **full_tensors(tensors, keep=writes)}
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self._save_rng_state(str(folder))
        if writes:
            save_file({n: w.contiguous() for n, w in weights.items()}, folder / SAFE_WEIGHTS_NAME)
            torch.save(optimizer, folder / OPTIMIZER_NAME)
            torch.save(state["scheduler"], folder / SCHEDULER_NAME)
            own: dict[str, Any] = {_OWN: state["ppo"]}
            for callback in (*self.callback_handler.callbacks, self.control):
                if isinstance(callback, ExportableState):
                    own.setdefault(type(callback).__name__, []).append(callback.state())
            self.state.stateful_callbacks = own
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _resume(self, folder: str | None) -> None:
        """Go back to a checkpoint, and drop what the run logged after it."""
        if folder is not None:
            self._load_checkpoint(Path(folder))
        self.accelerator.wait_for_everyone()  # all have read before one writes
        if self.args.should_save:
            self.all_stats = drop_later_rows(self.args.output_dir, self.state.global_step)
            self.alarms.replay(self.all_stats)

    def _load_checkpoint(self, folder: Path) -> None:
        saved = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        own = saved.stateful_callbacks.pop(_OWN, None)
        files = (SAFE_WEIGHTS_NAME, OPTIMIZER_NAME, SCHEDULER_NAME)
        lacking = [name for name in files if not (folder / name).is_file()]
        if own is None or lacking:
            raise RecipeError(
                f"--resume_from_checkpoint: `{folder}` is not a whole checkpoint of PPO: "
                f"{f'`{lacking[0]}` is missing' if lacking else 'another trainer wrote it'}. Name "
                "another one."
            )
        optimizer, scheduler = (
            torch.load(folder / name, map_location="cpu", weights_only=True) for name in files[1:]
        )
        weights = load_file(folder / SAFE_WEIGHTS_NAME)
        parts = {"model": weights, "optimizer": optimizer, "scheduler": scheduler}
        with told_of_kept_settings(self) as kept:
            self._set_training_state({**parts, "step": saved.global_step, "ppo": own})
            settings = own.get("settings", {})
            kept |= {name: (getattr(self.config, name), v) for name, v in settings.items()}
        vars(self.config).update(settings)
        self.state.log_history = saved.log_history
        self.state.stateful_callbacks = saved.stateful_callbacks
        self._load_callback_state()  # with `restore_callback_states_from_checkpoint`
        if own["processes"] == self.accelerator.num_processes:
            self._load_rng_state(str(folder))
        else:
            logger.warning(
                "The run had %d processes and has %d now: it goes on with the same weights and "
                "prompts, but draws other responses.",
                own["processes"],
                self.accelerator.num_processes,
            )

    def _stop_not_finite(self) -> NoReturn:
        if self.args.saves:
            self._save_checkpoint()
        raise RecipeError(
            f"{self.steps_not_finite} optimizer steps in a row had a loss or gradient that is not "
            f"finite, the last in step {self.state.global_step}; none of them changed a weight. "
            "Usual causes: a learning rate that is too high, scores of very different size (see "
            "`score_clip`, `use_score_scaling`), float16 weights."
        )
