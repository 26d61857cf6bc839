"""Draw responses from a model's whole distribution, with what training needs of each token.

Where a GPU can, with a cache of fixed size: a GPU is done with a token sooner than Python has
launched its kernels, so CUDA records those of one token, and replays them for all the others.
"""

import ctypes
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.cache_utils import StaticLayer
from transformers.pytorch_utils import Conv1D

from trl_recipes.models.cuda_graphs import captured
from trl_recipes.models.forward import (
    aligned,
    can_align,
    decoder_start_token_id,
    evaluating,
    forward_arguments,
    pad_rows,
    response_logits,
    unwrap_adapter,
    without_router,
)

logger = logging.getLogger(__name__)

# What a model calls what it keeps of the tokens before; transformers renamed it in 5.24.
CACHES = {"cache", "past_key_values"}
# Entries from which a weight is packed: below, starting the kernels costs more than the layout.
SMALLEST = 2**18
# Entries of all packed weights together: larger models on a CPU want for memory before time.
MOST = 2**30
BLOCK = 256  # tokens whose probabilities are added up first
ASK_EVERY = 16  # tokens between two looks at whether any row goes on: each waits for the GPU
_refused: WeakSet[nn.Module] = WeakSet()  # models of which CUDA could not capture a token


class Samples(NamedTuple):
    """Responses of B queries; R is the longest. Gaps at the right hold 0."""

    responses: Tensor  # token ids, (B, R), without query or a decoder's start token
    mask: Tensor  # 1 at response tokens, the ending one included, (B, R)
    logprobs: Tensor  # log-probability of each token when it was drawn, (B, R), in nats
    hidden: Tensor  # the trunk's last hidden state before each token, (B, R, H)

    def trimmed(self) -> "Samples":
        """Cut the columns that no response reaches."""
        width = int(self.mask.sum(1).max())
        return Samples(*(field[:, :width] for field in self))


def can_sample(model: nn.Module) -> bool:
    """Whether [`sample_responses`] can decode step by step: the cache's rows can be taken out."""
    language_model = unwrap_adapter(model)
    cached = CACHES & forward_arguments(language_model) and not language_model._is_stateful
    return bool(cached) and _row_is_as_alone(model, stepping=True)


def ignores_padding(model: nn.Module) -> bool:
    """Whether a row beside a longer one is what it is alone: not with RWKV, RecurrentGemma."""
    return unwrap_adapter(model).config.is_encoder_decoder or _row_is_as_alone(model, False)


@torch.no_grad()
def _row_is_as_alone(model: nn.Module, stepping: bool) -> bool:
    """Ask the model, once, whether padding, or a step on a cache, changes the logits of a row."""
    language_model = unwrap_adapter(model)
    known = vars(language_model).setdefault("_row_is_as_alone", {})
    if stepping in known:
        return known[stepping]
    device = language_model.get_input_embeddings().weight.device
    ids = torch.arange(1, 10, device=device) % language_model.config.get_text_config().vocab_size
    query, response, first = ids[:2], ids[7:], torch.zeros(1, dtype=torch.long, device=device)
    try:
        with evaluating(language_model):
            inputs = first_inputs(language_model, [query, ids[2:7]], 0)
            output = model(**inputs, use_cache=stepping)
            if stepping:
                (cache,) = CACHES & forward_arguments(language_model)
                inputs = _next_inputs(inputs, response[:1].repeat(2, 1)) | {cache: output[cache]}
                inputs[cache].batch_select_indices(first)
                output = model(**_keep_rows(inputs, first), use_cache=True)
            row = [tensor[None] for part in (query, response) for tensor in (part, part > -1)]
            alone = response_logits(model, *row)[0][int(stepping)].float()
    except (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
        known[stepping] = False  # a cache of another kind
        return False
    exact = language_model.dtype == torch.float32 and not torch.is_autocast_enabled(device.type)
    off = (output.logits[0, -1].float() - alone).abs().max()
    known[stepping] = bool(off <= (1e-2 if exact else 0.5) * alone.std())
    return known[stepping]


@torch.no_grad()
def sample_responses(model: nn.Module, queries: Sequence[Tensor], **settings: Any) -> Samples:
    """Draw responses token by token from softmax(logits / temperature), nothing cut off.

    What was known when a token was drawn is kept, so that training needs no second pass for it.
    `settings` are those of [`sample_growing`]; queries lie on the model's device.
    """
    device = queries[0].device
    if device.type == "cuda" and can_sample_static(model, device):
        try:
            return sample_static(model, queries, **settings)
        except torch.OutOfMemoryError:
            logger.warning(
                "No memory for sampling with a cache of fixed size: rows leave the batch as they "
                "end, which is slower. Sample fewer responses at a time for speed."
            )
    return sample_growing(model, queries, **settings)


def sample_growing(
    model: nn.Module,
    queries: Sequence[Tensor],
    *,
    pad_token_id: int,
    eos_token_id: int | list[int] | None,
    max_new_tokens: Sequence[int],
    temperature: float = 1.0,
) -> Samples:
    """Draw with a cache that grows by each token; rows that have ended leave it."""
    # transformers' `generate` keeps computing them
    language_model = unwrap_adapter(model)
    device = queries[0].device
    (cache,) = CACHES & forward_arguments(language_model)
    states: list[Tensor] = []
    trunk = language_model.get_decoder()
    hook = trunk.register_forward_hook(lambda _, __, output: states.append(output[0][:, -1]))

    limits = torch.as_tensor(max_new_tokens, device=device)
    stops = torch.as_tensor([] if eos_token_id is None else eos_token_id, device=device)
    shape = (len(queries), int(limits.max()))
    responses = torch.zeros(shape, dtype=torch.long, device=device)
    mask, logprobs = torch.zeros_like(responses), torch.zeros(shape, device=device)
    hidden = None
    rows = torch.arange(len(queries), device=device)  # which queries are still in the batch
    with hook, evaluating(language_model), packed_weights(language_model):
        inputs = first_inputs(language_model, queries, pad_token_id)
        for column in range(shape[1]):
            output = model(**inputs, use_cache=True)
            distribution = (output.logits[:, -1].float() / temperature).log_softmax(-1)
            tokens = draw(distribution.exp(), uniform(len(rows), 1, device=device))
            if hidden is None:
                hidden = states[0].new_zeros(*shape, states[0].shape[-1])
            responses[rows, column] = tokens[:, 0]
            mask[rows, column] = 1
            logprobs[rows, column] = distribution.gather(1, tokens)[:, 0]
            hidden[rows, column] = states.pop()
            alive = ~torch.isin(tokens[:, 0], stops) & (limits[rows] > column + 1)
            inputs = _next_inputs(inputs, tokens) | {cache: output[cache]}
            if not alive.all():
                kept = alive.nonzero()[:, 0]
                if len(kept) == 0:
                    break
                inputs[cache].batch_select_indices(kept)
                rows, inputs = rows[kept], _keep_rows(inputs, kept)
    return Samples(responses, mask, logprobs, hidden).trimmed()


def _next_inputs(inputs: dict, tokens: Tensor) -> dict:
    if "decoder_input_ids" in inputs:
        return inputs | {"decoder_input_ids": tokens}
    mask = inputs["attention_mask"]
    inputs = inputs | {"input_ids": tokens, "attention_mask": torch.cat([mask, mask[:, -1:]], 1)}
    if "position_ids" in inputs:
        inputs["position_ids"] = inputs["position_ids"][:, -1:] + 1
    return inputs


def _keep_rows(inputs: dict, kept: Tensor) -> dict:
    if "encoder_outputs" in inputs:
        encoded = inputs["encoder_outputs"]
        inputs = inputs | {"encoder_outputs": type(encoded)(last_hidden_state=encoded[0][kept])}
    by_row = ("input_ids", "attention_mask", "position_ids", "decoder_input_ids")
    return inputs | {name: inputs[name][kept] for name in by_row if name in inputs}


def uniform(*shape: int, device: torch.device) -> Tensor:
    """Draw numbers from [0, 1), (...), in the precision in which probabilities add up."""
    exact = torch.float32 if device.type == "mps" else torch.float64
    return torch.rand(shape, dtype=exact, device=device)


def draw(probabilities: Tensor, points: Tensor) -> Tensor:
    """Take a token per row, (B, 1): where a uniform number falls in the cumulative distribution."""
    # first a block of tokens, then one of it: a GPU adds up a whole vocabulary row by row
    blocks = F.pad(probabilities, (0, -probabilities.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    ends = blocks.sum(2, dtype=points.dtype).cumsum(1)
    points = points * ends[:, -1:]
    block = torch.searchsorted(ends, points, right=True).clamp(max=ends.shape[1] - 1)
    inside = blocks.gather(1, block.unsqueeze(2).expand(-1, -1, BLOCK))[:, 0]
    inside = inside.to(points.dtype).cumsum(1)
    points = (points - ends.gather(1, block) + inside[:, -1:]).clamp(min=0)
    tokens = block * BLOCK + torch.searchsorted(inside, points, right=True).clamp(max=BLOCK - 1)
    return tokens.clamp(max=probabilities.shape[1] - 1)


def first_inputs(language_model, queries, pad_token_id) -> dict:
    """What the model's first call takes; an encoder runs here, once."""
    config = language_model.config
    if config.is_encoder_decoder:
        ids, mask = pad_rows(queries, pad_token_id, side="right")
        return without_router(language_model) | {
            "encoder_outputs": language_model.get_encoder()(input_ids=ids, attention_mask=mask),
            "attention_mask": mask,
            "decoder_input_ids": torch.full_like(ids[:, :1], decoder_start_token_id(config)),
        }
    ids, mask = pad_rows(queries, pad_token_id, side="left")
    inputs = {"input_ids": ids, "attention_mask": mask} | without_router(language_model)
    accepted = forward_arguments(language_model)
    if "position_ids" in accepted:
        # explicit, so that a row's positions never depend on its neighbors' padding
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = 1
    return inputs


def can_sample_static(model: nn.Module, device: torch.device) -> bool:
    """Whether [`sample_static`] can decode with this model.

    transformers says which models run without a word to the host; a layer with a window counts its
    tokens there. Weights in several places, or in a precision of their own, are left alone.
    """
    language_model = unwrap_adapter(model)
    if language_model in _refused or not language_model._can_compile_fullgraph:
        return False
    autocast = torch.is_autocast_enabled(device.type)
    known = {torch.float32, torch.get_autocast_dtype(device.type)}
    weights = list(model.parameters())
    return (
        all(type(layer) is StaticLayer for layer in StaticCache(language_model.config, 1).layers)
        and all(weight.device == device and type(weight.data) is Tensor for weight in weights)
        and (not autocast or all(w.dtype in known for w in weights if w.is_floating_point()))
    )


@torch.no_grad()
def sample_static(
    model: nn.Module,
    queries: Sequence[Tensor],
    *,
    pad_token_id: int,
    eos_token_id: int | list[int] | None,
    max_new_tokens: Sequence[int],
    temperature: float = 1.0,
) -> Samples:
    """Draw responses as `sample_responses` does, all rows to the end of the longest.

    On CUDA the third token is captured and every later one replayed. Under autocast the weights are
    held in its precision meanwhile, and not cast at each token.
    """
    device = queries[0].device
    language_model = unwrap_adapter(model)
    head = language_model.get_output_embeddings()
    vocabulary = len(head.weight) if can_align(head) else None
    with evaluating(language_model), _autocast_weights(model, device.type):
        batch = _StaticBatch(model, max_new_tokens, eos_token_id, temperature, device, vocabulary)
        hook = language_model.get_decoder().register_forward_hook(
            lambda _, __, output: batch.states.append(output[0][:, -1])
        )
        with hook:
            batch.begin(first_inputs(language_model, queries, pad_token_id))
            step: Callable[[], None] = batch.step
            for column in range(1, max(max_new_tokens)):
                ask = eos_token_id is not None and column % ASK_EVERY == 0
                if ask and not batch.alive.any():
                    break
                if column == 2 and device.type == "cuda":
                    replay = captured(step, device, "sampling with this model")
                    if replay is None:
                        _refused.add(language_model)
                    step = replay or step
                step()
    return batch.samples.trimmed()


class _StaticBatch:
    """Tensors that stay where they are while the tokens of a batch are drawn."""

    def __init__(self, model, limits, eos_token_id, temperature, device, vocabulary):
        self.model, self.temperature, self.vocabulary = model, temperature, vocabulary
        self.limits = torch.as_tensor(limits, device=device)[:, None]
        stops = [] if eos_token_id is None else eos_token_id
        self.stops = torch.as_tensor(stops, device=device).reshape(1, -1)
        shape = (len(limits), max(limits))
        self.points = uniform(shape[1], shape[0], 1, device=device)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.alive = torch.ones(shape[0], 1, dtype=torch.bool, device=device)
        ids = torch.zeros(shape, dtype=torch.long, device=device)
        self.samples = Samples(ids, torch.zeros_like(ids), torch.zeros(shape, device=device), None)
        self.states: list[Tensor] = []  # of the trunk, from its last call

    def begin(self, inputs: dict) -> None:
        """Read the queries, draw the first token, and lay out what every later step takes."""
        language_model = unwrap_adapter(self.model)
        self.ids = "input_ids" if "input_ids" in inputs else "decoder_input_ids"
        rows, most = self.samples.mask.shape
        # masks are 1 at the tokens to come too: causality hides them until they are there
        if self.ids == "input_ids":
            mask = inputs["attention_mask"]
            inputs["attention_mask"] = torch.cat([mask, mask.new_ones(rows, most)], 1)
        else:  # without one BART makes its own, and asks the device how long
            inputs["decoder_attention_mask"] = inputs[self.ids].new_ones(rows, 1 + most)
        (name,) = CACHES & forward_arguments(language_model)
        inputs[name] = StaticCache(language_model.config, inputs[self.ids].shape[1] + most)
        if self.ids != "input_ids":  # what the encoder gives never grows
            inputs[name] = EncoderDecoderCache(inputs[name], DynamicCache())
        logits = self.model(**inputs, use_cache=True).logits
        state = self.states[0]
        self.samples = self.samples._replace(hidden=state.new_zeros(rows, most, state.shape[-1]))
        inputs[self.ids] = self._keep(logits)
        if "position_ids" in inputs:
            inputs["position_ids"] = inputs["position_ids"][:, -1:] + 1
        self.inputs = inputs

    def step(self) -> None:
        """Draw one token a row behind what the cache holds."""
        tokens = self._keep(self.model(**self.inputs, use_cache=True).logits)
        self.inputs[self.ids].copy_(tokens)
        if "position_ids" in self.inputs:
            self.inputs["position_ids"].add_(1)

    def _keep(self, logits: Tensor) -> Tensor:
        """Draw from the last logits, and write what is known of the tokens into their column."""
        logits = logits[:, -1, : self.vocabulary].float()
        distribution = (logits / self.temperature).log_softmax(-1)
        tokens = draw(distribution.exp(), self.points.index_select(0, self.column)[0])
        known = (tokens, self.alive.long(), distribution.gather(1, tokens), self.states.pop())
        for field, value in zip(self.samples, known, strict=True):
            value = value.where(self.alive, 0).reshape(len(value), 1, *field.shape[2:])
            field.index_copy_(1, self.column, value)
        self.column.add_(1)
        ended = (tokens == self.stops).any(1, keepdim=True) | (self.limits <= self.column)
        self.alive.logical_and_(~ended)
        return tokens


@contextmanager
def _autocast_weights(model: nn.Module, device: str) -> Iterator[None]:
    """Hold float32 weights in autocast's precision within the block, instead of autocast.

    The head's have rows of zeros at their end, up to a number that tensor cores take.
    """
    autocast, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    kept = [(p, p.data) for p in model.parameters() if autocast and p.dtype == torch.float32]
    head = unwrap_adapter(model).get_output_embeddings()
    try:
        for parameter, data in kept:
            parameter.data = data.to(dtype)
            if can_align(head) and parameter is head.weight:
                parameter.data = aligned(parameter.data)
        with torch.autocast(device, dtype, enabled=False):
            yield
    finally:
        for parameter, data in kept:
            parameter.data = data


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Let a model multiply with weights as oneDNN lays them out, within the block.

    Laying a weight out takes most of a matrix product with a few rows, in each call anew. The
    copies have autocast's precision, and must not be trained. Without oneDNN nothing is changed.
    """
    layers = [layer for layer in model.modules() if _gains(layer)]
    if sum(layer.weight.numel() for layer in layers) > MOST:
        layers = []
    for layer in layers:
        layer.forward = _PackedLinear(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _gains(layer: nn.Module) -> bool:
    # worth packing, and changed by nobody else
    if type(layer) not in (nn.Linear, Conv1D) or "forward" in vars(layer):
        return False
    weight = layer.weight
    return (
        weight.device.type == "cpu"
        and not isinstance(weight, DTensor)
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.numel() >= SMALLEST
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class _PackedLinear:
    """Computes what a linear layer does, on packed weights."""

    def __init__(self, layer: nn.Linear | Conv1D):
        weight, bias = layer.weight.detach(), layer.bias
        if isinstance(layer, Conv1D):  # (in, out)
            weight = weight.t()
        autocast = torch.is_autocast_enabled("cpu")
        self.dtype = torch.get_autocast_dtype("cpu") if autocast else weight.dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(self.dtype))
        self.bias = None if bias is None else bias.detach().to(self.dtype)

    def __call__(self, inputs: Tensor) -> Tensor:
        inputs = inputs.to(self.dtype)
        return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")


def prepare_device(device: torch.device) -> None:
    """Set what is slow by default where the shapes of passes change.

    cuDNN's attention makes a plan for each new shape, some milliseconds each; torch has two others.
    glibc returns large blocks to the system, which hands out zeroed pages again: a tenth of a step
    on the CPU with GPT-2 small, a third with small models. The peak stays the same.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
    if device.type != "cpu" or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold, most = -1, -3, 2**31 - 1  # of malloc.h
        mallopt(trim_threshold, most)
        mallopt(mmap_threshold, most)
