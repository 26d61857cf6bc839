"""What is trained: everything, the attention projections, or an adapter; and how it is saved."""

import copy
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PeftType
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.optimization import AdafactorSchedule

from trl_recipes.errors import RecipeError
from trl_recipes.models.forward import unwrap_adapter
from trl_recipes.models.sharding import full_model, full_tensor, shard_like

MOMENTS = 2  # of AdamW, each in float32
ATTENTION = re.compile(
    r"\.(attn|attention|self_attn|self_attention|encoder_attn|SelfAttention|EncDecAttention)\."
)
LORA = re.compile(r"\.lora_(embedding_)?(?P<matrix>[AB])\.")


def select_trainable(policy: nn.Module, trainable: str, peft_config: Any = None) -> Any:
    """Freeze what is not to be trained; return the configuration of a new adapter, if any.

    `trainable` is "all", "attention" (the projections of the full model) or "lora".
    """
    adapted = isinstance(policy, PeftModel)
    refuse_second_adapter(policy, peft_config)
    for config in (peft_config, *(policy.peft_config.values() if adapted else ())):
        _check_kind(config)
    if peft_config is not None:
        _check_target_modules(policy, peft_config)
    if adapted and policy.active_adapters != ["default"]:
        raise RecipeError(
            f"`model` trains the adapters {', '.join(policy.active_adapters)}: PPO, GRPO and RLOO "
            "train the one named `default`. Load it without `adapter_name`."
        )
    if adapted and not any(p.requires_grad for p in policy.parameters()):
        policy.peft_config["default"].inference_mode = False  # an adapter is loaded frozen
        policy.set_adapter("default")
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


def refuse_second_adapter(model: nn.Module, peft_config: Any) -> None:
    """Refuse a new adapter on a model that has one: what is saved would lack either."""
    if peft_config is not None and isinstance(model, PeftModel):
        raise RecipeError(
            "`peft_config` (on the command line --use_peft) asks for a new adapter, but the model "
            "has one already. Leave it out to train that one, or merge it first: "
            "`model.merge_and_unload()`."
        )


def check_trained(model: nn.Module, optimizer: Any) -> None:
    """Refuse a model of which nothing is trained, and an optimizer of anything else."""
    trained = {p for p in model.parameters() if p.requires_grad}
    if not trained:
        raise RecipeError(
            "Every weight of the model is frozen (`requires_grad` is False): nothing would be "
            "trained. Set it for some, or train an adapter (`trainable: lora`)."
        )
    held = {p for group in getattr(optimizer, "param_groups", ()) for p in group["params"]}
    if held and not (held <= set(model.parameters()) and held & trained):
        raise RecipeError(
            "`optimizer` holds weights that are not this model's, or frozen ones alone: training "
            "would change nothing. Make it of the parameters of the model that you pass."
        )


def with_own_schedule(optimizer: Any, scheduler: Any) -> tuple[Any, Any]:
    """Leave the rate to an optimizer that works it out, such as `Adafactor(lr=None)`.

    Raises RecipeError where the schedule is of another optimizer.
    """
    if scheduler is not None and getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise RecipeError(
            "`lr_scheduler` is of an optimizer that is not the trainer's, so it would change "
            "nothing. Pass its optimizer too, as `optimizer`."
        )
    groups = getattr(optimizer, "param_groups", ())
    if scheduler is None and any(group["lr"] is None for group in groups):
        scheduler = _OwnSchedule(optimizer)
    return optimizer, scheduler


class _OwnSchedule(AdafactorSchedule):
    """Tells the learning rate that Adafactor has worked out for its last step."""

    def get_lr(self) -> list[float]:
        """One number a group; 0 before the first step."""
        optimizer, rates = self.optimizer, []
        for group in optimizer.param_groups:
            state = optimizer.state.get(group["params"][0])
            rates.append(float(optimizer._get_lr(group, state)) if state else 0.0)
        return rates


def kept_by(model: nn.Module, reference: nn.Module | None) -> tuple[int, int, int, int]:
    """Count the bytes that training keeps: weights, gradients, Adam's moments, the reference."""

    def size(parameters: Iterable[nn.Parameter]) -> int:
        return sum(p.numel() * p.element_size() for p in parameters)

    trained = size(p for p in model.parameters() if p.requires_grad)
    beside = 0 if reference is None else size(reference.parameters())
    return size(model.parameters()), trained, MOMENTS * trained, beside


class StartModel:
    """The model that a policy with an adapter is before training, for its reference.

    Switching a new LoRA adapter off gives it. What the switch leaves on (biases, embeddings trained
    whole), and all of an adapter that does something already, is kept in copies that take the
    places of the trained weights for a while.
    """

    def __init__(self, policy: PeftModel):
        self.policy = policy
        trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
        own = {n for n in trained if any(f".{name}." in n for name in policy.active_adapters)}
        matrices = {n: match["matrix"] for n in own if (match := LORA.search(n))}
        does_nothing = not any(trained[n].any() for n, matrix in matrices.items() if matrix == "B")
        self.switches = bool(matrices) and matrices.keys() == own and does_nothing
        kept = trained.keys() - (own if self.switches else set())
        self.weights = {n: full_tensor(trained[n].detach()).clone() for n in kept}
        self._switch = policy.disable_adapter

    @contextmanager
    def restored(self) -> Iterator[PeftModel]:
        """Give the policy as its start model within the block, which must not train."""
        with torch.no_grad(), self._switch() if self.switches else nullcontext():
            places = {n: self.policy.get_parameter(n) for n in self.weights}
            now = {n: place.detach().clone() for n, place in places.items()}
            for name, place in places.items():
                self.weights[name] = self.weights[name].to(place.device)
                place.copy_(shard_like(self.weights[name], place))
            try:
                yield self.policy
            finally:
                for name, place in places.items():
                    place.copy_(now[name])


def keep_base(policy: nn.Module) -> None:
    """Make a saved adapter name its base model by an absolute path, where that is a folder."""
    for config in policy.peft_config.values() if isinstance(policy, PeftModel) else ():
        base = config.base_model_name_or_path or unwrap_adapter(policy).name_or_path
        if base and Path(base).exists():
            config.base_model_name_or_path = str(Path(base).resolve())


def save_policy(policy: nn.Module, folder: Path, merge_adapter: bool) -> None:
    """Save a language model in the hub's format; of a PEFT model its adapter, or both merged."""
    if not hasattr(policy, "merge_and_unload"):
        policy.save_pretrained(folder)
    elif merge_adapter:
        copy.deepcopy(policy).merge_and_unload().save_pretrained(folder)
    else:
        policy.save_pretrained(folder, selected_adapters=["default"])


def save_trained(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save the model that transformers' Trainer has trained, gathered, in the main process."""
    writes = trainer.is_world_process_zero()
    model = full_model(trainer.accelerator.unwrap_model(trainer.model), keep=writes)
    if writes:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()


def _check_kind(peft_config: Any) -> None:
    adalora = getattr(peft_config, "peft_type", None) == PeftType.ADALORA
    if adalora or getattr(peft_config, "is_prompt_learning", False):
        need = "a call and a loss term in each step" if adalora else "tokens before each text"
        raise RecipeError(
            f"{type(peft_config).__name__} needs {need}, which PPO, GRPO and RLOO do not have. Use "
            "LoraConfig, for instance with `use_rslora=True`."
        )


def _check_target_modules(policy: nn.Module, peft_config: Any) -> None:
    """Check the modules that an adapter names against those of the model."""
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
