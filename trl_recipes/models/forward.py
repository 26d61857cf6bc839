"""One forward pass over queries and responses, for causal and encoder-decoder models alike."""

import torch
from torch import Tensor, nn

from trl_recipes.models.padding import fill_lines


def unwrap_adapter(model: nn.Module) -> nn.Module:
    """Return the transformers model, out of its PEFT wrapper where it has one.

    Args:
        model: with a PEFT wrapper or without.
    """
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def response_logits(
    model: nn.Module,
    queries: Tensor,
    query_mask: Tensor,
    responses: Tensor,
    response_mask: Tensor,
    share_lines: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run a model once and keep what belongs to the response tokens.

    The head runs on the N response tokens alone: not on queries, not on padding. A causal model's
    sequences are query and response without a gap, so short ones are padded only behind their
    end, where causality hides the padding and neither mask nor positions need to know of it; or
    several short ones stand in one line, in the place of padding.

    Args:
        model: transformers language model, or the PEFT model around one.
        queries: token ids, (B, Q).
        query_mask: 1 at query tokens, (B, Q).
        responses: token ids, (B, R), without a decoder's start token.
        response_mask: 1 at response tokens, (B, R).
        share_lines: whether short sequences may stand in one line, which the model must have
            been found fit for by `shared_lines.can_share_lines`.

    Returns:
        logits: float32, (N, V); row after row, each of the response token at its place.
        hidden: the trunk's last hidden states at the same places, (N, H).
    """
    language_model = unwrap_adapter(model)
    if language_model.config.is_encoder_decoder:
        inputs = _encoder_decoder_inputs(language_model, queries, query_mask, responses)
        kept = response_mask.flatten().nonzero()[:, 0]
    else:
        rows = (queries, query_mask, responses, response_mask)
        inputs, kept = _causal_inputs(*rows, share_lines)

    states: list[Tensor] = []
    trunk = language_model.get_decoder()
    head = language_model.get_output_embeddings()
    hooks = [
        trunk.register_forward_hook(lambda _, __, output: states.append(output[0])),
        # before the head, so that what a model does to its logits after it is still done
        head.register_forward_pre_hook(lambda _, inputs: (_pick(inputs[0], kept).unsqueeze(0),)),
    ]
    try:
        logits = model(**inputs, use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()
    return logits.float(), _pick(states[0], kept)


def _causal_inputs(
    queries, query_mask, responses, response_mask, share_lines
) -> tuple[dict, Tensor]:
    """Query and response of each row side by side, and the places that predict the response.

    The last response token predicts nothing that is asked for, and stays out.
    """
    start = query_mask.sum(1, keepdim=True)
    inner = response_mask[:, 1:].bool()  # moved by one: a row's tokens but for one
    end = start + inner.sum(1, keepdim=True)
    columns = torch.arange(int(end.max()), device=queries.device)
    ids = queries.new_zeros(len(queries), len(columns))
    ids[columns < start] = queries[query_mask.bool()]
    ids[(columns >= start) & (columns < end)] = responses[:, :-1][inner]
    predicts = (columns >= start - 1) & (columns < end)
    lines = fill_lines(end[:, 0].tolist()) if share_lines else []
    if not 0 < len(lines) < len(ids):
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return inputs, predicts.flatten().nonzero()[:, 0]
    places = _places(lines, end[:, 0], len(columns)) + columns
    inside = columns < end
    shape = (len(lines), len(columns))
    shared, positions = ids.new_zeros(shape), ids.new_zeros(shape)
    shared.view(-1)[places[inside]] = ids[inside]
    positions.view(-1)[places[inside]] = columns.expand_as(ids)[inside]
    return {"input_ids": shared, "position_ids": positions}, places[predicts]


def _places(lines: list[list[int]], lengths: Tensor, width: int) -> Tensor:
    """Where each row begins once the lines stand one behind the other, (B, 1)."""
    rows = [row for line in lines for row in line]
    taken = lengths[rows].cumsum(0) - lengths[rows]  # before each, over all lines
    counts = torch.tensor([len(line) for line in lines])
    firsts = (counts.cumsum(0) - counts).to(lengths.device)
    line_of = torch.arange(len(lines)).repeat_interleave(counts).to(lengths.device)
    places = torch.empty_like(lengths)
    places[rows] = line_of * width + taken - taken[firsts][line_of]
    return places[:, None]


def _pick(states: Tensor, places: Tensor) -> Tensor:
    """States (B, L, H) at places counted through all rows, (N, H)."""
    return states.flatten(0, 1)[places]


def _encoder_decoder_inputs(language_model, queries, query_mask, responses) -> dict:
    start = torch.full_like(responses[:, :1], decoder_start_token_id(language_model.config))
    return {
        "input_ids": queries,
        "attention_mask": query_mask,
        "decoder_input_ids": torch.cat([start, responses[:, :-1]], 1),
    }


def decoder_start_token_id(config) -> int:
    """The token that an encoder-decoder's responses begin with, before the first sampled one.

    Args:
        config: of the model.
    """
    start = getattr(config, "decoder_start_token_id", None)
    return config.bos_token_id if start is None else start


def context_length(config) -> int | None:
    """Most tokens that a model's positions allow; None where they are unbounded (T5, BLOOM).

    Args:
        config: of the model.
    """
    for name in ("max_position_embeddings", "n_positions"):
        value = getattr(config, name, None)
        if isinstance(value, int) and getattr(config, "model_type", "") not in ("t5", "mt5"):
            return value
    return None
