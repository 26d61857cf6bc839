"""Generate responses in batches: by our own sampler, or by transformers' `generate`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    set_seed,
)

from trl_recipes.errors import RecipeError
from trl_recipes.models.forward import evaluating, pad_rows, rows_of, temporarily, unwrap_adapter
from trl_recipes.models.sampling import can_sample, sample_responses


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
    `eos_token_id` None never ends a response early; `max_new_tokens` is one number, or one a query;
    `batch_size` of them are generated together, None takes all.

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
            drawn, mask, *_ = sample_responses(model, chunk, **tokens, **chosen)
            responses += rows_of(drawn, mask)
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


def _fit_together(model: nn.Module, queries: Sequence[Tensor]) -> list[list[int]]:
    # rows of one length need no padding, which the states of a model may take for text
    lengths = [len(query) for query in queries]
    if unwrap_adapter(model).config.is_encoder_decoder or can_sample(model):
        return [list(range(len(queries)))]
    return [[i for i, own in enumerate(lengths) if own == length] for length in set(lengths)]


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
