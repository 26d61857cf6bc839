"""Whether a model is the kind that is wanted, and its tokenizer its own."""

import re
from typing import Any

from torch import nn

from trl_recipes.errors import RecipeError
from trl_recipes.models.forward import context_length

# Heads that answer something else than which token comes next.
_OTHER_HEADS = r"For(\w+Classification|QuestionAnswering|MultipleChoice|NextSentencePrediction)$"


def check_language_model(config: Any, name: str, *, causal: bool | None = None) -> None:
    """Refuse a model that continues no text; transformers would give it a head at random.

    Args:
        config: transformers configuration of the model.
        name: folder or hub name, for the message.
        causal: True refuses an encoder-decoder too, False one that is none; None takes both.

    Raises:
        RecipeError: says what the model is.
    """
    architecture = (config.architectures or [""])[0]
    if re.search(_OTHER_HEADS, architecture):
        raise RecipeError(
            f"`{name}` is a {architecture}, which is no language model. Give one that continues "
            "text, such as one made by recipes/pretrain_lm.py; a classifier goes to --reward_model."
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


def check_complete(info: dict[str, Any], name: str) -> None:
    """Refuse a model some of whose weights transformers has just drawn at random.

    Args:
        info: what `from_pretrained(output_loading_info=True)` told.
        name: folder or hub name, for the message.

    Raises:
        RecipeError: names the first weights that are missing.
    """
    if info["missing_keys"]:
        raise RecipeError(
            f"`{name}` lacks weights of its model ({', '.join(sorted(info['missing_keys'])[:3])}): "
            "its config.json and its weights belong to different models. Save the model again."
        )


def check_vocabulary(tokenizer: Any, model: nn.Module) -> None:
    """Hold a tokenizer to the model's vocabulary.

    Args:
        tokenizer: transformers tokenizer.
        model: transformers or PEFT model.

    Raises:
        RecipeError: the tokenizer has more tokens than the model.
    """
    embeddings = model.get_input_embeddings()
    # the weight itself may lie in parts over several processes
    size = getattr(embeddings, "num_embeddings", embeddings.weight.shape[0])
    if len(tokenizer) > size:
        raise RecipeError(
            f"The tokenizer knows {len(tokenizer)} tokens, the model only {size}. Use the "
            "model's own tokenizer, or `model.resize_token_embeddings(len(tokenizer))` before "
            "training."
        )


def check_lengths(longest_query: int, response_length: int, model: nn.Module) -> None:
    """Refuse prompts that leave no room for a response, before any training.

    Args:
        longest_query: tokens of the longest prompt.
        response_length: most tokens of a response.
        model: the transformers model.

    Raises:
        RecipeError: says which number to lower, and to what.
    """
    context = context_length(model.config)
    if context is None:
        return
    if model.config.is_encoder_decoder:
        if max(longest_query, response_length) > context:
            raise RecipeError(
                f"The longest prompt has {longest_query} tokens and `response_length` is "
                f"{response_length}, but the model's encoder and decoder hold {context} each. "
                "Shorten the one or the other."
            )
        return
    room = context - longest_query
    if response_length > room:
        raise RecipeError(
            f"The longest prompt ({longest_query} tokens) and `response_length` "
            f"({response_length}) need {longest_query + response_length} tokens, but the model's "
            f"context holds {context}. "
            + (f"Lower `response_length` to {room}, or cut" if room > 0 else "Cut")
            + f" the prompts to {max(context - response_length, 0)} tokens."
        )
