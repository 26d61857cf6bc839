"""Drawing responses from a model's whole distribution, with what training wants to know of them."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trl_recipes.models.forward import decoder_start_token_id, unwrap_adapter
from trl_recipes.models.packed_weights import packed_weights
from trl_recipes.models.padding import pad_rows


class Samples(NamedTuple):
    """Responses of B queries; R is the longest. Gaps at the right hold 0."""

    responses: Tensor  # token ids, (B, R), without query or a decoder's start token
    mask: Tensor  # 1 at response tokens, the ending one included, (B, R)
    logprobs: Tensor  # log-probability of each token when it was drawn, (B, R), in nats
    hidden: Tensor  # the trunk's last hidden state before each token, (B, R, H)

    def rows(self) -> list[Tensor]:
        """Responses as a list, each of shape (response length,)."""
        return [row[: int(n)] for row, n in zip(self.responses, self.mask.sum(1), strict=True)]


# What a model calls what it keeps of the tokens before; transformers renamed it in 5.24.
CACHES = {"cache", "past_key_values"}


def can_sample(model: nn.Module) -> bool:
    """Whether [`sample_responses`] knows how to decode with this model step by step.

    Args:
        model: transformers language model, or the PEFT model around one.
    """
    language_model = unwrap_adapter(model)
    return bool(CACHES & _parameters(language_model)) and not language_model._is_stateful


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for the time of the block.

    Train mode with gradient checkpointing would switch the cache off.

    Args:
        model: transformers language model.
    """
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def sample_responses(
    model: nn.Module,
    queries: Sequence[Tensor],
    *,
    pad_token_id: int,
    eos_token_id: int | list[int] | None,
    max_new_tokens: Sequence[int],
    temperature: float = 1.0,
) -> Samples:
    """Draw responses token by token from softmax(logits / temperature), nothing cut off.

    transformers' `generate` keeps computing rows that have ended; here they leave the batch, and
    what was known when a token was drawn is kept, so that training needs no second pass for it.

    Args:
        model: transformers causal or encoder-decoder model, or the PEFT model around one,
            such that [`can_sample`].
        queries: token ids, each of shape (query length,), on the model's device.
        pad_token_id: fills the gaps between queries; masks hide it.
        eos_token_id: ends a response; None never ends one early.
        max_new_tokens: most tokens of each response.
        temperature: of the sampling distribution.
    """
    language_model = unwrap_adapter(model)
    config, device = language_model.config, queries[0].device
    (cache,) = CACHES & _parameters(language_model)
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
        inputs = _first_inputs(language_model, config, queries, pad_token_id)
        for column in range(shape[1]):
            output = model(**inputs, use_cache=True)
            distribution = (output.logits[:, -1].float() / temperature).log_softmax(-1)
            tokens = _draw(distribution.exp())
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
    width = int(mask.sum(1).max())
    return Samples(responses[:, :width], mask[:, :width], logprobs[:, :width], hidden[:, :width])


def _draw(probabilities: Tensor) -> Tensor:
    """One token a row, (B, 1): where a uniform number falls in the cumulative distribution.

    `torch.multinomial` draws a random number for each token of the vocabulary in place of one.
    """
    exact = torch.float32 if probabilities.device.type == "mps" else torch.float64
    cumulative = probabilities.to(exact).cumsum(1)
    points = torch.rand_like(cumulative[:, :1]) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True).clamp(max=cumulative.shape[1] - 1)


def _parameters(language_model: nn.Module) -> set[str]:
    return set(inspect.signature(language_model.forward).parameters)


def _first_inputs(language_model, config, queries, pad_token_id) -> dict:
    """What the model's first call takes; an encoder runs here, once."""
    if config.is_encoder_decoder:
        ids, mask = pad_rows(queries, pad_token_id, side="right")
        return {
            "encoder_outputs": language_model.get_encoder()(input_ids=ids, attention_mask=mask),
            "attention_mask": mask,
            "decoder_input_ids": torch.full_like(ids[:, :1], decoder_start_token_id(config)),
        }
    ids, mask = pad_rows(queries, pad_token_id, side="left")
    inputs = {"input_ids": ids, "attention_mask": mask}
    accepted = _parameters(language_model)
    if "position_ids" in accepted:
        # explicit, so that a row's positions never depend on its neighbours' padding
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = 1
    return inputs


def _next_inputs(inputs: dict, tokens: Tensor) -> dict:
    """The drawn tokens, behind what the cache holds."""
    if "decoder_input_ids" in inputs:
        return inputs | {"decoder_input_ids": tokens}
    mask = inputs["attention_mask"]
    inputs = inputs | {"input_ids": tokens, "attention_mask": torch.cat([mask, mask[:, -1:]], 1)}
    if "position_ids" in inputs:
        inputs["position_ids"] = inputs["position_ids"][:, -1:] + 1
    return inputs


def _keep_rows(inputs: dict, kept: Tensor) -> dict:
    """Take the other rows out of the batch."""
    if "encoder_outputs" in inputs:
        inputs = inputs | {"encoder_outputs": (inputs["encoder_outputs"][0][kept],)}
    by_row = ("input_ids", "attention_mask", "position_ids", "decoder_input_ids")
    return inputs | {name: inputs[name][kept] for name in by_row if name in inputs}
