"""Language models with a value head, saved and loaded so that nothing is lost."""

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from trl_recipes.models.hub import resolve
from trl_recipes.models.loading import find_file, load_language_model

logger = logging.getLogger(__name__)

VALUE_HEAD_FILE = "value_head.safetensors"
_HEAD_ARGUMENTS = ("summary_dropout_prob", "v_head_initializer_range", "v_head_init_strategy")
_LAYERS = ("transformer.h", "model.decoder.layers", "gpt_neox.layers", "model.layers")
_said: set[str] = set()


class ValueHead(nn.Module):
    """A linear layer from hidden states to values, under the names that TRL saved it by."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.summary = nn.Linear(hidden_size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values (..., 1) of hidden states (..., H).

        Args:
            hidden: of any precision.
        """
        return self.summary(hidden.to(self.summary.weight.dtype))


class _ValueHeadModel(nn.Module):
    """A language model and a value head, loaded by name; the head has a file of its own."""

    transformers_parent_class: Any

    def __init__(
        self,
        pretrained_model: nn.Module,
        summary_dropout_prob: float | None = None,
        v_head_initializer_range: float = 0.2,
        v_head_init_strategy: str | None = None,
    ):
        super().__init__()
        self.pretrained_model, self.config = pretrained_model, pretrained_model.config
        self.is_peft_model = isinstance(pretrained_model, PeftModel)
        self.v_head = ValueHead(_hidden_size(self.config))
        if v_head_init_strategy == "normal":
            nn.init.normal_(self.v_head.summary.weight, std=v_head_initializer_range)
            nn.init.zeros_(self.v_head.summary.bias)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None, Tensor]:
        """Logits in float32, the loss where labels were given, and values, (B, L, V), (), (B, L).

        Args:
            *args: of the language model.
            **kwargs: of the language model.
        """
        output = self.pretrained_model(*args, **{**kwargs, "output_hidden_states": True})
        hidden = getattr(output, "decoder_hidden_states", None) or output.hidden_states
        return output.logits.float(), output.loss, self.v_head(hidden[-1]).squeeze(-1)

    def generate(self, *args: Any, **kwargs: Any) -> Tensor:
        """Sample as the language model does.

        Args:
            *args: of its `generate`.
            **kwargs: of its `generate`.
        """
        return self.pretrained_model.generate(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load a language model and its value head; a head that is not there starts fresh.

        Args:
            pretrained_model_name_or_path: hub name, folder, or a transformers or PEFT model.
            *model_args: passed to the transformers class.
            **kwargs: `peft_config`, `is_trainable`, the value head's options of TRL, or options of
                the transformers class.

        Returns:
            The model with its value head, in float32 unless `dtype` says otherwise.

        Raises:
            RecipeError: there is no such model, it cannot be reached, or it is of another kind.
        """
        model, name = pretrained_model_name_or_path, None
        if isinstance(model, str | Path):
            name = resolve(str(model), "model")
            ours = {key: kwargs.pop(key) for key in list(kwargs) if key in _OUR_ARGUMENTS}
            causal = cls.transformers_parent_class is AutoModelForCausalLM
            model = load_language_model(
                name, *model_args, causal=causal, is_trainable=True, **kwargs
            )
            kwargs = ours
        kwargs.pop("is_trainable", None)
        fresh = "v_head_init_strategy" not in kwargs
        peft_config = kwargs.pop("peft_config", None)
        if peft_config is not None:
            model = get_peft_model(model, peft_config)
        model = cls(model, **kwargs)
        weights = None if name is None else find_value_head(name)
        if weights is not None:
            model.v_head.summary.load_state_dict(weights)
        elif fresh:
            model.start_value_head(name)
        return model

    def start_value_head(self, name: str | None) -> None:
        """Set a fresh value head to 0, so that it predicts nothing before it has learnt anything.

        Args:
            name: where a value head was looked for; said once. None says nothing.
        """
        nn.init.zeros_(self.v_head.summary.weight)
        nn.init.zeros_(self.v_head.summary.bias)
        if name is not None and name not in _said:
            _said.add(name)
            logger.info("%s has no value head: a fresh one starts from 0.", name)

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """Save the language model in the hub's format, and the value head beside it.

        Args:
            save_directory: folder; `model.safetensors` in it loads with the plain transformers
                class without a warning, or `adapter_model.safetensors` with PEFT.
            **kwargs: passed to transformers' or PEFT's `save_pretrained`.
        """
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


_OUR_ARGUMENTS = ("peft_config", "is_trainable", *_HEAD_ARGUMENTS)


def _hidden_size(config: Any) -> int:
    """Width of the states that logits are made of."""
    if hasattr(config, "word_embed_proj_dim"):  # OPT
        return config.word_embed_proj_dim
    if hasattr(config, "hidden_size"):
        return config.hidden_size
    inner = getattr(config, "text_config", None) or config.decoder  # multimodal; EncoderDecoder
    return inner.hidden_size


def save_value_head(weights: dict[str, torch.Tensor], folder: str | Path) -> None:
    """Write `value_head.safetensors`.

    Args:
        weights: of the linear layer in TRL's `ValueHead`, by its own names.
        folder: exists already.
    """
    weights = {key: value.contiguous() for key, value in weights.items()}
    save_file(weights, Path(folder) / VALUE_HEAD_FILE)


def find_value_head(name: str) -> dict[str, torch.Tensor] | None:
    """Read a value head's weights: our file, or `v_head.` keys in TRL 0.11's `model.safetensors`.

    Args:
        name: folder or hub name of a model.

    Returns:
        `weight` (1, H) and `bias` (1,), or None.
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


def create_reference_model(
    model: nn.Module, num_shared_layers: int | None = None, pattern: str | None = None
) -> nn.Module:
    """Copy a model and freeze the copy, as TRL did.

    Args:
        model: a model with or without a value head.
        num_shared_layers: this many first layers are frozen and shared with the copy.
        pattern: name of a layer with `{layer}` in it, where TRL does not know the architecture.

    Returns:
        The copy, in eval mode.
    """
    reference = copy.deepcopy(model).requires_grad_(False).eval()
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
    raise ValueError("The layers to share were not found by their names; give `pattern`.")
