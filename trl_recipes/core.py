"""What scripts import from `trl.core`, with TRL 0.11's signatures and meanings.

    from trl_recipes.core import LengthSampler, respond_to_batch

The trainer's own mathematics is in `ppo/objective.py`; these are for scripts and subclasses.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper, set_seed

from trl_recipes.data.prompts import LengthSampler
from trl_recipes.ppo.statistics import AdaptiveKLController, FixedKLController

__all__ = [
    "AdaptiveKLController",
    "FixedKLController",
    "LengthSampler",
    "clip_by_value",
    "entropy_from_logits",
    "flatten_dict",
    "logprobs_from_logits",
    "masked_mean",
    "masked_var",
    "masked_whiten",
    "respond_to_batch",
    "set_seed",
    "stack_dicts",
    "whiten",
]

PADDING = -1  # where stacked statistics of different lengths have no value


def logprobs_from_logits(logits: Tensor, labels: Tensor, gather: bool = True) -> Tensor:
    """Log-probability of each label (B, L); of every token (B, L, V) without `gather`."""
    logprobs = logits.log_softmax(-1)
    return logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1) if gather else logprobs


def entropy_from_logits(logits: Tensor) -> Tensor:
    """Entropy in nats of each distribution, of (..., V) logits: (...)."""
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def masked_mean(values: Tensor, mask: Tensor, axis: int | None = None) -> Tensor:
    """Mean of the unmasked elements: a scalar, or one for each row along `axis`."""
    dims = tuple(range(values.dim())) if axis is None else axis
    return (values * mask).sum(dims) / mask.sum(dims)


def masked_var(values: Tensor, mask: Tensor, unbiased: bool = True) -> Tensor:
    """Variance of the unmasked elements, a scalar; ValueError where there are none (`unbiased`)."""
    variance = masked_mean((values - masked_mean(values, mask)) ** 2, mask)
    if not unbiased:
        return variance
    count = mask.sum()
    if count == 0:
        raise ValueError(
            "The mask leaves no element in. With `mini_batch_size=1` a sample may have none: "
            "increase `mini_batch_size`."
        )
    return variance * count / (count - 1)


def whiten(values: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale values to variance 1 and, with `shift_mean`, mean 0. Same shape."""
    return masked_whiten(values, torch.ones_like(values), shift_mean)


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Whiten by the moments of the unmasked elements. Same shape."""
    mean, variance = masked_mean(values, mask), masked_var(values, mask)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return whitened if shift_mean else whitened + mean


def clip_by_value(x: Tensor, tensor_min: Tensor | float, tensor_max: Tensor | float) -> Tensor:
    """Clip each element between bounds that may be tensors themselves. Same shape."""
    low, high = (torch.as_tensor(bound, device=x.device) for bound in (tensor_min, tensor_max))
    return torch.maximum(torch.minimum(x, high), low)


def flatten_dict(nested: Mapping[str, Any], sep: str = "/") -> dict[str, Any]:
    """Join the keys of nested dictionaries with a separator; ValueError where a key holds it."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if sep in key:
            raise ValueError(f"The key {key!r} holds the separator {sep!r}. Choose another `sep`.")
        if isinstance(value, Mapping):
            flat |= {f"{key}{sep}{inner}": v for inner, v in flatten_dict(value, sep).items()}
        else:
            flat[key] = value
    return flat


def stack_dicts(stats_dicts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the flattened values of each key, padded with -1 to one length."""
    return {
        key: pad_sequence(
            [stats[key].flatten() for stats in stats_dicts], batch_first=True, padding_value=PADDING
        )
        for key in stats_dicts[0]
    }


@torch.no_grad()
def respond_to_batch(
    model: nn.Module, queries: Tensor, txt_len: int = 20, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Sample `txt_len` tokens after queries (B, Q) of one length: (B, txt_len), past any end."""
    warpers = LogitsProcessorList()
    if top_k > 0:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    ids = queries
    for _ in range(txt_len):
        probabilities = warpers(ids, model(ids)[0][:, -1]).softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probabilities, 1)], dim=1)
    return ids[:, queries.shape[1] :]
