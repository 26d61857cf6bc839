"""Nothing is lost: checkpoints while a run goes on, going on from one, and how a run ends early."""

import json
import signal
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, gather_object

from trl_recipes.callbacks import StopSignals, stop_run
from trl_recipes.distributed import broadcast_from_main
from trl_recipes.errors import RecipeError
from trl_recipes.models.sharding import full_tensors
from trl_recipes.ppo import checkpoint, snapshot
from trl_recipes.random_states import random_states
from trl_recipes.run_folder import RunFolder, recorded
from trl_recipes.stats import keep_steps

if TYPE_CHECKING:
    from trl_recipes.ppo.trainer import PPOTrainer

logger = get_logger(__name__)


def resume(trainer: "PPOTrainer", wanted: str | bool | None) -> None:
    """Go back to a checkpoint, and drop what was logged after it.

    Args:
        trainer: before its first step.
        wanted: a checkpoint's folder, True for the newest whole one, or None for none.

    Raises:
        RecipeError: there is no such checkpoint, or it does not fit the trainer.
    """
    if not wanted:
        return
    found = _read(trainer, found_checkpoint(trainer, wanted))
    run = RunFolder(Path(trainer.args.output_dir))
    if found is None:
        logger.warning("`%s` has no checkpoint yet: starting at its first step.", run)
    else:
        state = snapshot.restore(trainer, found)
        processes = len(state["random"])
        if processes != trainer.accelerator.num_processes:
            logger.warning(
                "The run had %d processes and has %d now: it goes on with the same weights and "
                "prompts, but draws other responses.",
                processes,
                trainer.accelerator.num_processes,
            )
    trainer.state.epoch = trainer.state.episode / len(trainer.dataset)
    trainer.accelerator.wait_for_everyone()  # all have read before one writes
    if trainer.args.should_save:
        trainer.all_stats = keep_steps(run.all_stats, trainer.state.global_step)
        trainer.alarms.replay(trainer.all_stats)
        for path in (run.samples, run.alarms):
            keep_steps(path, trainer.state.global_step)


def found_checkpoint(trainer: "PPOTrainer", wanted: str | bool | None) -> Path | None:
    """Find the checkpoint to go on from, and hold it to what was written; the main process does.

    Args:
        trainer: says which run.
        wanted: as for `resume`.

    Returns:
        Its folder on the main process's disk; None where none is wanted, or the run has none yet.

    Raises:
        RecipeError: there is no such checkpoint, or it is damaged.
    """
    if not wanted:
        return None
    if not trainer.args.saves:
        raise RecipeError("`resume_from_checkpoint` needs `output_dir`: the run to go on with.")
    folder = RunFolder(Path(trainer.args.output_dir)).checkpoints
    return broadcast_from_main(partial(checkpoint.find_checkpoint, folder, wanted))


def _read(trainer: "PPOTrainer", found: Path | None) -> checkpoint.Checkpoint | None:
    """Read what the main process found, in each: from the disk, or as the main one sends it.

    It is sent where a machine has a disk of its own, on which nothing was written.
    """
    if found is None:
        return None
    if trainer.accelerator.num_processes == 1:
        return checkpoint.read_checkpoint(found)
    file = found / checkpoint.MANIFEST
    manifest = broadcast_from_main(file.read_bytes)
    here = file.is_file() and file.read_bytes() == manifest
    read = checkpoint.read_checkpoint(found) if here else None
    if all(gather_object([here])):
        return read
    (sent,) = broadcast_object_list([read])
    return sent


def save(trainer: "PPOTrainer", randomness: dict[str, Any]) -> None:
    """Write what the next step depends on; a disk that takes no more ends nothing.

    Args:
        trainer: between two steps, or in one that has not changed a weight yet.
        randomness: `random_states` when the next step began.
    """
    if not trainer.args.saves:
        return
    everyones = [randomness]
    if trainer.accelerator.num_processes > 1:
        everyones = gather_object(everyones)
    taken, writes = snapshot.take(trainer, everyones), trainer.args.should_save
    weights, moments = (full_tensors(part, keep=writes) for part in taken[:2])
    if writes:
        _write(trainer, checkpoint.Checkpoint(weights, moments, taken.state))
    trainer.accelerator.wait_for_everyone()  # none goes on, or ends, before it is written


def _write(trainer: "PPOTrainer", content: checkpoint.Checkpoint) -> None:
    """Write a checkpoint, in the main process."""
    folder = RunFolder(Path(trainer.args.output_dir)).checkpoints
    path = checkpoint.step_folder(folder, trainer.state.global_step)
    try:
        checkpoint.write_checkpoint(path, content)
        checkpoint.remove_old(folder, trainer.args.save_total_limit)
    except OSError as error:
        logger.warning(
            "`%s` could not be written (%s). The run goes on, and the checkpoints before it are "
            "whole. Free some space.",
            path,
            error.strerror,
        )


def record(trainer: "PPOTrainer", described: str) -> AbstractContextManager[None]:
    """Keep a record of the training inside, and a page of it; see `recorded`.

    Args:
        trainer: before its first step.
        described: the run in a paragraph.
    """
    if not trainer.args.should_save:
        return nullcontext()
    config, rewards = trainer.config, trainer.rewards
    about = {
        "algorithm": "PPO",
        "about": described,
        "rewards": dict(zip(rewards.names, rewards.weights, strict=True)),
        "metrics": rewards.metric_names,
        "kl_target": config.target if config.adap_kl_ctrl else None,
    }
    run = RunFolder(Path(trainer.args.output_dir))
    return recorded(run, about, lambda: trainer.state.global_step)


def save_or_stop(trainer: "PPOTrainer", signals: StopSignals) -> None:
    """After a step: write a checkpoint where one is due, and end where a signal came.

    Args:
        trainer: after a step.
        signals: what was received; of several processes, by any of them.

    Raises:
        RunStopped: a signal came.
    """
    received = torch.tensor(float(signals.received or 0), device=trainer.current_device)
    number = int(trainer.accelerator.gather(received.view(1)).max())
    every, step = trainer.args.save_steps, trainer.state.global_step
    if trainer.args.save_strategy == "no":
        every = 0
    if 0 < every < 1:  # a share of the run, as in transformers
        every = max(1, round(every * trainer.state.max_steps))
    last = step == trainer.state.max_steps
    if number or (every and (step % every == 0 or last)):
        save(trainer, random_states())
    if number and not last:
        stop_run(signal.Signals(number), step, trainer.state.max_steps)


def stop_not_finite(
    trainer: "PPOTrainer", stats: dict[str, Any], batch: dict[str, list]
) -> NoReturn:
    """End a run whose optimizer steps keep failing, and leave what is known of the last one.

    Args:
        trainer: after a step.
        stats: of the step.
        batch: its prompts, responses and scores.

    Raises:
        RecipeError: always.
    """
    where = ""
    if trainer.args.saves:
        save(trainer, random_states())
        path = RunFolder(Path(trainer.args.output_dir)).failure
        where = f" What is known of the step lies in `{path}`."
        if trainer.args.should_save:
            known = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in stats.items()}
            samples = {name: batch.get(name) for name in ("query", "response", "score")}
            path.write_text(json.dumps({"stats": known, "samples": samples}, indent=1))
    raise RecipeError(
        f"{trainer.steps_not_finite} optimizer steps in a row had a loss or gradient that is not "
        f"finite, the last in step {trainer.state.global_step}; none of them changed a weight. "
        "Usual causes: a learning rate that is too high, scores of very different size (see "
        f"`score_clip`, `use_score_scaling`), float16 weights.{where}"
    )
