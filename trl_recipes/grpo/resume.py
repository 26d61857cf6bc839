"""What transformers' checkpoints of TRL's trainers lack, so that a run resumes exactly.

TRL samples a batch and may use it for several steps. Where a checkpoint falls between, TRL would
sample anew with other weights, and count its steps from 0, out of step with the prompts. So the
place in that cycle and the batch in use are kept beside what transformers keeps.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel

from trl_recipes.errors import RecipeError

PLACE_FILE = "sampling_state.json"
REFERENCE_FOLDER = "reference"
EPOCH_SEEDS = 1_000_003  # far apart, so that epoch 1 of one seed is not epoch 0 of the next


class Place(NamedTuple):
    """Where between two steps a run is."""

    passes: int  # forward and backward passes so far, by which TRL tells when to sample
    episodes: int  # responses sampled so far, over all processes
    generated: int  # tokens of them
    batch: list[dict[str, Tensor]] | None  # the sampled batch, where it is not used up


def begin_epoch(sampler: Sampler, epoch: int) -> None:
    """Make the order of an epoch's prompts follow from the epoch alone, also in a resumed run.

    Args:
        sampler: TRL's; its first epoch stays as it is.
        epoch: counted from 0.
    """
    if sampler.shuffle:
        sampler.generator.manual_seed((sampler.seed or 0) + EPOCH_SEEDS * epoch)


def write_place(folder: Path, place: Place, process: int, processes: int) -> None:
    """Write a place into a checkpoint, before what makes the checkpoint a whole one.

    Args:
        folder: of the checkpoint; made if it is not there.
        place: the place; a batch with anything but tensors (images) is left out.
        process: index of this process.
        processes: how many there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if place.batch is not None and all(map(_is_tensors, place.batch)):
        tensors = {
            f"{number}.{key}": value.detach().cpu().clone().contiguous()
            for number, part in enumerate(place.batch)
            for key, value in part.items()
            if value is not None
        }
        save_file(tensors, folder / _batch_file(process))
    if process == 0:
        numbers = {key: getattr(place, key) for key in ("passes", "episodes", "generated")}
        numbers["processes"] = processes
        (folder / PLACE_FILE).write_text(json.dumps(numbers), encoding="utf-8")


def read_place(folder: Path, process: int, device: torch.device) -> tuple[Place, int]:
    """Read what `write_place` wrote.

    Args:
        folder: of the checkpoint.
        process: index of this process.
        device: where the batch goes.

    Returns:
        The place, and how many processes there were.

    Raises:
        RecipeError: the checkpoint was not written by these trainers, or is damaged.
    """
    path, batch = folder / PLACE_FILE, None
    try:
        numbers: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        processes = numbers.pop("processes", 1)
        place = Place(**numbers, batch=None)
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(
            f"--resume_from_checkpoint: `{path}` is missing or damaged, so this is no checkpoint "
            "of a GRPO or RLOO run. Name another checkpoint."
        ) from error
    if (folder / _batch_file(process)).is_file():
        tensors = load_file(folder / _batch_file(process))
        count = 1 + max(int(name.partition(".")[0]) for name in tensors)
        batch = [{} for _ in range(count)]
        for name, value in tensors.items():
            number, _, key = name.partition(".")
            batch[int(number)][key] = value.to(device)
    return place._replace(batch=batch), processes


def write_weights(folder: Path, reference: PreTrainedModel) -> None:
    """Write a reference model that follows the policy into a checkpoint.

    Args:
        folder: of the checkpoint.
        reference: the model.
    """
    reference.save_pretrained(folder / REFERENCE_FOLDER)


def read_weights(folder: Path, kind: type[PreTrainedModel]) -> dict[str, Tensor]:
    """Read what `write_weights` wrote.

    Args:
        folder: of the checkpoint.
        kind: class of the reference model.

    Raises:
        RecipeError: it is not there.
    """
    if not (folder / REFERENCE_FOLDER).is_dir():
        raise RecipeError(
            f"--resume_from_checkpoint: `{folder}` has no reference model, which sync_ref_model "
            "needs. Name another checkpoint, or leave sync_ref_model as the run had it."
        )
    return kind.from_pretrained(folder / REFERENCE_FOLDER, use_safetensors=True).state_dict()


def _is_tensors(part: dict[str, Any]) -> bool:
    return all(value is None or isinstance(value, Tensor) for value in part.values())


def _batch_file(process: int) -> str:
    return f"sampled_batch_{process}.safetensors"
