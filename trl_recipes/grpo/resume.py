"""What transformers' checkpoints of TRL's trainers lack, so that a run resumes exactly.

TRL samples a batch and may use it for several steps. Where a checkpoint falls between, TRL would
sample anew with other weights, and count its steps from 0, out of step with the prompts. So the
place in that cycle and the batch in use are kept beside what transformers keeps.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel

from trl_recipes.errors import RecipeError

REFERENCE_FOLDER = "reference"
EPOCH_SEEDS = 1_000_003  # far apart, so that epoch 1 of one seed is not epoch 0 of the next


class Place(NamedTuple):
    """Where between two steps a run is."""

    passes: int  # forward and backward passes so far, by which TRL tells when to sample
    episodes: int  # responses sampled so far, over all processes
    generated: int  # tokens of them
    batch: list[dict[str, Tensor]] | None  # the sampled batch, where it is not used up
    weights: list[float] | None = None  # of the reward functions, over their scale on the start


def begin_epoch(sampler: Sampler, epoch: int) -> None:
    """Make the order of an epoch's prompts follow from the epoch alone, also in a resumed run."""
    if sampler.shuffle:
        sampler.generator.manual_seed((sampler.seed or 0) + EPOCH_SEEDS * epoch)


def write_place(folder: Path, place: Place, process: int, processes: int) -> None:
    """Write a process's place into a checkpoint; a batch that is not of tensors is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    values = [value for part in place.batch or [] for value in part.values()]
    if not all(isinstance(value, Tensor | None) for value in values):  # but images
        place = place._replace(batch=None)
    torch.save(place._asdict() | {"processes": processes}, folder / _file(process))


def read_place(folder: Path, process: int, device: torch.device) -> tuple[Place, int]:
    """Read what `write_place` wrote, and how many processes there were.

    Raises:
        RecipeError: the checkpoint was not written by these trainers, or is damaged.
    """
    path = folder / _file(process)
    path = path if path.is_file() else folder / _file(0)  # of fewer processes
    try:
        kept = torch.load(path, map_location=device, weights_only=True)
        processes = kept.pop("processes")
        return Place(**kept), processes
    except (OSError, KeyError, TypeError) as error:
        raise RecipeError(
            f"--resume_from_checkpoint: `{path}` is missing or damaged, so this is no checkpoint "
            "of a GRPO or RLOO run. Name another checkpoint."
        ) from error


def write_weights(folder: Path, reference: PreTrainedModel) -> None:
    """Write a reference model that follows the policy into a checkpoint."""
    reference.save_pretrained(folder / REFERENCE_FOLDER)


def read_weights(folder: Path, kind: type[PreTrainedModel]) -> dict[str, Tensor]:
    """Read the state of a reference model, of this class, that `write_weights` wrote.

    Raises:
        RecipeError: it is not there.
    """
    if not (folder / REFERENCE_FOLDER).is_dir():
        raise RecipeError(
            f"--resume_from_checkpoint: `{folder}` has no reference model, which sync_ref_model "
            "needs. Name another checkpoint, or leave sync_ref_model as the run had it."
        )
    return kind.from_pretrained(folder / REFERENCE_FOLDER, use_safetensors=True).state_dict()


def _file(process: int) -> str:
    return f"sampled_batch_{process}.pt"
