"""Sampling with a cache of fixed size, so that one captured CUDA graph draws each token.

A GPU is done with a token sooner than Python has launched its kernels. Here every token runs the
same kernels on the same addresses: CUDA records them once and replays them for all the others.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.cache_utils import StaticLayer

from trl_recipes.models.cuda_graphs import captured
from trl_recipes.models.forward import (
    aligned,
    can_align,
    decoder_start_token_id,
    evaluating,
    forward_arguments,
    unwrap_adapter,
    without_router,
)
from trl_recipes.models.packing import pad_rows

# What a model calls what it keeps of the tokens before; transformers renamed it in 5.24.
CACHES = {"cache", "past_key_values"}

_refused: WeakSet[nn.Module] = WeakSet()  # models of which CUDA could not capture a token
BLOCK = 256  # tokens whose probabilities are added up first
ASK_EVERY = 16  # tokens between two looks at whether any row goes on: each waits for the GPU


class Samples(NamedTuple):
    """Responses of B queries; R is the longest. Gaps at the right hold 0."""

    responses: Tensor  # token ids, (B, R), without query or a decoder's start token
    mask: Tensor  # 1 at response tokens, the ending one included, (B, R)
    logprobs: Tensor  # log-probability of each token when it was drawn, (B, R), in nats
    hidden: Tensor  # the trunk's last hidden state before each token, (B, R, H)

    def rows(self) -> list[Tensor]:
        """Responses as a list, each of shape (response length,)."""
        lengths = self.mask.sum(1).tolist()
        return [row[:n] for row, n in zip(self.responses, lengths, strict=True)]

    def trimmed(self) -> "Samples":
        """Cut the columns that no response reaches."""
        width = int(self.mask.sum(1).max())
        return Samples(*(field[:, :width] for field in self))


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
