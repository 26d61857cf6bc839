"""Exact resume of GRPO and RLOO: what transformers' checkpoints of TRL's trainers lack.

TRL samples a batch and may use it for several steps. Where a checkpoint falls between, TRL would
sample anew with other weights, and count its steps from 0, out of step with the prompts. So the
place in that cycle and the batch in use are kept beside what transformers keeps.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from accelerate.logging import get_logger
from torch import Tensor, nn

from trl_recipes.callbacks import hub_name, push_model, upload_model
from trl_recipes.checkpointing import drop_later_rows, random_states, set_random_states
from trl_recipes.errors import RecipeError
from trl_recipes.models.adapters import save_policy
from trl_recipes.models.forward import temporarily, unwrap_adapter
from trl_recipes.models.sharding import full_model
from trl_recipes.run_folder import RunFolder

logger = get_logger(__name__)

REFERENCE_FOLDER = "reference"  # in a checkpoint: a reference model that follows the policy
EPOCH_SEEDS = 1_000_003  # far apart, so that epoch 1 of one seed is not epoch 0 of the next


class Place(NamedTuple):
    """Where between two steps a run is."""

    passes: int  # forward and backward passes so far, by which TRL tells when to sample
    episodes: int  # responses sampled so far, over all processes
    generated: int  # tokens of them
    batch: list[dict[str, Tensor]] | None  # the sampled batch, where it is not used up
    normalization: dict[str, tuple[float, float]]  # shift and scale of each reward function


class GroupCheckpoints:
    """Mixin of TRL's trainers: a resumed run takes the steps of an uninterrupted one."""

    def _begin_epoch(self, epoch: int) -> None:
        """Make the order of an epoch's prompts follow from the epoch alone, also when resumed."""
        sampler = self._sampler
        if sampler is not None and sampler.shuffle:
            sampler.generator.manual_seed((sampler.seed or 0) + EPOCH_SEEDS * epoch)

    def _go_to_checkpoint(self) -> None:
        """Before the first step, drop the rows logged after the checkpoint, and go to its place."""
        self._between = None
        if self._trying or not self.args.resume_from_checkpoint:
            return
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.all_stats = drop_later_rows(self.args.output_dir, self.state.global_step)
        self._alarms.replay(self.all_stats)
        if self._checkpoint is None:
            return
        folder = Path(self._checkpoint)
        place = self._read_place(folder)
        self._step, self._buffered_inputs = place.passes, place.batch
        self._episodes, self._generated = place.episodes, place.generated
        if self.args.reward_norm == "reference" and not place.normalization:
            raise RecipeError(
                "`reward_norm` is reference, but the checkpoint is of a run that measured no "
                "reward on its start model. Leave it out, or start anew."
            )
        self.rewards.restore(place.normalization if self._normalizes() else {})
        self._weigh_rewards()
        if self.args.sync_ref_model:
            reference = self.accelerator.unwrap_model(self.ref_model)
            saved = type(reference).from_pretrained(folder / REFERENCE_FOLDER, use_safetensors=True)
            reference.load_state_dict(saved.state_dict())

    def _read_place(self, folder: Path) -> Place:
        """Read this process's place; with batches of another form, as near as it can be."""
        own, first = (folder / _file(n) for n in (self.accelerator.process_index, 0))
        path, now = own if own.is_file() else first, self._batches()
        try:
            kept = torch.load(path, map_location=self.accelerator.device, weights_only=True)
            before, place = dict(kept.pop("batches")), Place(**kept)
        except (OSError, KeyError, TypeError) as error:
            raise RecipeError(
                f"--resume_from_checkpoint: `{path}` is missing or damaged, so this is no "
                "checkpoint of a GRPO or RLOO run. Name another checkpoint."
            ) from error
        if before == now:
            return place
        changed = (
            f"had {before.get(name)} {name if name == 'processes' else f'as `{name}`'} and has "
            f"{now[name]} now"
            for name in now
            if now[name] != before.get(name)
        )
        logger.warning(
            "The run %s: it goes on with the same weights, but draws other responses; prompts go "
            "on where they were if a step takes as many as before.",
            ", ".join(changed),
        )
        passes = self.state.global_step * self.args.gradient_accumulation_steps
        return place._replace(passes=passes, batch=None)

    def _batches(self) -> dict[str, int]:
        """Collect what decides which passes use one sampled batch."""
        names = ("mini_batch_size", "gradient_accumulation_steps", "steps_per_generation")
        names += ("num_iterations", "num_generations")
        processes = {"processes": self.accelerator.num_processes}
        return processes | {name: getattr(self.args, name) for name in names}

    def _after_step(self) -> None:
        """Record where the run is, in case the next step fails."""
        unused = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        batch = None if unused else self._buffered_inputs
        normalization = self.rewards.normalization
        place = Place(self._step, self._episodes, self._generated, batch, normalization)
        self._between = (place, random_states(), self.state.num_input_tokens_seen)

    def _save_last_whole_step(self) -> None:
        """Write the checkpoint of the last step that ended, out of one that failed."""
        if self._between is not None:
            _, randomness, self.state.num_input_tokens_seen = self._between
            set_random_states(randomness)
            self._save_checkpoint(self.model, trial=None)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save the place between two batches, and a reference that follows the policy, too."""
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        place = self._between[0]._asdict() | {"batches": self._batches()}
        torch.save(place, folder / _file(self.accelerator.process_index))
        if self.args.sync_ref_model and self.args.should_save:  # else it is the start model
            reference = self.accelerator.unwrap_model(self.ref_model)
            reference.save_pretrained(folder / REFERENCE_FOLDER)
        super()._save_checkpoint(model, trial)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: TRL would put one into the run folder with each checkpoint."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save policy and tokenizer in the hub's format: to `model/` in the run folder, or here."""
        if _internal_call:
            super().save_model(output_dir, _internal_call)
            return
        folder = Path(output_dir or RunFolder(self.args.output_dir).model)
        self._save_policy(folder)
        if self.accelerator.is_main_process:
            push_model(self.args, folder)

    def push_to_hub(
        self, commit_message: str = "End of training", *, token: str | None = None, **card: Any
    ) -> str | None:
        """Upload model, tokenizer and TRL's model card; return the commit's address.

        Transformers would upload the run folder, with samples and checkpoints.
        """
        name = hub_name(self.args)
        with TemporaryDirectory() as folder:
            self._save_policy(Path(folder))
            if not self.accelerator.is_main_process:
                return None
            with temporarily(self.args, output_dir=folder), temporarily(self, hub_model_id=name):
                super().create_model_card(**card)
            return upload_model(self.args, folder, name, token, commit_message=commit_message)

    def _save_policy(self, folder: Path) -> None:
        writes = self.accelerator.is_main_process
        policy = full_model(self.accelerator.unwrap_model(self.model), keep=writes)
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            # as the start model had them: TRL and transformers write the tokenizer's tokens in
            unwrap_adapter(policy).generation_config = self._saved_settings
            save_policy(policy, folder, self.args.merge_adapter)
            self.processing_class.save_pretrained(folder)


def _file(process: int) -> str:
    return f"sampled_batch_{process}.pt"
