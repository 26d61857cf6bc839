"""The reference model of the KL penalty, in whichever of its three forms."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn

from trl_recipes.models.forward import unwrap_adapter
from trl_recipes.models.sharding import full_tensor, gathered

REFERENCE_ADAPTER = "reference"


@contextmanager
def reference_of(
    policy: nn.Module, ref_model: nn.Module | None, ref_adapter_name: str | None
) -> Iterator[nn.Module]:
    """Give the reference model for the time of the block.

    Args:
        policy: transformers or PEFT model.
        ref_model: a model of its own, or None for one that shares the policy's weights.
        ref_adapter_name: a frozen adapter of the policy; None switches the adapter off.
    """
    if ref_model is not None:
        with gathered(ref_model):
            yield ref_model
    elif ref_adapter_name is None:
        with policy.disable_adapter():
            yield policy
    else:
        active = policy.active_adapter
        policy.set_adapter(ref_adapter_name, inference_mode=True)
        try:
            yield policy
        finally:
            policy.set_adapter(active)


def frozen_reference_adapter(policy: nn.Module) -> str | None:
    """Copy the adapter that a policy arrives with, so that the reference is what it starts from.

    Switching an adapter off gives the base model, not the model that the adapter made of it. An
    adapter that does nothing yet needs no copy.

    Args:
        policy: gets a second, frozen adapter where it has one that does something.

    Returns:
        The copy's name, or None.
    """
    if not isinstance(policy, PeftModel):
        return None
    active = policy.active_adapter
    state = {n: p for n, p in policy.named_parameters() if f".{active}." in n}
    outputs = [p for n, p in state.items() if "lora_B" in n or "lora_embedding_B" in n]
    if outputs and not any(torch.any(p) for p in outputs):
        return None
    policy.add_adapter(REFERENCE_ADAPTER, policy.peft_config[active])
    parameters = dict(policy.named_parameters())
    for name, value in state.items():
        copy = parameters[name.replace(f".{active}.", f".{REFERENCE_ADAPTER}.")]
        copy.data.copy_(value.data)
        copy.requires_grad_(False)
    policy.set_adapter(active)
    return REFERENCE_ADAPTER


def reference_is_start(policy: nn.Module, ref_model: nn.Module | None) -> bool:
    """Whether the reference holds the very weights that the policy starts from.

    Args:
        policy: transformers or PEFT model, before its first update.
        ref_model: None where the reference is the policy with its adapter off or frozen.
    """
    if ref_model is None:
        return True
    state, others = unwrap_adapter(policy).state_dict(), ref_model.state_dict()
    return state.keys() == others.keys() and all(
        torch.equal(full_tensor(value), full_tensor(others[key]).to(value.device))
        for key, value in state.items()
    )
