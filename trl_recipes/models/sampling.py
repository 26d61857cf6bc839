"""Sample responses from a model's whole distribution, with what training needs of each token."""

import ctypes
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    set_seed,
)
from transformers.pytorch_utils import Conv1D

from trl_recipes.errors import RecipeError
from trl_recipes.models.forward import (
    evaluating,
    forward_arguments,
    response_logits,
    temporarily,
    unwrap_adapter,
)
from trl_recipes.models.packing import pad_rows
from trl_recipes.models.static_sampling import (
    CACHES,
    Samples,
    can_sample_static,
    draw,
    first_inputs,
    sample_static,
    uniform,
)

logger = logging.getLogger(__name__)

# Entries from which a weight is packed: below, starting the kernels costs more than the layout.
SMALLEST = 2**18
# Entries of all packed weights together: larger models on a CPU want for memory before time.
MOST = 2**30


@torch.no_grad()
def generate_responses(
    model: nn.Module,
    queries: Sequence[Tensor],
    *,
    pad_token_id: int,
    eos_token_id: int | list[int] | None,
    max_new_tokens: int | Sequence[int],
    temperature: float = 1.0,
    do_sample: bool = True,
    batch_size: int | None = None,
    **generation_kwargs,
) -> list[Tensor]:
    """Continue each query, sampling from the model's whole distribution unless told otherwise.

    The model's own generation settings (top-k, repetition penalty, forced tokens ...) are set
    aside: a log-probability is only that of the sampled token when nothing bends the distribution.

    Args:
        model: causal or encoder-decoder model, or the PEFT model around one.
        queries: token ids, each of shape (query length,).
        pad_token_id: fills the gaps; attention masks hide it.
        eos_token_id: ends a response, as any of several does; None never ends one early.
        max_new_tokens: most tokens of a response: one number, or one per query.
        temperature: of the sampling distribution.
        do_sample: False takes the most likely token each time.
        batch_size: queries generated together; None takes all.
        **generation_kwargs: what else transformers' `generate` takes.

    Returns responses of shape (length,), without query, padding or a decoder's start token.
    """
    device = next(model.parameters()).device
    limits = [max_new_tokens] * len(queries) if isinstance(max_new_tokens, int) else max_new_tokens
    tokens = {"pad_token_id": pad_token_id, "eos_token_id": eos_token_id}
    fast = do_sample and not generation_kwargs and can_sample(model)
    responses: list[Tensor] = []
    size = batch_size or len(queries)
    for start in range(0, len(queries), size):
        chunk = [query.to(device) for query in queries[start : start + size]]
        lengths = limits[start : start + size]
        if fast:
            chosen = {"max_new_tokens": lengths, "temperature": temperature}
            responses += sample_responses(model, chunk, **tokens, **chosen).rows()
            continue
        settings = GenerationConfig(do_sample=do_sample, **tokens)
        if do_sample:
            settings.update(temperature=temperature, top_k=0, top_p=1.0)
        called = settings.update(**generation_kwargs)
        limited = list(zip(chunk, torch.tensor(lengths, device=device), strict=True))
        made: dict[int, Tensor] = {}
        for rows in _fit_together(model, chunk):
            group, limit = zip(*(limited[row] for row in rows), strict=True)
            drawn = _generate(model, group, torch.stack(limit), settings, **called)
            made |= zip(rows, drawn, strict=True)
        responses += [made[row] for row in sorted(made)]
    return responses


def can_sample(model: nn.Module) -> bool:
    """Whether [`sample_responses`] can decode step by step: the cache's rows can be taken out."""
    language_model = unwrap_adapter(model)
    cached = CACHES & forward_arguments(language_model) and not language_model._is_stateful
    return bool(cached) and _row_is_as_alone(model, stepping=True)


def ignores_padding(model: nn.Module) -> bool:
    """Whether a row beside a longer one is what it is alone: not with RWKV, RecurrentGemma."""
    return unwrap_adapter(model).config.is_encoder_decoder or _row_is_as_alone(model, False)


def _fit_together(model: nn.Module, queries: Sequence[Tensor]) -> list[list[int]]:
    # rows of one length need no padding, which the states of a model may take for text
    lengths = [len(query) for query in queries]
    if unwrap_adapter(model).config.is_encoder_decoder or can_sample(model):
        return [list(range(len(queries)))]
    return [[i for i, own in enumerate(lengths) if own == length] for length in set(lengths)]


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


class _RowLengths(StoppingCriteria):
    """Ends each row of a batch at a length of its own, (B,), or where another criterion does."""

    def __init__(self, start: int, lengths: Tensor, others: Sequence[StoppingCriteria] = ()):
        self.start, self.lengths, self.others = start, lengths, others

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        length = input_ids.shape[1] - self.start
        for criterion in self.others:
            ends = torch.as_tensor(criterion(input_ids, scores, **kwargs), device=input_ids.device)
            self.lengths = self.lengths.where(~ends, self.lengths.clamp(max=length))
        beams = len(input_ids) // len(self.lengths)
        return length >= self.lengths.repeat_interleave(beams)


def _generate(
    model, queries, lengths, settings: GenerationConfig, stopping_criteria=(), **called
) -> list[Tensor]:
    """Let transformers generate one padded batch, with these settings in place of the model's."""
    language_model = unwrap_adapter(model)
    encoder_decoder = language_model.config.is_encoder_decoder
    own = language_model.generation_config
    side = "right" if encoder_decoder else "left"
    ids, mask = pad_rows(queries, settings.pad_token_id, side)
    before = 1 if encoder_decoder else ids.shape[1]
    settings.max_new_tokens = int(lengths.max())
    bare = GenerationConfig(
        decoder_start_token_id=own.decoder_start_token_id, bos_token_id=own.bos_token_id
    )
    ends_at = _RowLengths(before, lengths, stopping_criteria)
    with evaluating(language_model), temporarily(language_model, generation_config=bare):
        output = language_model.generate(
            ids,
            attention_mask=mask,
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList([ends_at]),
            **called,
        )
    sampled = output[:, before:]
    ends = _ends(sampled, ends_at.lengths, settings.eos_token_id)
    return [row[:end] for row, end in zip(sampled, ends.tolist(), strict=True)]


def _ends(sampled: Tensor, lengths: Tensor, eos_token_id) -> Tensor:
    # each response goes up to its own limit, or to the first end token before it
    lengths = lengths.clamp(max=sampled.shape[1])
    if eos_token_id is None:
        return lengths
    stops = torch.isin(sampled, torch.as_tensor(eos_token_id, device=sampled.device))
    first = torch.where(stops.any(1), stops.float().argmax(1) + 1, sampled.shape[1])
    return torch.minimum(lengths, first)


class BestOfNSampler:
    """Samples `sample_size` responses to each query and keeps the `n_candidates` best.

    TRL 0.11's class. `queries_to_scores` is called once a query with the decoded texts, query
    included, and returns one number each; `length_sampler` draws the most new tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        queries_to_scores: Callable[[list[str]], Sequence[float]],
        length_sampler: Callable[[], int],
        sample_size: int = 4,
        seed: int | None = None,
        n_candidates: int = 1,
        generation_config: GenerationConfig | None = None,
    ):
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise RecipeError(f"`tokenizer` must be a tokenizer, got {type(tokenizer).__name__}.")
        if not hasattr(model, "generate"):
            raise RecipeError(f"`model` must be able to generate, got {type(model).__name__}.")
        if not 0 < n_candidates <= sample_size:
            raise RecipeError(
                f"`n_candidates` ({n_candidates}) must lie between 1 and `sample_size` "
                f"({sample_size})."
            )
        if seed is not None:
            set_seed(seed)
        self.model, self.tokenizer = model, tokenizer
        self.queries_to_scores, self.length_sampler = queries_to_scores, length_sampler
        self.sample_size, self.n_candidates = sample_size, n_candidates
        self.gen_config = generation_config

    def generate(
        self,
        tokenized_query: list[int] | Tensor | list[Tensor] | list[list[int]],
        skip_special_tokens: bool = True,
        device: str | torch.device | None = None,
        **generation_kwargs,
    ) -> list[list[str]]:
        """Texts of the best responses to each query, best first."""
        single = isinstance(tokenized_query[0], int) or (
            isinstance(tokenized_query, Tensor) and tokenized_query.dim() == 1
        )
        best = []
        for query in [tokenized_query] if single else tokenized_query:
            queries = torch.as_tensor(query, device=device).reshape(1, -1)
            generated = self.model.generate(
                queries.repeat(self.sample_size, 1),
                attention_mask=torch.ones_like(queries).repeat(self.sample_size, 1),
                max_new_tokens=self.length_sampler(),
                generation_config=self.gen_config,
                **generation_kwargs,
            )
            texts = self.tokenizer.batch_decode(generated, skip_special_tokens=skip_special_tokens)
            scores = torch.as_tensor(self.queries_to_scores(texts), dtype=torch.float32)
            best.append([texts[i] for i in scores.topk(self.n_candidates).indices])
        return best


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
