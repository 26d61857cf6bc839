"""One forward pass over queries and responses, for causal and encoder-decoder models alike.

Sequences of different lengths are padded, grouped by length, or packed into few lines.
"""

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trl_recipes.errors import RecipeError


def unwrap_adapter(model: nn.Module) -> nn.Module:
    """Return the transformers model, out of its PEFT wrapper where it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def temporarily(owner: Any, **values: Any) -> Iterator[None]:
    """Set attributes of an object for the time of the block, and put its own back."""
    own = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in own.items():
            setattr(owner, name, value)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for the block; train mode may switch its cache off."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def switch_off_chance(model: nn.Module) -> None:
    """Set every dropout, layer drop and router jitter to 0, also those that are plain numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and re.search("drop|jitter|noise", name):
                setattr(module, name, 0.0)


def train_without_chance(model: nn.Module) -> None:
    """Leave train mode to what needs it: elsewhere parts may draw, as Phi-3.5-MoE its experts."""
    # a dropout that somebody switches on again is left to the check of the first batch
    for module in model.modules() if model.training else ():
        needed = isinstance(module, nn.Dropout) or getattr(module, "gradient_checkpointing", False)
        module.training = module is model or bool(needed)


def response_logits(
    model: nn.Module,
    queries: Tensor,
    query_mask: Tensor,
    responses: Tensor,
    response_mask: Tensor,
    pack: bool = False,
    padded: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute logits (N, V) and last hidden states (N, H) of N response tokens, as the model does.

    Queries are (B, Q), responses (B, R) without a decoder's start token. The head runs on response
    tokens alone. A causal model's rows are padded only behind their end, where causality hides the
    padding, or packed into few lines, where [`can_pack`] allows it. Masks may lie on the host: then
    nothing here waits for a GPU. `padded` counts all B * R columns of the responses as tokens, and
    waits for nothing either.
    """
    language_model = unwrap_adapter(model)
    if language_model.config.is_encoder_decoder:
        start = torch.full_like(responses[:, :1], decoder_start_token_id(language_model.config))
        inputs = {
            "input_ids": queries,
            "attention_mask": query_mask.to(queries.device, non_blocking=True),
            "decoder_input_ids": torch.cat([start, responses[:, :-1]], 1),
        }
        everything = torch.arange(responses.numel(), device=queries.device)
        kept = everything if padded else token_places(response_mask, queries.device)
    elif padded:
        inputs, kept = _padded_inputs(queries, query_mask, responses)
    else:
        inputs, kept = _causal_inputs(queries, query_mask, responses, response_mask, pack)

    states: list[Tensor] = []
    trunk = language_model.get_decoder()
    head = language_model.get_output_embeddings()
    hooks = [
        trunk.register_forward_hook(lambda _, __, output: states.append(output[0])),
        # before the head, so that what a model does to its logits after it is still done
        head.register_forward_pre_hook(
            lambda _, inputs: (_pick(inputs[0], kept)[None],) if inputs[0].dim() == 3 else None
        ),
    ]
    try:
        with _aligned_head(head):
            logits = model(**inputs, **without_router(language_model), use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    if logits.shape[:2] != (1, len(kept)):  # ProphetNet's head reads several streams at once
        logits = _pick(logits, kept)[None]
    return logits[0], _pick(states[0], kept)


def _causal_inputs(queries, query_mask, responses, response_mask, pack) -> tuple[dict, Tensor]:
    """Put query and response of each row side by side; give the places that predict the latter."""
    device = queries.device
    start = query_mask.sum(1, keepdim=True)
    inner = response_mask[:, 1:].bool()  # moved by one: a row's tokens but for one
    end = start + inner.sum(1, keepdim=True)
    columns = torch.arange(int(end.max()), device=start.device)
    inside = columns < end
    ids = queries.new_zeros(inside.shape)
    for where, tokens, mask in (
        (columns < start, queries, query_mask),
        ((columns >= start) & inside, responses[:, :-1], inner),
    ):
        ids.view(-1)[token_places(where, device)] = tokens.flatten()[token_places(mask, device)]
    predicts = (columns >= start - 1) & inside
    lines = bin_pack(end[:, 0].tolist()) if pack else []
    if not 0 < len(lines) < len(ids):
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return inputs, token_places(predicts, device)
    places = packed_starts(lines, end[:, 0], len(columns)) + columns
    packed, positions = ids.new_zeros(2, len(lines), len(columns))
    there = places[inside].to(device, non_blocking=True)
    packed.view(-1)[there] = ids.flatten()[token_places(inside, device)]
    there_columns = columns.expand_as(inside)[inside].to(device, non_blocking=True)
    positions.view(-1)[there] = there_columns
    inputs = {"input_ids": packed, "position_ids": positions}
    return inputs, places[predicts].to(device, non_blocking=True)


def _padded_inputs(queries, query_mask, responses) -> tuple[dict, Tensor]:
    """Put query and response of each row side by side, and what fills the columns behind them."""
    start = query_mask.sum(1, keepdim=True)
    widths = queries.shape[1], responses.shape[1]
    columns = torch.arange(sum(widths) - 1, device=queries.device)
    behind = columns - start
    of_query = queries.gather(1, columns.clamp(max=widths[0] - 1).expand_as(behind))
    ids = responses.gather(1, behind.clamp(0, widths[1] - 1)).where(behind >= 0, of_query)
    first = torch.arange(len(ids), device=ids.device)[:, None] * len(columns) + start - 1
    places = first + torch.arange(widths[1], device=ids.device)
    return {"input_ids": ids}, places.flatten()


def _pick(states: Tensor, places: Tensor) -> Tensor:
    return states.flatten(0, 1)[places]


def can_align(head: nn.Module) -> bool:
    """Whether a head is one product and nothing else: an adapter adds logits of the vocabulary."""
    return type(head) is nn.Linear and head.bias is None and "forward" not in vars(head)


def aligned(weight: Tensor) -> Tensor:
    """Add rows of zeros to a weight (V, H), up to a multiple of 8, which tensor cores want."""
    return F.pad(weight, (0, 0, 0, -len(weight) % 8))


@contextmanager
def _aligned_head(head: nn.Module) -> Iterator[None]:
    """Let a head of an odd vocabulary multiply as fast as others, in half precision on a GPU."""
    if not (can_align(head) and head.weight.is_cuda and len(head.weight) % 8):
        yield
        return
    autocast = torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if autocast else head.weight.dtype
    if dtype.itemsize == 2:
        head.forward = lambda hidden: _AlignedHead.apply(hidden, head.weight, dtype)
    try:
        yield
    finally:
        vars(head).pop("forward", None)


class _AlignedHead(torch.autograd.Function):
    """Logits (..., V) of hidden states (..., H), from a weight (V, H) that is padded for it.

    GPT-2's 50,257 tokens take tensor cores five times as long as 50,264.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        padded = aligned(weight.to(dtype))
        ctx.save_for_backward(hidden.to(dtype), padded)
        ctx.dtypes, ctx.vocabulary = (hidden.dtype, weight.dtype), len(weight)
        return (hidden.to(dtype) @ padded.T)[..., : len(weight)]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, padded = ctx.saved_tensors
        grad, of_weight = F.pad(grad, (0, len(padded) - ctx.vocabulary)), None
        if ctx.needs_input_grad[1]:
            of_weight = (grad.flatten(0, -2).T @ hidden.flatten(0, -2))[: ctx.vocabulary]
            of_weight = of_weight.to(ctx.dtypes[1])
        return (grad @ padded).to(ctx.dtypes[0]), of_weight, None


def can_pack(model: nn.Module) -> bool:
    """Whether a model keeps packed sequences apart, by their positions alone.

    The model is asked, not a list of names: changing the first sequence of a line must not change a
    bit of the second, and each must come out as it does alone.
    """
    language_model = unwrap_adapter(model)
    config = language_model.config
    if config.is_encoder_decoder or "position_ids" not in forward_arguments(language_model):
        return False
    device = language_model.get_input_embeddings().weight.device
    ids = torch.arange(27, device=device).view(3, 9) % (config.vocab_size - 1)
    # 4, 4 and 8 tokens, without each last: the first two share a line
    queries, responses = ids[:, :3], ids[:, 3:]
    response_mask = torch.ones_like(responses)
    response_mask[:2, 2:] = 0

    def logits(pack: bool) -> Tensor:
        rows = (queries, torch.ones_like(queries), responses, response_mask)
        return response_logits(model, *rows, pack=pack)[0].float()

    with torch.no_grad(), evaluating(language_model):
        alone, packed = logits(False), logits(True)
        queries = torch.cat([queries[:1] + 1, queries[1:]])
        changed = logits(True)
    tolerance = (1e-3 if language_model.dtype == torch.float32 else 0.1) * alone.std()
    close = (packed - alone).abs().max() <= tolerance
    return bool(close) and changed[2:].equal(packed[2:]) and not changed[:2].equal(packed[:2])


@torch.no_grad()
def check_causal(model: nn.Module) -> None:
    """Refuse a causal model that sees tokens behind the one it predicts, as XLNet and BERT do."""
    language_model = unwrap_adapter(model)
    if language_model.config.is_encoder_decoder:
        return
    ids = torch.arange(6, device=language_model.get_input_embeddings().weight.device)[None] + 1
    with evaluating(language_model):
        logits = [model(torch.cat([ids, end], 1)).logits[0, 0] for end in (ids[:, :2], ids[:, 3:5])]
    tolerance = 1e-4 if language_model.dtype == torch.float32 else 0.05
    if (logits[0] - logits[1]).abs().max() > tolerance * logits[0].std():
        raise RecipeError(
            f"{type(language_model).__name__} is no causal language model: what it predicts for a "
            "token changes with the tokens behind it. Give one that reads from left to right, such "
            "as GPT-2 (BERT and its kin do with `is_decoder: true` in their config.json)."
        )


def without_router(language_model: nn.Module) -> dict[str, bool]:
    """Ask a mixture of experts for no router logits: their loss takes no cache and no packing."""
    wanted = "output_router_logits" in forward_arguments(language_model)
    return {"output_router_logits": False} if wanted else {}


def forward_arguments(language_model: nn.Module) -> set[str]:
    """Give the names of what a model's `forward` takes."""
    return set(inspect.signature(language_model.forward).parameters)


def decoder_start_token_id(config) -> int:
    """Give the token that an encoder-decoder's responses begin with, before the first sampled."""
    start = getattr(config, "decoder_start_token_id", None)
    return config.bos_token_id if start is None else start


def context_length(config) -> int | None:
    """Give the most tokens that a model's positions allow; None: no limit (T5, BLOOM)."""
    if getattr(config, "model_type", "") in ("t5", "mt5"):
        return None
    values = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    return next((value for value in values if isinstance(value, int) and value > 0), None)


# Sequences of different lengths


def pad_rows(rows: Sequence[Tensor], pad_token_id: int, side: str) -> tuple[Tensor, Tensor]:
    """Stack B sequences, padded on the "left" or "right": ids and mask of tokens, (B, longest).

    The mask comes from the lengths, so padding may use any token id.
    """
    device = rows[0].device
    lengths = torch.tensor([len(row) for row in rows], device=device)
    columns = torch.arange(int(lengths.max()), device=device)
    first = lengths.max() - lengths if side == "left" else torch.zeros_like(lengths)
    mask = (columns >= first[:, None]) & (columns < (first + lengths)[:, None])
    ids = torch.full(mask.shape, pad_token_id, dtype=torch.long, device=device)
    ids[mask] = torch.cat([row.to(device) for row in rows]).long()
    return ids, mask.long()


def rows_of(ids: Tensor, mask: Tensor) -> list[Tensor]:
    """Give padded rows (B, R), which stand at the left, as a list, each of shape (length,)."""
    lengths = mask.sum(1).tolist()
    return [row[:length] for row, length in zip(ids, lengths, strict=True)]


def token_places(mask: Tensor, device: torch.device) -> Tensor:
    """Number the places where a mask is 1, (N,); with one on the host nothing waits for a GPU."""
    places = mask.flatten().nonzero()[:, 0]
    return places.to(device, non_blocking=True)


def tokens_of(ids: Tensor, mask: Tensor) -> Tensor:
    """Give the token ids (B, R) where a mask is 1, row after row, (N,)."""
    places = token_places(mask, ids.device)
    return ids.flatten()[places]


def unpack(values: Tensor, mask: Tensor) -> Tensor:
    """Put one value per token (N,), row after row, where the mask (B, R) is 1; gaps hold 0."""
    places = token_places(mask, values.device)
    return values.new_zeros(mask.numel()).index_copy(0, places, values).view(mask.shape)


def length_groups(lengths: Sequence[int], pass_cost: int) -> list[list[int]]:
    """Split rows into groups that are padded apart, so that short ones do not pay for long ones.

    Of all ways to cut the rows in order of length, the cheapest: each group costs its rows times
    its longest, and `pass_cost` tokens for one more pass. The longest group comes first.
    """
    ladder = sorted(set(lengths))
    rows_up_to = {length: sum(other <= length for other in lengths) for length in ladder}
    # cheapest way to cover the rows up to each length, and the length at which its last group ends
    best: dict[int, tuple[int, int]] = {0: (0, 0)}
    rows_up_to[0] = 0
    for length in ladder:
        best[length] = min(
            (cost + (rows_up_to[length] - rows_up_to[below]) * length + pass_cost, below)
            for below, (cost, _) in best.items()
        )
    groups, top = [], ladder[-1]
    while top:
        below = best[top][1]
        groups.append([row for row, length in enumerate(lengths) if below < length <= top])
        top = below
    return groups


def bin_pack(lengths: Sequence[int]) -> list[list[int]]:
    """Pack rows into few lines of the longest's length: first fit, falling order (Johnson 1973)."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    lines: list[list[int]] = []
    left: list[int] = []  # tokens that still fit each line
    for row in order:
        line = next((i for i, room in enumerate(left) if room >= lengths[row]), len(lines))
        if line == len(lines):
            lines.append([])
            left.append(lengths[order[0]])
        lines[line].append(row)
        left[line] -= lengths[row]
    return lines


def packed_starts(lines: list[list[int]], lengths: Tensor, width: int) -> Tensor:
    """Give the place where each row begins when lines of a width follow one another, (B, 1)."""
    rows = [row for line in lines for row in line]
    taken = lengths[rows].cumsum(0) - lengths[rows]  # before each, over all lines
    counts = torch.tensor([len(line) for line in lines])
    firsts = (counts.cumsum(0) - counts).to(lengths.device)
    line_of = torch.arange(len(lines)).repeat_interleave(counts).to(lengths.device)
    starts = torch.empty_like(lengths)
    starts[rows] = line_of * width + taken - taken[firsts][line_of]
    return starts[:, None]
