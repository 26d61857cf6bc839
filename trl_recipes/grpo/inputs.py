"""Turn what users pass to GRPOTrainer and RLOOTrainer into what TRL's constructors expect."""

import inspect
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from trl_recipes.data.conversations import check_chat_template, is_conversation, shown
from trl_recipes.data.prompts import OWN, check_prompts, column_of_ids, dataset_of, prompt_column
from trl_recipes.errors import RecipeError
from trl_recipes.grpo.config import GroupConfig
from trl_recipes.models.forward import temporarily, unwrap_adapter
from trl_recipes.models.hub import is_gguf
from trl_recipes.models.loading import check_language_model, fitting_tokenizer, load_run
from trl_recipes.models.sharding import full_tensors

# Columns that TRL reads where a row has them: as pictures, and to tell conversations from texts.
_TRLS_OWN = ("completion", "image", "images", "messages", "chosen", "rejected")


def causal_model(model: Any, trust_remote_code: bool) -> nn.Module:
    """Load a policy where it is a name, and refuse what is not a causal language model."""
    if isinstance(model, str | Path):
        model, _ = load_run(model, trust_remote_code=trust_remote_code)
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise RecipeError(
            f"`model` must be a name, a folder, or a language model, got {type(model).__name__}."
        )
    if hasattr(model, "v_head"):
        raise RecipeError(
            f"`model` is a {type(model).__name__}: GRPO and RLOO have no value head. Pass what is "
            "inside, `model.pretrained_model`."
        )
    check_language_model(model.config, model.config._name_or_path or type(model).__name__)
    if model.config.is_encoder_decoder:
        raise RecipeError(
            f"`model` is an encoder-decoder ({type(unwrap_adapter(model)).__name__}), which TRL's "
            "GRPO and RLOO trainers do not train. Use PPO (recipes/ppo_seq2seq.py), or a causal "
            "model such as GPT-2."
        )
    return model


def group_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, name: Any, model: nn.Module
) -> PreTrainedTokenizerBase:
    """Load the tokenizer where none was passed, and hold it to what TRL wants of one."""
    tokenizer = fitting_tokenizer(tokenizer, name, model)
    if tokenizer.eos_token_id is None:
        raise RecipeError(
            "The tokenizer has no eos token, by which TRL tells where a response ends. Set "
            "`tokenizer.eos_token` to the token that ends a text."
        )
    if getattr(model.config, "pad_token_id", None) is None:  # else transformers says so at length
        for settings in (model.config, model.generation_config):
            settings.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def count_positions(model: nn.Module) -> None:
    """Number a model's positions from the first token that is not padding.

    TRL gives a mask and no positions; GPT-2 and its kin then count the padding, so that
    log-probabilities are not those of sampling, and depend on the longest prompt beside them.
    """

    def with_positions(module, args, kwargs):
        mask = kwargs.get("attention_mask")
        if kwargs.get("position_ids") is None and mask is not None and mask.dim() == 2:
            length = kwargs["input_ids"].shape[1]
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -length:]
            kwargs = kwargs | {"position_ids": positions}
        return args, kwargs

    language_model = unwrap_adapter(model)
    if "position_ids" in inspect.signature(language_model.forward).parameters:
        language_model.register_forward_pre_hook(with_positions, with_kwargs=True)


def copy_weights(policy: nn.Module, reference: nn.Module) -> None:
    """Give the reference model the weights that the policy has now."""
    # TRL loads it by the policy's name, which tells of no revision, change or added token
    size = policy.get_input_embeddings().weight.shape[0]
    if reference.get_input_embeddings().weight.shape[0] != size:
        reference.resize_token_embeddings(size, mean_resizing=False)
    reference.load_state_dict(policy.state_dict())


def prompt_rows(rows: Any, argument: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Give a data set the column `prompt` that TRL reads: its own, or else `query`.

    Beside `input_ids` it is the column that they are the tokens of. Other columns reach reward
    functions under their own names, which `own_names` restores where TRL reads them otherwise.
    """
    rows = dataset_of(rows, argument, stream=True)
    if rows is None:
        return None
    names = rows.column_names or list(next(iter(rows), {}))
    first = rows[:8] if isinstance(rows, Dataset) else {}
    own = "query" if {"query", "input_ids"} <= set(names) else prompt_column(names, argument)
    column = column_of_ids(first, tokenizer) or own
    renamed = {name: OWN + name for name in names if name in _TRLS_OWN} | {"prompt": OWN + "prompt"}
    forms = {"input_ids", "attention_mask"}
    if first:
        check_prompts(rows[column][:], f"`{argument}`, column `{column}`")
        chat, texts = is_conversation(first[column][0]), first[column]
        if chat:
            check_chat_template(tokenizer, f"`{argument}`, column `{column}` holds conversations")
        texts = [shown(messages) for messages in texts] if chat else texts
        forms |= {n for n in ("query", "prompt") if n != column and first.get(n) == texts}
    rows = rows.remove_columns([name for name in names if name in forms])
    renamed = {old: new for old, new in renamed.items() if old in names and old not in forms}
    renamed |= {column: "prompt"}
    return rows.rename_columns({old: new for old, new in renamed.items() if old != new})


@contextmanager
def named(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Lend a model that has no folder a name, so that TRL can load a reference by it."""
    own = model.config._name_or_path
    if not wanted or (own and not is_gguf(Path(own))):
        yield
        return
    with tempfile.TemporaryDirectory() as folder, temporarily(model.config, _name_or_path=folder):
        # every process needs the same files, and transformers saves in the main one alone
        once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
        state = {n: t for n, t in model.state_dict(keep_vars=True).items() if n in once}
        state = {name: t.contiguous() for name, t in full_tensors(state, keep=True).items()}
        save_file(state, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        yield


def evaluation_rows(given: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Turn one evaluation set, or several by name, into what TRL takes."""
    if isinstance(given, dict):
        return {name: prompt_rows(part, name, tokenizer) for name, part in given.items()}
    return prompt_rows(given, "eval_dataset", tokenizer)


def check_arguments(
    args: Any, config_class: type[GroupConfig], train_dataset: Any, others: dict[str, Any]
) -> None:
    """Refuse a configuration of another class, and arguments that these trainers do not take."""
    if not isinstance(args, config_class):
        raise RecipeError(
            f"`args` must be a trl_recipes.{config_class.__name__}, got "
            f"{type(args).__module__}.{type(args).__name__}. Change the import."
        )
    if others.pop("reward_processing_classes", None) is not None:
        raise RecipeError(
            "`reward_processing_classes` is TRL's, and no argument here: give "
            "`RewardModelReward(model, tokenizer)` in `reward_funcs`."
        )
    if train_dataset is None and "environment_factory" not in others:
        raise RecipeError("`train_dataset` is missing: prompts, in a column `prompt`.")


@contextmanager
def without_second_adapter(policy: nn.Module) -> Iterator[None]:
    """Undo what TRL's constructor does to a PEFT model for a reference; ours is [`StartModel`].

    It adds a copy of the adapter, and freezes all that is not an adapter's.
    """
    if not isinstance(policy, PeftModel):
        yield
        return
    trained, config = [p for p in policy.parameters() if p.requires_grad], policy.active_peft_config
    bias, config.bias = getattr(config, "bias", None), "none"
    try:
        yield
    finally:
        config.bias = bias
        if "ref" in policy.peft_config:
            policy.delete_adapter("ref")
        for parameter in trained:
            parameter.requires_grad_(True)
