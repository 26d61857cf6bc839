"""The models of PPO: a policy with a value head on its trunk, and the reference beside it."""

import copy
import json
import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.utils import PushToHubMixin

from trl_recipes.errors import RecipeError
from trl_recipes.models import loading
from trl_recipes.models.adapters import StartModel, refuse_second_adapter, save_policy
from trl_recipes.models.forward import (
    response_logits,
    tokens_of,
    train_without_chance,
    unwrap_adapter,
)
from trl_recipes.models.hub import resolve
from trl_recipes.models.sharding import full_model, full_tensor, full_tensors
from trl_recipes.ppo import objective

logger = logging.getLogger(__name__)

VALUE_HEAD_FILE = "value_head.safetensors"
_LAYERS = ("transformer.h", "model.decoder.layers", "gpt_neox.layers", "model.layers")
_SUMMARY = "v_head.summary."
# What a value-head model answers as its language model does.
_OF_LANGUAGE_MODEL = (
    *("device", "dtype", "generate", "generation_config"),
    *("get_input_embeddings", "get_output_embeddings"),
    *("gradient_checkpointing_enable", "gradient_checkpointing_disable"),
    *("enable_input_require_grads", "prepare_inputs_for_generation", "resize_token_embeddings"),
)


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


class _ValueHeadModel(PushToHubMixin, nn.Module):
    """A language model and a value head, loaded by name; the head has a file of its own."""

    transformers_parent_class: Any
    lm_head_namings = ("lm_head", "embed_out")
    supported_args = ("summary_dropout_prob", "v_head_initializer_range", "v_head_init_strategy")
    supported_modules = ("v_head",)  # the heads that are saved beside the language model
    supported_rm_modules = ("score",)

    def __init__(
        self,
        pretrained_model: nn.Module,
        summary_dropout_prob: float | None = None,
        v_head_initializer_range: float | None = None,
        v_head_init_strategy: str | None = None,
    ):
        super().__init__()
        given = v_head_initializer_range is not None
        if v_head_init_strategy not in (None, "normal") or (given and not v_head_init_strategy):
            raise RecipeError(
                f"`v_head_init_strategy` is {v_head_init_strategy!r}: use 'normal', which alone "
                "takes `v_head_initializer_range`, or leave both out."
            )
        self._check_language_model_head(pretrained_model)
        self.pretrained_model, self.config = pretrained_model, pretrained_model.config
        self.is_peft_model = isinstance(pretrained_model, PeftModel)
        self.supports_rm_adapter, self.rm_adapter_name = False, None
        self.v_head = ValueHead(self.config, summary_dropout_prob)
        if v_head_init_strategy == "normal":
            std = v_head_initializer_range if given else 0.2
            nn.init.normal_(self.v_head.summary.weight, std=std)
            nn.init.zeros_(self.v_head.summary.bias)
        self.register_state_dict_post_hook(_to_trl_names)
        self.register_load_state_dict_pre_hook(_from_trl_names)

    def __getattr__(self, name: str) -> Any:
        if name in _OF_LANGUAGE_MODEL:
            return getattr(super().__getattr__("pretrained_model"), name)
        return super().__getattr__(name)

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

    @torch.no_grad()
    def compute_reward_score(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Score texts (B, L) with the reward adapter: (B, L, labels), one score at each token."""
        if not self.supports_rm_adapter:
            raise RecipeError("This model has no reward adapter. Load it with `reward_adapter=`.")
        model = self.pretrained_model
        training, active = model.training, model.active_adapter
        model.eval().set_adapter(self.rm_adapter_name, inference_mode=True)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        try:
            output = model(**given, output_hidden_states=True)
        finally:
            model.set_adapter(active)
            model.train(training)
        hidden = output.hidden_states[-1]
        return self.score.to(hidden.device)(hidden.to(self.score.weight.dtype))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load a language model, in float32 unless `dtype` says otherwise, and its value head.

        Takes a hub name, a folder, or a transformers or PEFT model. A head that was never saved
        starts from 0, unless `v_head_init_strategy` is given (None is torch's own).
        `reward_adapter` names an adapter of a sequence classifier on the same model, for
        `compute_reward_score`.
        """
        model, name, heads = pretrained_model_name_or_path, None, {}
        given = {key: kwargs.pop(key) for key in cls.supported_args if key in kwargs}
        peft_config = kwargs.pop("peft_config", None)
        reward_adapter = kwargs.pop("reward_adapter", None)
        reward_adapter_name = kwargs.pop("reward_adapter_name", "reward_adapter")
        trainable = kwargs.pop("is_trainable", True)
        if isinstance(model, str | Path):
            kwargs = loading.present_names(kwargs)
            where = {key: kwargs[key] for key in loading.WHERE if key in kwargs}
            name = resolve(str(model), "model", token=kwargs.get("token"))
            causal = cls.transformers_parent_class is AutoModelForCausalLM
            model = loading.load_language_model(
                name, *model_args, causal=causal, is_trainable=trainable, **kwargs
            )
            heads = find_heads(name, cls.supported_modules, **where)
        else:
            dtypes = {kwargs.pop(name, None) for name in ("dtype", "torch_dtype")}
            if dtypes != {None}:
                logger.warning("`dtype` is for a model loaded by name: this one stays as it is.")
            given |= kwargs
        refuse_second_adapter(model, peft_config)
        if peft_config is not None:
            if getattr(model, "is_quantized", False):
                model = prepare_model_for_kbit_training(model)
            model = get_peft_model(model, peft_config)
        model = cls(model, **given)
        model._load_heads(heads, name, drawn="v_head_init_strategy" in given)
        if reward_adapter is not None:
            model._load_reward_adapter(reward_adapter, reward_adapter_name)
        return model

    def save_pretrained(
        self, save_directory: str | Path, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Save the language model in the hub's format, and the value head beside it.

        `state_dict` holds the weights to save where they are not the model's own, by its names.
        """
        heads = self.heads()
        if state_dict is not None:
            heads = {key: state_dict[key] for key in heads}
            others = {k: v for k, v in state_dict.items() if k not in heads}
            kwargs |= {} if self.is_peft_model else {"state_dict": others}
        self.pretrained_model.save_pretrained(save_directory, **kwargs)
        save_value_head(heads, save_directory)

    def heads(self) -> dict[str, Tensor]:
        """Give the weights of the heads, under names such as `v_head.summary.weight`."""
        heads = {module: getattr(self, module).state_dict() for module in self.supported_modules}
        return {f"{m}.{key}": value for m, own in heads.items() for key, value in own.items()}

    def _check_language_model_head(self, model: nn.Module) -> None:
        """Refuse a model that gives no logits."""
        modules = {part for name, _ in model.named_modules() for part in name.split(".")}
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if head is None and not modules & {*self.lm_head_namings}:
            raise RecipeError(
                f"A {type(model).__name__} has no language-model head, so it gives no logits. Load "
                f"the model with {self.transformers_parent_class.__name__}."
            )

    def _load_heads(self, weights: dict[str, Tensor], name: str | None, drawn: bool) -> None:
        """Give heads the weights that were saved; a value head without any starts from 0."""
        for module in self.supported_modules:
            own = {k.partition(".")[2]: v for k, v in weights.items() if k.startswith(f"{module}.")}
            try:
                if own:
                    getattr(self, module).load_state_dict(own)
            except RuntimeError as error:
                raise RecipeError(
                    f"The `{module}` that was saved in `{name}` does not fit this model: {error}"
                ) from error
            if module == "v_head" and not own and not drawn:
                nn.init.zeros_(self.v_head.summary.weight)
                nn.init.zeros_(self.v_head.summary.bias)
                if name is not None:
                    logger.info("%s has no value head: a fresh one starts from 0.", name)

    def _load_reward_adapter(self, adapter: str, name: str) -> None:
        """Load an adapter of a sequence classifier and the head saved with it, both frozen."""
        if not self.is_peft_model:
            raise RecipeError("`reward_adapter` needs a PEFT model. Give `peft_config` too.")
        adapter = resolve(adapter, "model", source="`reward_adapter`")
        loading.check_adapter(adapter, "`reward_adapter`")
        weights = loading.find_file(adapter, "adapter_model.safetensors")
        saved = {} if weights is None else load_file(weights)
        named = {*self.supported_rm_modules}
        head = {k.rpartition(".")[2]: v for k, v in saved.items() if named & {*k.split(".")}}
        if "weight" not in head:
            raise RecipeError(
                f"`reward_adapter`: `{adapter}` holds no head named {' or '.join(sorted(named))}. "
                "Give the adapter of a sequence classifier."
            )
        self.pretrained_model.load_adapter(adapter, name, is_trainable=False)
        self.score = nn.Linear(*reversed(head["weight"].shape), bias="bias" in head)
        self.score.load_state_dict(head)
        self.score.requires_grad_(False)
        self.supports_rm_adapter, self.rm_adapter_name = True, name


class AutoModelForCausalLMWithValueHead(_ValueHeadModel):
    """A causal language model with a value head: TRL 0.11's class, with a plain model folder.

    A fresh value head starts from 0, and is saved in a file of its own.
    """

    transformers_parent_class = AutoModelForCausalLM


class AutoModelForSeq2SeqLMWithValueHead(_ValueHeadModel):
    """An encoder-decoder with a value head; see [`AutoModelForCausalLMWithValueHead`]."""

    transformers_parent_class = AutoModelForSeq2SeqLM
    lm_head_namings = ("lm_head", "embed_out", "output_projection")


def _hidden_size(config: Any) -> int:
    if hasattr(config, "word_embed_proj_dim"):  # OPT's last states are narrower than its others
        return config.word_embed_proj_dim
    return config.get_text_config(decoder=True).hidden_size


def _to_trl_names(model: nn.Module, weights: dict, prefix: str, _: Any) -> None:
    # those of the language model by its own names, beside `v_head.`
    inner = f"{prefix}pretrained_model."
    for key in [key for key in weights if key.startswith(inner)]:
        weights[prefix + key.removeprefix(inner)] = weights.pop(key)


def _from_trl_names(model: nn.Module, weights: dict, prefix: str, *_: Any) -> None:
    parts = tuple(f"{prefix}{name}." for name, _ in model.named_children())
    for key in [key for key in weights if key.startswith(prefix) and not key.startswith(parts)]:
        weights[f"{prefix}pretrained_model.{key.removeprefix(prefix)}"] = weights.pop(key)


def save_value_head(weights: dict[str, Tensor], folder: str | Path) -> None:
    """Write the weights of the value head to `value_head.safetensors`."""
    weights = {key.removeprefix(_SUMMARY): value.contiguous() for key, value in weights.items()}
    save_file(weights, Path(folder) / VALUE_HEAD_FILE)


def head_key(key: str, modules: Sequence[str] = ("v_head",)) -> str | None:
    """Name a weight from its head on (`v_head.summary.bias`), or None where it is of no head."""
    found = re.fullmatch(rf"(module\.|pretrained_model\.)*(({'|'.join(modules)})\..+)", key)
    return found and found[2]


def find_heads(name: str, modules: Sequence[str] = ("v_head",), **where: Any) -> dict[str, Tensor]:
    """Read the heads that were saved with a model, under names such as `v_head.summary.weight`.

    They lie in a file of their own, ours or LLaMA-Factory's, or among the weights, as TRL 0.11 had
    it. Of a pickle file nothing but tensors is read.
    """
    for own in (VALUE_HEAD_FILE, "value_head.bin"):
        if file := loading.find_file(name, own, **where):
            tensors = _read_tensors(file, lambda key: True)
            return {head_key(key, modules) or _SUMMARY + key: t for key, t in tensors.items()}
    # TRL wrote the second beside an adapter; it also stays in a folder that was converted
    pickled = Path(name).is_dir() or loading.find_file(name, "adapter_config.json", **where)
    for weights in ("model.safetensors", "pytorch_model.bin")[: 2 if pickled else 1]:
        files = [loading.find_file(name, weights, **where)]
        if files == [None] and (index := loading.find_file(name, f"{weights}.index.json", **where)):
            shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
            files = {shard for key, shard in shards.items() if head_key(key, modules)}
            files = [loading.find_file(name, shard, **where) for shard in sorted(files)]
        heads: dict[str, Tensor] = {}
        for file in filter(None, files):
            tensors = _read_tensors(file, lambda key: head_key(key, modules))
            heads |= {head_key(key, modules): tensor for key, tensor in tensors.items()}
        if heads:
            return heads
    return {}


def _read_tensors(file: str, wanted: Callable[[str], Any]) -> dict[str, Tensor]:
    """Read the tensors of a file whose names are wanted."""
    if file.endswith(".safetensors"):
        with safe_open(file, framework="pt") as weights:
            keys = filter(wanted, weights.keys())
            return {key: weights.get_tensor(key) for key in keys}
    try:
        mapped = zipfile.is_zipfile(file)
        weights = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise RecipeError(
            f"`{file}` holds more than tensors, and unpickling that could run code. If a value "
            "head is in it, save that alone; otherwise remove the file."
        ) from error
    return {key: tensor for key, tensor in weights.items() if wanted(key)}


_NOT_TO_SHARD_APART = ("get_input_embeddings", "get_output_embeddings", "tie_weights")


class ActorCritic(nn.Module):
    """A language model and a value head that share one run of the trunk.

    `pack` says whether short sequences stand in one line. What else is asked of it, the user's
    value-head model answers.
    """

    def __init__(self, value_head_model: nn.Module):
        super().__init__()
        vars(self)["value_head_model"] = value_head_model  # no submodule: its parts are
        self.policy = value_head_model.pretrained_model
        self.value_head = value_head_model.v_head
        self.config = self.policy.config
        self.start: StartModel | None = None  # the reference, where it is the policy itself
        self.pack = False

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # while it is being made or copied; and what accelerate would shard apart under FSDP2
            if "value_head_model" not in vars(self) or name in _NOT_TO_SHARD_APART:
                raise
            return getattr(self.value_head_model, name)

    def train(self, mode: bool = True) -> "ActorCritic":
        """Enter train mode, without anything random in it."""
        super().train(mode)
        train_without_chance(self)
        return self

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
        temperature: float = 1.0,
        with_logits: bool = False,
        padded: bool = False,
        **classic: Any,
    ) -> tuple:
        """Compute log-probability, entropy and value of the N response tokens, row after row.

        Returns three times (N,), in nats and in score, and float32 logits (N, V) over the
        temperature, or None: they stay in here, so that nothing copies them. `padded` counts all
        columns of the responses as tokens. Called as the user's value-head model is, it returns
        what that does.
        """
        rows = (queries, query_mask, responses, response_mask)
        if response_mask is None:
            return self.value_head_model(*(x for x in rows if x is not None), **classic)
        logits, hidden = self.logits_of(*rows, padded=padded)
        labels = responses.flatten() if padded else tokens_of(responses, response_mask)
        with torch.autocast(logits.device.type, enabled=False):
            logprobs, entropy = objective.logprobs_and_entropy(logits, labels, temperature)
            shown = logits.float() / temperature if with_logits else None
        return logprobs, entropy, self.values_of(hidden), shown

    def logits_of(
        self, *rows: Tensor, model: nn.Module | None = None, padded: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Run the policy, or its reference, on rows: logits (N, V) and hidden states (N, H)."""
        model = self.policy if model is None else model
        return response_logits(model, *rows, pack=self.pack, padded=padded)

    def values_of(self, hidden: Tensor) -> Tensor:
        """Compute the values (...) of the trunk's last hidden states (..., H), in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.value_head(hidden.float()).squeeze(-1)


def save_actor_critic(model: ActorCritic, folder: Path, writes: bool, merge_adapter: bool) -> None:
    """Save policy and value head; every process helps to gather sharded weights."""
    policy = full_model(model.policy, keep=writes)
    heads = full_tensors(model.value_head_model.heads(), writes)
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        save_policy(policy, folder, merge_adapter)
        save_value_head(heads, folder)


def create_reference_model(
    model: nn.Module, num_shared_layers: int | None = None, pattern: str | None = None
) -> nn.Module:
    """Copy a model, with or without a value head, and freeze the copy, in eval mode, as TRL did.

    The first `num_shared_layers` layers, named as `pattern` with `{layer}` in it, are frozen and
    shared.
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
    raise RecipeError(
        f"`num_shared_layers` is {num_shared_layers}, and the layer behind these was not found by "
        "its name. Share fewer than there are. Give `pattern` where they have names of their own."
    )


def reference_is_start(policy: nn.Module, ref_model: nn.Module) -> bool:
    """Whether a reference has the very weights that the policy starts from."""
    state, others = unwrap_adapter(policy).state_dict(), ref_model.state_dict()
    return state.keys() == others.keys() and all(
        torch.equal(full_tensor(value), full_tensor(others[key]).to(value.device))
        for key, value in state.items()
    )
