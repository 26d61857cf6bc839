"""What is trained: everything, the attention projections, or an adapter; and how it is saved."""

import copy
import re
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer

from trl_recipes.errors import RecipeError
from trl_recipes.models.sharding import full_model

ATTENTION = re.compile(
    r"\.(attn|attention|self_attn|self_attention|encoder_attn|SelfAttention|EncDecAttention)\."
)


def select_trainable(policy: nn.Module, trainable: str, peft_config: Any = None) -> Any:
    """Freeze what is not to be trained; return the configuration of a new adapter, if any.

    `trainable` is "all", "attention" (the attention projections of the full model) or "lora";
    `peft_config` goes with "all" or "lora".
    """
    if peft_config is not None:
        _check_target_modules(policy, peft_config)
    adapted = isinstance(policy, PeftModel)
    if trainable == "lora" and not adapted:
        task = "SEQ_2_SEQ_LM" if policy.config.is_encoder_decoder else "CAUSAL_LM"
        return peft_config or LoraConfig(task_type=task)
    if trainable != "attention":
        return peft_config
    if peft_config is not None or adapted:
        raise RecipeError(
            "`trainable: attention` trains weights of the full model, an adapter trains its own. "
            "Use `trainable: lora` with `lora_target_modules`, or leave the adapter out."
        )
    chosen = [name for name, _ in policy.named_parameters() if ATTENTION.search(f".{name}")]
    if not chosen:
        raise RecipeError(
            f"No attention projections were found in {type(policy).__name__} by their usual names. "
            "Use `trainable: all` or `trainable: lora`."
        )
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name in set(chosen))
    return None


def save_policy(policy: nn.Module, folder: Path, merge_adapter: bool) -> None:
    """Save a language model in the hub's format; of a PEFT model its adapter, or both merged."""
    if not hasattr(policy, "merge_and_unload"):
        policy.save_pretrained(folder)
    elif merge_adapter:
        copy.deepcopy(policy).merge_and_unload().save_pretrained(folder)
    else:
        policy.save_pretrained(folder, selected_adapters=["default"])


def save_trained(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save the model that transformers' Trainer has trained, gathered, and its tokenizer.

    All processes come here, and the main one writes.
    """
    writes = trainer.is_world_process_zero()
    model = full_model(trainer.accelerator.unwrap_model(trainer.model), keep=writes)
    if writes:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()


def _check_target_modules(policy: nn.Module, peft_config: Any) -> None:
    """Hold the modules that an adapter names to those that the model has."""
    wanted = getattr(peft_config, "target_modules", None)
    names = [name for name, _ in policy.named_modules()]
    if wanted in (None, "all-linear") or not wanted:
        return
    if isinstance(wanted, str) and any(name.endswith(f".{wanted}") for name in names):
        peft_config.target_modules = {wanted}  # TRL turns a list of one name into a pattern
    elif not any(check_target_module_exists(peft_config, name) for name in names):
        with_weights = {n.split(".")[-2] for n, p in policy.named_parameters() if p.dim() == 2}
        raise RecipeError(
            f"`lora_target_modules`: {type(policy).__name__} has no module named "
            f"{wanted if isinstance(wanted, str) else ' or '.join(sorted(wanted))}. Choose among: "
            f"{', '.join(sorted(with_weights))}."
        )
