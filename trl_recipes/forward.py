"""One forward pass over queries and responses, for causal and encoder-decoder models alike."""

import inspect

import torch
from torch import Tensor, nn


def unwrap_adapter(model: nn.Module) -> nn.Module:
    """Return the transformers model, out of its PEFT wrapper where it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def response_logits(
    model: nn.Module,
    queries: Tensor,
    query_mask: Tensor,
    responses: Tensor,
    response_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run a model once and keep what belongs to the response positions.

    No logits are computed for the query (one position more than the response, which causal models
    need none the less), and no hidden states but the last are kept.

    Args:
        model: transformers language model, or the PEFT model around one.
        queries: token ids, (B, Q); at the right of their columns for a causal model.
        query_mask: 1 at query tokens, (B, Q).
        responses: token ids, (B, R), at the left of their columns; without a decoder's start token.
        response_mask: 1 at response tokens, (B, R).

    Returns:
        logits: float32, (B, R, V); those at position t are of response token t.
        hidden: the trunk's last hidden states at the same positions, (B, R, H).
    """
    language_model = unwrap_adapter(model)
    length = responses.shape[1]
    if language_model.config.is_encoder_decoder:
        inputs = _encoder_decoder_inputs(language_model, queries, query_mask, responses)
        positions = slice(0, length)
    else:
        inputs = _causal_inputs(language_model, queries, query_mask, responses, response_mask)
        positions = slice(-length - 1, -1)

    states: list[Tensor] = []
    trunk = language_model.get_decoder()
    hook = trunk.register_forward_hook(lambda _, __, output: states.append(output[0]))
    try:
        logits = model(**inputs, use_cache=False).logits[:, positions]
    finally:
        hook.remove()
    return logits.float(), states[0][:, positions]


def _causal_inputs(language_model, queries, query_mask, responses, response_mask) -> dict:
    mask = torch.cat([query_mask, response_mask], 1)
    inputs = {"input_ids": torch.cat([queries, responses], 1), "attention_mask": mask}
    if _accepts(language_model, "position_ids"):
        # explicit, so that a row's positions never depend on its neighbours' padding
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    if _accepts(language_model, "logits_to_keep"):
        inputs["logits_to_keep"] = responses.shape[1] + 1
    return inputs


def _encoder_decoder_inputs(language_model, queries, query_mask, responses) -> dict:
    start = torch.full_like(responses[:, :1], decoder_start_token_id(language_model.config))
    return {
        "input_ids": queries,
        "attention_mask": query_mask,
        "decoder_input_ids": torch.cat([start, responses[:, :-1]], 1),
    }


def decoder_start_token_id(config) -> int:
    """The token that an encoder-decoder's responses begin with, before the first sampled one."""
    start = getattr(config, "decoder_start_token_id", None)
    return config.bos_token_id if start is None else start


def context_length(config) -> int | None:
    """Most tokens that a model's positions allow; None where they are unbounded (T5, BLOOM)."""
    for name in ("max_position_embeddings", "n_positions"):
        value = getattr(config, name, None)
        if isinstance(value, int) and getattr(config, "model_type", "") not in ("t5", "mt5"):
            return value
    return None


def _accepts(language_model: nn.Module, name: str) -> bool:
    return name in inspect.signature(language_model.forward).parameters
