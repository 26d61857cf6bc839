"""What the next step of a trainer depends on, taken out of it and put back."""

import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from trl_recipes.errors import RecipeError
from trl_recipes.models.sharding import shard_like
from trl_recipes.ppo.checkpoint import Checkpoint
from trl_recipes.random_states import set_random_states

if TYPE_CHECKING:
    from trl_recipes.ppo.trainer import PPOTrainer


def take(trainer: "PPOTrainer", randomness: list[dict[str, Any]]) -> Checkpoint:
    """Take out everything that the next step depends on; tensors are not copied.

    Args:
        trainer: between two steps.
        randomness: `random_states` of each process.
    """
    moments, optimizer = optimizer_state(trainer.optimizer)
    state = {
        "step": trainer.state.global_step,
        "episode": trainer.state.episode,  # the position in the data follows from it
        "kl_coef": trainer.kl_ctl.value,
        "running": vars(trainer.running),
        "normalisation": trainer.rewards.normalisation if trainer.rewards else {},
        "trust_sampling": trainer.first_batch.trust_sampling,
        "optimizer": optimizer,
        "scheduler": trainer.lr_scheduler.state_dict(),
        "random": randomness,
    }
    return Checkpoint(trained_parameters(trainer._actor_critic()), moments, state)


def copy_of(trainer: "PPOTrainer") -> Checkpoint:
    """As `take`, with copies of the tensors, for a trainer that is to be put back.

    Args:
        trainer: between two steps.
    """
    return copy.deepcopy(take(trainer, []))


def restore(trainer: "PPOTrainer", checkpoint: Checkpoint) -> dict[str, Any]:
    """Put back what `take` took.

    Args:
        trainer: built as the one that the checkpoint is of.
        checkpoint: from `take`.

    Returns:
        The checkpoint's plain numbers.

    Raises:
        RecipeError: other weights are trained than then.
    """
    state = checkpoint.state
    set_trained_parameters(trainer._actor_critic(), checkpoint.model)
    set_optimizer_state(trainer.optimizer, checkpoint.optimizer, state["optimizer"])
    trainer.lr_scheduler.load_state_dict(state["scheduler"])
    trainer.state.global_step, trainer.state.episode = state["step"], state["episode"]
    trainer.kl_ctl.value = state["kl_coef"]
    vars(trainer.running).update(state["running"])
    if trainer.rewards:
        fixed = {name: tuple(moments) for name, moments in state["normalisation"].items()}
        trainer.rewards.normalisation = fixed
    trainer.first_batch.trust_sampling = state["trust_sampling"]
    trainer.first_batch.updated = trainer.first_batch.evaluated = state["step"] > 0
    if len(state["random"]) == trainer.accelerator.num_processes:
        set_random_states(state["random"][trainer.accelerator.process_index])
    return state


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that training changes, by name; weights that are tied appear once.

    Args:
        model: the `ActorCritic`, unwrapped.
    """
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def set_trained_parameters(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Copy saved parameters back into a model.

    Args:
        model: the `ActorCritic`, unwrapped.
        saved: from `trained_parameters`.

    Raises:
        RecipeError: other parameters are trained now than were then.
    """
    current = trained_parameters(model)
    shapes, saved_shapes = ({n: tuple(p.shape) for n, p in s.items()} for s in (current, saved))
    if shapes != saved_shapes:
        differing = sorted(set(shapes.items()) ^ set(saved_shapes.items()))
        name = differing[0][0]
        raise RecipeError(
            "--resume_from_checkpoint: the checkpoint is of other weights than this run trains: "
            f"`{name}` is {saved_shapes.get(name, 'not there')} in it and "
            f"{shapes.get(name, 'not there')} here. Resume with the model, "
            "`trainable` and LoRA settings that the run began with."
        )
    for name, parameter in current.items():
        parameter.copy_(shard_like(saved[name], parameter))


def optimizer_state(optimizer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors and plain numbers.

    Args:
        optimizer: of torch, or wrapped by accelerate.

    Returns:
        Tensors by `<parameter's number>.<name>`, and the rest as JSON takes it.
    """
    state = optimizer.state_dict()
    tensors, numbers = {}, {}
    for number, moments in state["state"].items():
        for name, value in moments.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{number}.{name}"] = value
    return tensors, {"numbers": numbers, "param_groups": state["param_groups"]}


def set_optimizer_state(optimizer: Any, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Put an optimizer's state back.

    Args:
        optimizer: as in `optimizer_state`.
        tensors: as `optimizer_state` gave them.
        plain: likewise.
    """
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **plain["numbers"]}.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, moments in state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameters[number].shape:
                moments[name] = shard_like(value, parameters[number])
    optimizer.load_state_dict({"state": state, "param_groups": plain["param_groups"]})
