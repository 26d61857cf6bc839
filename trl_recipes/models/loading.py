"""Models and tokenizers by name: a folder, the folder of a run, a GGUF file, or a name on the hub.

Weights are read from safetensors and GGUF alone: a pickle file can run code when it is read. Code
that a model brings along runs only where `trust_remote_code` was given.
"""

import importlib.util
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging
from transformers.utils.hub import cached_file

from trl_recipes.errors import RecipeError
from trl_recipes.models.forward import context_length
from trl_recipes.models.hub import is_gguf, loading, refuse_pickle, resolve

if TYPE_CHECKING:
    from trl import ModelConfig

WHERE = ("token", "revision", "cache_dir")  # arguments that say where on the hub a model is
# Heads that answer something else than which token comes next.
_OTHER_HEADS = r"For(\w+Classification|QuestionAnswering|MultipleChoice|NextSentencePrediction)$"


def load_run(
    path: str | Path, *, source: str | None = None, **kwargs
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Load a language model in eval mode, by name or of a run, and its tokenizer."""
    trusted = {"trust_remote_code": kwargs.get("trust_remote_code", False)}
    tokenizer = load_tokenizer(path, source=source, **trusted)
    model = load_language_model(path, source=source, **kwargs)
    check_vocabulary(tokenizer, model)
    return model.eval(), tokenizer


def load_tokenizer(
    name: str | Path, *, trust_remote_code: bool = False, source: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model: of a run folder, a model folder, a GGUF file or a hub name."""
    name = resolve(name, "model", source=source)
    with loading(name, "model", part="tokenizer", source=source):
        folder, gguf = split_gguf(name)
        trusted = {"trust_remote_code": trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(folder, **gguf, **trusted)
        tokenizer.name_or_path = name
        return tokenizer


def load_config(
    name: str | Path, *, trust_remote_code: bool = False, source: str | None = None
) -> PreTrainedConfig:
    """Load the configuration of a model, or of the model that an adapter belongs to."""
    name = resolve(name, "model", source=source)
    with loading(name, "model", source=source):
        folder, gguf = split_gguf(_base_of_adapter(name) or name)
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, **gguf)


def load_language_model(
    name: str | Path,
    *model_args,
    causal: bool | None = None,
    is_trainable: bool = False,
    source: str | None = None,
    **kwargs,
) -> nn.Module:
    """Load a language model in float32, or the PEFT model around one.

    `causal` says which kind is wanted: True a causal one, False an encoder-decoder, None either.
    An adapter is loaded frozen unless `is_trainable`; the weights of a GGUF file are unpacked. The
    rest goes to `from_pretrained`.
    """
    kwargs = present_names(kwargs)
    where = {key: kwargs[key] for key in WHERE if key in kwargs}
    name = resolve(name, "model", source=source, token=kwargs.get("token"))
    kwargs = {"dtype": "float32", "use_safetensors": True, "trust_remote_code": False} | kwargs
    with loading(name, "model", source=source):
        adapted = _base_of_adapter(name, **where)
        base = adapted or name
        if adapted is not None:  # the revision is that of the adapter
            kwargs.pop("revision", None)
        about = {key: kwargs[key] for key in ("trust_remote_code", *WHERE) if key in kwargs}
        folder, gguf = split_gguf(base)
        config = AutoConfig.from_pretrained(folder, **about, **gguf)
        _check_named_weights(config, base, source)
        check_language_model(config, base, causal=causal)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        kwargs |= _unpacked(base, gguf, kwargs) | {"output_loading_info": True}
        model, info = auto.from_pretrained(folder, *model_args, **kwargs)
        model.name_or_path = model.config.name_or_path = base
        _check_missing(info, f"`{base}`", "model")
        if adapted is None:
            return model
        from peft import PeftModel

        check_adapter(name, source, **where)
        return PeftModel.from_pretrained(model, name, is_trainable=is_trainable, **where)


def load_classifier(
    name: str | Path,
    *,
    new_head: bool = False,
    trust_remote_code: bool = False,
    source: str | None = None,
    **kwargs,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model with a sequence-classification head, in float32, and its tokenizer.

    With `new_head` any model will do, and gets a fresh head for the labels in `kwargs`; otherwise
    transformers must find the whole classifier, rather than drawing its head at random.
    """
    path, source = resolve(name, "model", source=source), source or "--model_name_or_path"
    trusted = {"trust_remote_code": trust_remote_code}
    with loading(path, "model", source=source):
        folder, gguf = split_gguf(path)
        config = AutoConfig.from_pretrained(folder, **trusted, **gguf)
        _check_named_weights(config, path, source)
        check_adapter(path, source)
        architecture = (config.architectures or ["none given"])[0]
        if not new_head and not architecture.endswith("ForSequenceClassification"):
            raise RecipeError(
                f"{source}: `{name}` is no text classifier (its architecture is {architecture}). "
                "Give a model with a sequence-classification head, for instance one made by "
                "recipes/train_classifier.py."
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, **trusted, **gguf)
        settings = {"dtype": "float32", "use_safetensors": True} | trusted | kwargs
        settings |= _unpacked(path, gguf, kwargs)
        verbosity = logging.get_verbosity()
        if new_head:  # which transformers would tell in a table of all its weights
            logging.set_verbosity_error()
        try:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=new_head, **settings
            )
        finally:
            logging.set_verbosity(verbosity)
    if not new_head:
        _check_missing(info, f"{source}: `{name}`", "classifier")
    return model, tokenizer


def _check_missing(info: dict[str, Any], name: str, kind: str) -> None:
    """Refuse a model whose weights are not all there: transformers draws the others at random."""
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise RecipeError(
            f"{name} lacks weights of its {kind} ({missing}): its config.json and its weights "
            "belong to different models. Save the whole model again."
        )


def present_names(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Give arguments of `from_pretrained` that transformers 5 renamed their present names."""
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    for old, new in (("torch_dtype", "dtype"), ("use_auth_token", "token")):
        value = kwargs.pop(old, None)
        if value is not None and kwargs.setdefault(new, value) != value:
            raise RecipeError(f"`{old}` is the old name of `{new}`, and they differ. Give one.")
    bits = {bits: kwargs.pop(bits, False) for bits in ("load_in_8bit", "load_in_4bit")}
    if not any(bits.values()):
        return kwargs
    if "quantization_config" in kwargs:
        raise RecipeError("`quantization_config` says what `load_in_8bit` does. Give one of them.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError("`load_in_8bit` and `load_in_4bit` need: pip install bitsandbytes.")
    return kwargs | {"quantization_config": BitsAndBytesConfig(**bits)}


def split_gguf(name: str) -> tuple[str, dict[str, Any]]:
    """Split the path of a GGUF file into what `from_pretrained` takes; other names stay whole."""
    path = Path(name)
    return (str(path.parent), {"gguf_file": path.name}) if is_gguf(path) else (name, {})


def _unpacked(name: str, gguf: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Give the arguments that make a plain model of a GGUF file; none for other models."""
    if not gguf:
        return {}
    if "quantization_config" in kwargs:
        raise RecipeError(
            f"`{name}` is a GGUF file, which is unpacked and cannot be quantized while it is read. "
            "Leave --load_in_4bit and --load_in_8bit out, or save the model with "
            "`load_run(FILE)[0].save_pretrained(FOLDER)` and give the folder."
        )
    return gguf | {"quantization_config": GgufConfig(dequantize=True)}


def find_file(name: str, filename: str, **where: Any) -> str | None:
    """Find a file of a model, local or on the hub: its path, or None where there is none."""
    if is_gguf(Path(name)):  # which is all there is of its model
        return None
    return cached_file(
        name,
        filename,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **where,
    )


def _base_of_adapter(name: str, **where: Any) -> str | None:
    """The model that an adapter belongs to; None where `name` is a whole model."""
    config = find_file(name, "adapter_config.json", **where)
    if config is None:
        return None
    base = json.loads(Path(config).read_text(encoding="utf-8"))["base_model_name_or_path"]
    return resolve(base, "model", source=f"the base model of `{name}`", token=where.get("token"))


def check_adapter(name: str, source: str | None, **where: Any) -> None:
    """Refuse an adapter whose weights are pickled, which peft would read."""
    adapter = find_file(name, "adapter_config.json", **where) is not None
    if adapter and find_file(name, "adapter_model.safetensors", **where) is None:
        refuse_pickle(name, source)


def _check_named_weights(config: PreTrainedConfig, name: str, source: str | None) -> None:
    """Refuse a configuration that names a pickle file as the weights, which transformers reads."""
    named = getattr(config, "transformers_weights", None) or ""
    if named.endswith(".bin"):
        refuse_pickle(name, source)


def check_language_model(config: Any, name: str, *, causal: bool | None = None) -> None:
    """Refuse a model that continues no text; transformers would give it a head at random."""
    architecture = (config.architectures or [""])[0]
    if re.search(_OTHER_HEADS, architecture):
        raise RecipeError(
            f"`{name}` is a {architecture}, which is no language model. Give one that continues "
            "text, such as one made by recipes/pretrain_lm.py; a classifier goes to --reward_model."
        )
    if config.model_type.endswith("encoder-decoder"):
        raise RecipeError(
            f"`{name}` is an {architecture or 'EncoderDecoderModel'} (BERT2BERT and the like), "
            "whose decoder keeps the head to itself: the value head cannot share its trunk. Give a "
            "T5 or BART."
        )
    if config.model_type == "prophetnet" and config.pad_token_id != 0:
        raise RecipeError(
            f"`{name}` is a ProphetNet whose pad_token_id is {config.pad_token_id}: transformers "
            "decodes with one alone that pads with 0, as the published ones do."
        )
    kind = architecture or config.model_type
    if causal and config.is_encoder_decoder:
        raise RecipeError(
            f"`{name}` is an encoder-decoder ({kind}), where a causal language model is needed. "
            "Give a causal one, such as GPT-2; encoder-decoders go to recipes/ppo_seq2seq.py."
        )
    if causal is False and not config.is_encoder_decoder:
        raise RecipeError(
            f"`{name}` is a causal model ({kind}), where an encoder-decoder is needed. Give one, "
            "such as T5 or BART; causal language models go to recipes/ppo_sentiment.py."
        )


def fitting_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, name: Any, model: nn.Module
) -> PreTrainedTokenizerBase:
    """Load the tokenizer by the model's name where a trainer got none; hold it to the model."""
    if tokenizer is None:
        if not isinstance(name, str | Path):
            raise RecipeError("`processing_class` is missing. Pass the model's tokenizer.")
        tokenizer = load_tokenizer(name)
    set_pad_token(tokenizer, "The tokenizer")
    check_vocabulary(tokenizer, model)
    return tokenizer


def set_pad_token(tokenizer: PreTrainedTokenizerBase, whose: str) -> None:
    """Let the end token serve as padding where there is none; masks come from lengths."""
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token_id is None:
        raise RecipeError(
            f"{whose} has neither a pad nor an eos token. Set `eos_token` to the token that ends a "
            "text; padding then uses it too."
        )
    tokenizer.pad_token = tokenizer.eos_token


def check_vocabulary(tokenizer: Any, model: nn.Module) -> None:
    """Hold a tokenizer to the model's vocabulary."""
    embeddings = model.get_input_embeddings()
    # the weight itself may lie in parts over several processes
    size = getattr(embeddings, "num_embeddings", embeddings.weight.shape[0])
    if len(tokenizer) > size:
        raise RecipeError(
            f"The tokenizer knows {len(tokenizer)} tokens, the model only {size}. Use the "
            "model's own tokenizer, or `model.resize_token_embeddings(len(tokenizer))` before "
            "training."
        )


def check_lengths(
    longest_query: int, response_length: int, model: nn.Module, setting: str = "`response_length`"
) -> None:
    """Refuse prompts that leave no room for a response; `setting` names what limits it."""
    context = context_length(model.config)
    if context is None:
        return
    if model.config.is_encoder_decoder:
        if max(longest_query, response_length) > context:
            raise RecipeError(
                f"The longest prompt has {longest_query} tokens and {setting} is "
                f"{response_length}, but the model's encoder and decoder hold {context} each. "
                "Shorten the one or the other."
            )
        return
    room = context - longest_query
    if response_length > room:
        raise RecipeError(
            f"The longest prompt ({longest_query} tokens) and {setting} "
            f"({response_length}) need {longest_query + response_length} tokens, but the model's "
            f"context holds {context}. "
            + (f"Lower {setting} to {room}, or cut" if room > 0 else "Cut")
            + f" the prompts to {max(context - response_length, 0)} tokens."
        )


def model_kwargs(model_config: "ModelConfig") -> dict[str, Any]:
    """Turn TRL's model flags into arguments of `from_pretrained`."""
    from trl import get_quantization_config  # takes seconds, which a misspelled flag need not wait

    kwargs = {
        "revision": model_config.model_revision,
        "dtype": model_config.dtype,
        "attn_implementation": model_config.attn_implementation,
        "quantization_config": get_quantization_config(model_config),
    }
    return {name: value for name, value in kwargs.items() if value is not None}
