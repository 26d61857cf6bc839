"""Models whose weights are sharded over several processes (FSDP2, DeepSpeed's ZeRO-3).

Where nothing is sharded, the functions return what they were given.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy as by_layer
from torch.distributed.tensor import DTensor, distribute_tensor

from trl_recipes.errors import RecipeError
from trl_recipes.models.forward import unwrap_adapter


def check_fsdp_loading() -> None:
    """Refuse a launch in which only the first process of a machine loads weights."""
    flags = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")
    if all(parse_flag_from_env(flag) for flag in flags):
        raise RecipeError(
            "`fsdp_cpu_ram_efficient_loading: true` would leave reward models and value heads "
            "empty in all processes but the first. Set it to false in the configuration that "
            "`accelerate launch` reads, as recipes/accelerate/fsdp2.yaml does."
        )


def check_embeddings(model: nn.Module, accelerator: Accelerator) -> None:
    """Refuse an encoder-decoder under FSDP2: encoder, decoder and head share one embedding."""
    if accelerator.is_fsdp2 and model.config.is_encoder_decoder:
        raise RecipeError(
            f"{type(unwrap_adapter(model)).__name__} cannot be trained under FSDP2 before PPO: "
            "accelerate would put the embedding that encoder and decoder share into two groups. "
            "Launch with `--config_file recipes/accelerate/several_gpus.yaml`."
        )


def wrap_by_layer(model: nn.Module, accelerator: Accelerator) -> None:
    """Tell accelerate which layers FSDP2 is to wrap one by one, unless its configuration does.

    What accelerate 1.15 finds out itself fails for ModernBERT, and is kept for the next model.
    """
    if not accelerator.is_fsdp2 or "FSDP_TRANSFORMER_CLS_TO_WRAP" in os.environ:
        return
    plugin = accelerator.state.fsdp_plugin
    if getattr(plugin.auto_wrap_policy, "func", plugin.auto_wrap_policy) is by_layer:
        base = unwrap_adapter(model)
        embeddings = base.get_input_embeddings()
        around = {type(m).__name__ for m in base.modules() if embeddings in m.children()}
        plugin.auto_wrap_policy = by_layer
        plugin.transformer_cls_names_to_wrap = sorted({*(base._no_split_modules or ())} - around)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 shards a model's weights over the processes."""
    return isinstance(model, FSDPModule)


def is_whole(model: nn.Module) -> bool:
    """Whether each process holds all of a model's weights."""
    return not any(map(_sharded, model.parameters()))


def set_fsdp_root(model: nn.Module) -> None:
    """Tell FSDP which module is the outermost; it would take the first that runs."""
    fully_shard.state(model)._lazy_init()
    # torch warns of in-place operations to come, of which neither we nor transformers have any
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)


@contextmanager
def gathered(model: nn.Module, reshard_after_forward: bool = True) -> Iterator[nn.Module]:
    """Give each process all of a model's weights within the block, which must not train.

    The weights travel once a rollout instead of once a token. Every process must enter the block.
    """
    shards = [module for module in model.modules() if is_sharded(module)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield model
    finally:
        for module in shards:
            module.reshard()
            if module is not model:  # the outermost keeps its weights until the backward pass
                module.set_reshard_after_forward(reshard_after_forward, recurse=False)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather all of a tensor that may be sharded, of the same shape. Every process must ask."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def _sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor) or hasattr(tensor, "ds_id")


def full_tensors(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Gather tensors by name, one after the other; sharded ones come to the CPU.

    A process that does not `keep` them helps and gets nothing.
    """
    found = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor)
        if keep:
            found[name] = full.detach().cpu() if _sharded(tensor) else full
    return found


def shard_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """Shard a whole tensor, equal in all processes, as another of the same shape is sharded."""
    if not isinstance(pattern, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(pattern.device, pattern.dtype), pattern.device_mesh, pattern.placements
    )


def full_model(model: nn.Module, keep: bool) -> nn.Module | None:
    """Gather a language model in one process, to be saved: a copy on the CPU where it is sharded.

    A process that does not `keep` it helps and gets None.
    """
    if is_whole(model):
        return model if keep else None
    state = full_tensors(model.state_dict(keep_vars=True), keep)
    if not keep:
        return None
    base = unwrap_adapter(model)
    with torch.device("meta"):
        copy = type(base)(base.config)
        if isinstance(model, PeftModel):
            copy = type(model)(copy, model.peft_config[model.active_adapter])
    copy.load_state_dict(state, strict=False, assign=True)  # a reference adapter is not of it
    unwrap_adapter(copy).tie_weights()
    return copy
