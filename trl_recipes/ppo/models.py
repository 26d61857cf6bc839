"""The models of PPO: a policy with a value head on its trunk, and the reference beside it."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from trl_recipes.errors import RecipeError
from trl_recipes.models.adapters import save_policy
from trl_recipes.models.forward import response_logits, unwrap_adapter
from trl_recipes.models.hub import resolve
from trl_recipes.models.loading import find_file, load_language_model
from trl_recipes.models.sharding import full_model, full_tensor, full_tensors, gathered

logger = logging.getLogger(__name__)

VALUE_HEAD_FILE = "value_head.safetensors"
REFERENCE_ADAPTER = "reference"
_LAYERS = ("transformer.h", "model.decoder.layers", "gpt_neox.layers", "model.layers")
_said: set[str] = set()


class ValueHead(nn.Module):
    """A linear layer from hidden states to values, behind dropout, under TRL's names."""

    def __init__(self, config: Any, summary_dropout_prob: float | None = None):
        super().__init__()
        if summary_dropout_prob is None:
            summary_dropout_prob = getattr(config, "summary_dropout_prob", 0.1)
        self.dropout = nn.Dropout(summary_dropout_prob)
        self.summary = nn.Linear(_hidden_size(config), 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., H) of any precision to values (..., 1)."""
        return self.summary(self.dropout(hidden).to(self.summary.weight.dtype))


class _ValueHeadModel(nn.Module):
    """A language model and a value head, loaded by name; the head has a file of its own."""

    transformers_parent_class: Any
    supported_args = ("summary_dropout_prob", "v_head_initializer_range", "v_head_init_strategy")

    def __init__(
        self,
        pretrained_model: nn.Module,
        summary_dropout_prob: float | None = None,
        v_head_initializer_range: float | None = None,
        v_head_init_strategy: str | None = None,
    ):
        super().__init__()
        if v_head_init_strategy not in (None, "normal"):
            raise RecipeError(
                f"Unknown `v_head_init_strategy` {v_head_init_strategy!r}. Use 'normal', or leave "
                "it out."
            )
        if v_head_init_strategy is None and v_head_initializer_range is not None:
            raise RecipeError(
                "`v_head_initializer_range` has a meaning only with "
                "`v_head_init_strategy='normal'`. Give both, or none."
            )
        self.pretrained_model, self.config = pretrained_model, pretrained_model.config
        self.is_peft_model = isinstance(pretrained_model, PeftModel)
        self.v_head = ValueHead(self.config, summary_dropout_prob)
        if v_head_init_strategy == "normal":
            std = 0.2 if v_head_initializer_range is None else v_head_initializer_range
            nn.init.normal_(self.v_head.summary.weight, std=std)
            nn.init.zeros_(self.v_head.summary.bias)

    def forward(self, *args: Any, return_past_key_values: bool = False, **kwargs: Any) -> tuple:
        """Run the language model and the value head.

        Returns float32 logits (B, L, V), the loss where labels were given, values (B, L), and the
        cache if `return_past_key_values`.
        """
        output = self.pretrained_model(*args, **{**kwargs, "output_hidden_states": True})
        hidden = getattr(output, "decoder_hidden_states", None) or output.hidden_states
        result = (output.logits.float(), output.loss, self.v_head(hidden[-1]).squeeze(-1))
        if not return_past_key_values:
            return result
        return (*result, output["cache" if "cache" in output else "past_key_values"])

    def generate(self, *args: Any, **kwargs: Any) -> Tensor:
        """Sample as the language model does; returns token ids (B, L)."""
        return self.pretrained_model.generate(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load a language model, in float32 unless `dtype` says otherwise, and its value head.

        Takes a hub name, a folder, or a transformers or PEFT model; `peft_config`, the value head's
        arguments of TRL, and options of the transformers class. A head that was never saved starts
        from 0, unless `v_head_init_strategy` is given (None is torch's own).
        """
        model, name = pretrained_model_name_or_path, None
        ours = ("peft_config", "is_trainable", *cls.supported_args)
        given = {key: kwargs.pop(key) for key in ours if key in kwargs}
        given.pop("is_trainable", None)
        peft_config = given.pop("peft_config", None)
        if isinstance(model, str | Path):
            name = resolve(str(model), "model")
            causal = cls.transformers_parent_class is AutoModelForCausalLM
            model = load_language_model(
                name, *model_args, causal=causal, is_trainable=True, **kwargs
            )
        else:
            given |= kwargs
        if peft_config is not None:
            model = get_peft_model(model, peft_config)
        model = cls(model, **given)
        weights = None if name is None else find_value_head(name)
        if weights is not None:
            model.v_head.summary.load_state_dict(weights)
        elif "v_head_init_strategy" not in given:
            nn.init.zeros_(model.v_head.summary.weight)
            nn.init.zeros_(model.v_head.summary.bias)
            if name is not None and name not in _said:
                _said.add(name)
                logger.info("%s has no value head: a fresh one starts from 0.", name)
        return model

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """Save the language model in the hub's format, and the value head beside it."""
        self.pretrained_model.save_pretrained(save_directory, **kwargs)
        save_value_head(self.v_head.summary.state_dict(), save_directory)


class AutoModelForCausalLMWithValueHead(_ValueHeadModel):
    """A causal language model with a value head (GPT-2, LLaMA, Qwen, GPT-NeoX and the like).

    TRL 0.11's class, except that the value head is saved in a file of its own, so that the model
    folder is a plain one, and that a fresh value head starts from 0.
    """

    transformers_parent_class = AutoModelForCausalLM


class AutoModelForSeq2SeqLMWithValueHead(_ValueHeadModel):
    """An encoder-decoder language model with a value head (T5, BART and the like).

    TRL 0.11's class, with the differences of [`AutoModelForCausalLMWithValueHead`].
    """

    transformers_parent_class = AutoModelForSeq2SeqLM


def _hidden_size(config: Any) -> int:
    """Width of the states that logits are made of."""
    if hasattr(config, "word_embed_proj_dim"):  # OPT
        return config.word_embed_proj_dim
    if hasattr(config, "hidden_size"):
        return config.hidden_size
    inner = getattr(config, "text_config", None) or config.decoder  # multimodal; EncoderDecoder
    return inner.hidden_size


def save_value_head(weights: dict[str, Tensor], folder: str | Path) -> None:
    """Write the weights of the value head's linear layer to `value_head.safetensors`."""
    weights = {key: value.contiguous() for key, value in weights.items()}
    save_file(weights, Path(folder) / VALUE_HEAD_FILE)


def find_value_head(name: str) -> dict[str, Tensor] | None:
    """Read `weight` (1, H) and `bias` (1,) of a folder's or hub model's value head, or None.

    They lie in a file of ours, or under `v_head.` keys in TRL 0.11's `model.safetensors`.
    """
    ours = find_file(name, VALUE_HEAD_FILE)
    if ours is not None:
        return load_file(ours)
    classic = find_file(name, "model.safetensors")
    if classic is None:
        return None
    prefix = "v_head.summary."
    with safe_open(classic, framework="pt") as file:
        keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
        return {key.removeprefix(prefix): file.get_tensor(key) for key in keys} or None


class ActorCritic(nn.Module):
    """A language model and a value head that share one run of the trunk.

    `pack` says whether short sequences stand in one line; set where the policy can do so. What else
    is asked of it, the user's value-head model answers, as it was `trainer.model` in TRL 0.11.
    """

    def __init__(self, value_head_model: nn.Module):
        super().__init__()
        vars(self)["value_head_model"] = value_head_model  # no submodule: its parts are
        self.policy = value_head_model.pretrained_model
        self.value_head = value_head_model.v_head
        self.config = self.policy.config
        self.pack = False

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "value_head_model" not in vars(self):  # while it is being made or copied
                raise
            return getattr(self.value_head_model, name)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Give weights under the names of the user's value-head model."""
        return self.value_head_model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Take what `state_dict` gives."""
        return self.value_head_model.load_state_dict(*args, **kwargs)

    def forward(
        self,
        queries: Tensor | None = None,
        query_mask: Tensor | None = None,
        responses: Tensor | None = None,
        response_mask: Tensor | None = None,
        **classic: Any,
    ) -> tuple:
        """Compute logits and values of the N response tokens alone, row after row.

        Queries and their mask are (B, Q), responses and theirs (B, R). Returns float32 logits
        (N, V), each of the token at its place, and values (N,), each of the state before it. Called
        as the user's value-head model is, it returns what that does.
        """
        rows = (queries, query_mask, responses, response_mask)
        if response_mask is None:
            return self.value_head_model(*(x for x in rows if x is not None), **classic)
        logits, hidden = response_logits(self.policy, *rows, pack=self.pack)
        return logits, self.values_of(hidden)

    def logits_of(self, reference: nn.Module, *rows: Tensor) -> Tensor:
        """Compute the reference's logits (N, V) in the place of the policy's."""
        return response_logits(reference, *rows, pack=self.pack)[0]

    def values_of(self, hidden: Tensor) -> Tensor:
        """Compute the values (...) of the trunk's last hidden states (..., H), in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.value_head(hidden.float()).squeeze(-1)


def save_actor_critic(model: ActorCritic, folder: Path, writes: bool, merge_adapter: bool) -> None:
    """Save policy and value head; processes that do not write help to gather what lies in parts."""
    policy = full_model(model.policy, keep=writes)
    value_head = full_tensors(model.value_head.summary.state_dict(), writes)
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        save_policy(policy, folder, merge_adapter)
        save_value_head(value_head, folder)


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0, also those that are plain numbers (BART, layer drop).

    Dropout makes the probability ratio differ from 1 before the first update. Unlike `eval()`, this
    leaves train mode on, which gradient checkpointing needs.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def create_reference_model(
    model: nn.Module, num_shared_layers: int | None = None, pattern: str | None = None
) -> nn.Module:
    """Copy a model, with or without a value head, and freeze the copy, in eval mode, as TRL did.

    The first `num_shared_layers` layers are frozen and shared with the copy; `pattern` is the name
    of a layer with `{layer}` in it, where TRL does not know the architecture.
    """
    reference = copy.deepcopy(model).requires_grad_(False).eval()
    for module in reference.modules():
        # TRL >= 1.15 patches `forward` of what it trains; the patch runs the original's weights
        if not hasattr(module, "_hf_hook"):  # accelerate's own patch is copied as it should be
            vars(module).pop("forward", None)
    if num_shared_layers is None:
        return reference
    names = [name for name, _ in model.named_parameters()]
    for layers in (pattern,) if pattern else (f"{layers}.{{layer}}" for layers in _LAYERS):
        first = layers.format(layer=num_shared_layers)
        found = [number for number, name in enumerate(names) if first in name]
        if found:
            for name in names[: found[0]]:
                shared = model.get_parameter(name).requires_grad_(False)
                reference.get_parameter(name).data = shared.data
            return reference
    raise RecipeError("The layers to share were not found by their names. Give `pattern`.")


@contextmanager
def reference_of(
    policy: nn.Module, ref_model: nn.Module | None, ref_adapter_name: str | None
) -> Iterator[nn.Module]:
    """Give the reference model for the time of the block.

    It is a model of its own, or the policy with another adapter, which is frozen, or with none.
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


def freeze_reference_adapter(policy: nn.Module) -> str | None:
    """Copy the adapter that a policy arrives with, frozen, and return the copy's name.

    Switching an adapter off gives the base model, not the model that the adapter made of it. A
    policy without an adapter, or with one that does nothing yet, needs no copy: None.
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
        frozen = parameters[name.replace(f".{active}.", f".{REFERENCE_ADAPTER}.")]
        frozen.data.copy_(value.data)
        frozen.requires_grad_(False)
    policy.set_adapter(active)
    return REFERENCE_ADAPTER


def reference_is_start(policy: nn.Module, ref_model: nn.Module | None) -> bool:
    """Whether the reference holds the very weights that the policy starts from.

    `ref_model` is None where the reference is the policy with another adapter or with none.
    """
    if ref_model is None:
        return True
    state, others = unwrap_adapter(policy).state_dict(), ref_model.state_dict()
    return state.keys() == others.keys() and all(
        torch.equal(full_tensor(value), full_tensor(others[key]).to(value.device))
        for key, value in state.items()
    )
