"""Turning what users pass to PPOTrainer into what transformers' constructor expects."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.activations import NewGELUActivation

from trl_recipes.errors import RecipeError
from trl_recipes.models.loading import load_config, load_tokenizer
from trl_recipes.models.sharding import check_fsdp_loading
from trl_recipes.ppo.config import PPOConfig
from trl_recipes.ppo.value_head import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
)


def check_launch(config: PPOConfig) -> None:
    """Hold the way a run was launched to what this trainer can do.

    Args:
        config: settings; what `accelerate launch` was told lies in the environment.

    Raises:
        RecipeError: the model would be spread over the processes in a way that cannot be trained.
    """
    check_fsdp_loading()
    if config.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise RecipeError(
            "PPO does not train under DeepSpeed, which takes the optimizer step within the "
            "backward pass: PPO decides afterwards whether the step would do harm (see "
            "`ratio_threshold`). FSDP2 spreads the same over the GPUs: launch with "
            "`--config_file recipes/accelerate/fsdp2.yaml`."
        )
    launched = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    version = os.environ.get("FSDP_VERSION", "1") if launched else "2"
    version = str((config.fsdp_plugin_args or {}).get("fsdp_version", version))
    if version != "2":
        raise RecipeError(
            f"PPO trains under FSDP version 2, not {version}. Launch with `fsdp_version: 2`, as "
            "in recipes/accelerate/fsdp2.yaml."
        )


def one_of(first_name: str, first: Any, second_name: str, second: Any) -> Any:
    """Return whichever of two names of one argument was given.

    Args:
        first_name: one name of the argument.
        first: what was given under it; None for nothing.
        second_name: the other name.
        second: what was given under that.

    Raises:
        RecipeError: both were given and differ.
    """
    if first is not None and second is not None and first is not second:
        raise RecipeError(
            f"`{first_name}` and `{second_name}` are two names of one argument and differ. "
            "Give one."
        )
    return second if first is None else first


def with_value_head(model: str | Path | nn.Module | None) -> nn.Module:
    """Load or wrap a model so that it has a value head.

    Args:
        model: hub name, folder, transformers or PEFT model, or a model with a value head.

    Raises:
        RecipeError: it is none of these.
    """
    if isinstance(model, str | Path):
        return _class_for(load_config(model)).from_pretrained(model)
    if hasattr(model, "v_head"):
        return model
    if isinstance(model, nn.Module) and hasattr(model, "config"):
        return _class_for(model.config).from_pretrained(model)
    raise RecipeError(
        f"`model` must be a name, a folder, or a language model, got {type(model).__name__}."
    )


def _class_for(config: Any) -> type:
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLMWithValueHead
    return AutoModelForCausalLMWithValueHead


def tokenizer_of(model: str | Path | nn.Module) -> PreTrainedTokenizerBase:
    """Load the tokenizer that goes by the model's name.

    Args:
        model: hub name or folder; a model tells neither.

    Raises:
        RecipeError: the model was not given by name.
    """
    if not isinstance(model, str | Path):
        raise RecipeError("`tokenizer` is missing. Pass the model's tokenizer.")
    return load_tokenizer(model)


@contextmanager
def as_transformers_expects(
    config: PPOConfig, policy: nn.Module, dataset_length: int | None
) -> Iterator[None]:
    """Work out the number of steps, and keep transformers' constructor from what is not its own.

    It would make the run's folder before all was found fit for training, and switch the model's
    cache off for good, in what is saved too.

    Args:
        config: changed for the time of the block, but for the number of steps.
        policy: the model.
        dataset_length: number of prompts; None where the caller has a loader of his own.
    """
    batch = config.global_batch_size
    if config.max_steps > 0:
        config.total_episodes = config.max_steps * batch
    elif config.total_episodes is None:
        config.total_episodes = int(config.num_train_epochs * (dataset_length or batch))
    config.num_total_batches = max(math.ceil(config.total_episodes / batch), 1)
    config.total_episodes = config.num_total_batches * batch
    saves, config.saves = config.saves, False
    cache = getattr(policy.config, "use_cache", None)
    try:
        yield
    finally:
        config.saves = saves
        if cache is not None:
            policy.config.use_cache = cache


def pass_cost(policy: nn.Module, device_type: str) -> int:
    """What one forward and backward pass costs beside its tokens, in tokens.

    Adding up gradients takes as long as a few dozen tokens take, whatever the model's size;
    starting the kernels takes a fixed time, which is worth more tokens the smaller the model and
    the faster the device. It decides how finely rows are split by length, and nothing else.

    Args:
        policy: the model.
        device_type: "cpu" or an accelerator's.
    """
    started = 2e8 if device_type == "cpu" else 3e11  # parameters times tokens, measured
    return round(32 + started / policy.num_parameters())


def fuse_activations(model: nn.Module) -> None:
    """Compute GPT-2's GELU in one kernel in the place of eight, to the same values.

    transformers writes it out in elementary operations, each of which reads, writes and, for the
    backward pass, keeps a tensor four times as wide as the model.

    Args:
        model: changed in place.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def spare_embedding_gradient(model: nn.Module) -> None:
    """Add the few rows that an embedding's gradient has to that of the head that shares its weight.

    Autograd would fill a second tensor of the vocabulary's size with zeros, and add all of it. With
    several processes it does so all the same: what averages gradients wants to know beforehand
    whether they are sparse.

    Args:
        model: changed in place where embedding and head are one weight.
    """
    if PartialState().num_processes > 1:
        return
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(embedding, nn.Embedding) and embedding.weight is getattr(head, "weight", None):
        embedding.sparse = True  # the sum with the head's gradient is dense


def keep_float32_shards(accelerator: Accelerator) -> None:
    """Gather weights and average gradients in float32; autocast alone is where bfloat16 begins.

    Args:
        accelerator: before it prepares a model.
    """
    if accelerator.is_fsdp2:
        accelerator.state.fsdp_plugin.mixed_precision_policy = None


def checkpoint_activations(policy: nn.Module, kwargs: dict | None) -> None:
    """Trade compute for memory in the backward pass.

    Args:
        policy: transformers or PEFT model.
        kwargs: of `torch.utils.checkpoint`, or None.
    """
    # renamed in transformers 5.23; Python 3.10 ends at 5.20
    enable = getattr(policy, "activation_checkpointing_enable", None)
    (enable or policy.gradient_checkpointing_enable)(kwargs)
    policy.enable_input_require_grads()
