r"""The mathematics of PPO on language models, as pure functions of tensors.

Shapes: B sequences, R response tokens, N tokens of all sequences, V vocabulary. A mask is 1 at
response tokens that count and 0 elsewhere; masked positions never influence a result. Logarithms
are natural, so log-probabilities, KL and entropy are in nats. A *score* is one number per sequence;
a *reward* is one per token.

`all_sum` adds a tensor over all processes (`accelerator.reduce`), so that statistics are those of
the whole batch; with one process it does nothing.

Sources: Schulman et al. 2017 (PPO, arXiv:1707.06347), Schulman et al. 2016 (GAE, arXiv:1506.02438),
Ziegler et al. 2019 (arXiv:1909.08593), and TRL 0.11.4 `ppo_trainer.py`, whose figures the tests
hold.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Sum = Callable[[Tensor], Tensor]

# logits that are float32 at a time: what a core's cache holds, or what keeps a GPU busy
CHUNK_CPU, CHUNK_GPU = 2**17, 2**25


def local(total: Tensor) -> Tensor:
    """Return the sum of one process as it is. Same shape."""
    return total


def masked_mean(values: Tensor, mask: Tensor, all_sum: Sum = local) -> Tensor:
    """Average the unmasked elements to a scalar; 0 where nothing is unmasked."""
    total, count = all_sum(torch.stack([values.where(mask.bool(), 0).sum(), mask.sum().float()]))
    return total / count.clamp(min=1)


def masked_moments(
    values: Sequence[Tensor], masks: Sequence[Tensor], all_sum: Sum = local
) -> tuple[Tensor, Tensor]:
    """Compute mean (K,) and unbiased variance (K,) of each of K tensors, each of its own shape.

    A mean is 0 where nothing is unmasked, a variance where fewer than two elements are.
    """
    # two sums over processes in all: each makes all of them meet, however little it adds up
    flags = [mask.bool() for mask in masks]
    totals = [x.where(flag, 0).sum() for x, flag in zip(values, flags, strict=True)]
    counts = [mask.sum().float() for mask in masks]
    total, count = all_sum(torch.stack([torch.stack(totals), torch.stack(counts)]))
    means = total / count.clamp(min=1)
    centered = [x - mean for x, mean in zip(values, means, strict=True)]
    squares = [x.square().where(flag, 0).sum() for x, flag in zip(centered, flags, strict=True)]
    mean_squares = all_sum(torch.stack(squares)) / count.clamp(min=1)
    return means, mean_squares * count / (count - 1).clamp(min=1)


def masked_whiten(
    values: Tensor, mask: Tensor, shift_mean: bool = True, all_sum: Sum = local
) -> Tensor:
    """Scale the unmasked elements to variance 1 and, with `shift_mean`, mean 0. Same shape."""
    (mean,), (variance,) = masked_moments([values], [mask], all_sum)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened if shift_mean else whitened + mean).where(mask.bool(), 0)


def whiten_with_padding(
    rewards: Tensor, values: Tensor, mask: Tensor, padding: Tensor, all_sum: Sum = local
) -> tuple[Tensor, Tensor]:
    """Whiten token rewards (B, R) as TRL 0.11.4 did, which whitened padding too; keep their mean.

    `padding` counts the padded positions behind each response, (B,). Returns rewards, and values
    with 0 there, wider by the most of them. Source: TRL 0.11.4 `compute_advantages`.
    """
    (mean,), (variance,) = masked_moments([rewards], [mask], all_sum)
    scale = torch.rsqrt(variance + 1e-8)
    wide, values = (F.pad(x, (0, int(padding.max()))) for x in (rewards, values))
    positions = torch.arange(wide.shape[1], device=rewards.device)
    length = mask.shape[1] - mask.flip(1).argmax(1)  # up to the last token that counts
    whitened = (wide - mean) * scale + mean
    return whitened.where(positions < (length + padding)[:, None], 0), values


def logprobs_from_logits(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the log-probability of each label, (N,) in nats, from logits (N, V)."""
    # in float32, in chunks: no second tensor of the logits' size is made
    parts = [
        part.gather(1, picked.unsqueeze(1)).squeeze(1) - part.logsumexp(1)
        for _, part, picked in _chunks(temperature, logits, labels)
    ]
    return torch.cat(parts)


def _chunks(temperature: float, logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split logits (N, V) by rows, and the others alike; second come float32, tempered logits."""
    most = CHUNK_CPU if logits.device.type == "cpu" else CHUNK_GPU
    size = max(1, most // logits.shape[1])
    for rows, *rest in zip(*(tensor.split(size) for tensor in (logits, *others)), strict=True):
        exact = rows.float()
        yield rows, exact if temperature == 1 else exact / temperature, *rest


def logprobs_and_entropy(
    logits: Tensor, labels: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Compute log-probability of each label, with gradient, and entropy, without; (N,) in nats.

    Like [`logprobs_from_logits`]; the backward pass overwrites the logits with their gradient.
    """
    return _LogprobsAndEntropy.apply(logits, labels, temperature)


class _LogprobsAndEntropy(torch.autograd.Function):
    """Written out, so that the logits are the only tensor of their size, in their own precision.

    d logprob / d logits = (onehot(label) - softmax(logits / temperature)) / temperature.
    """

    @staticmethod
    def forward(ctx, logits, labels, temperature):
        logprobs, entropies = [], []
        for _, part, picked in _chunks(temperature, logits, labels):
            all_logprobs = part.log_softmax(1)
            entropies.append(-all_logprobs.exp().mul_(all_logprobs).sum(1))
            logprobs.append(all_logprobs.gather(1, picked.unsqueeze(1)).squeeze(1))
        ctx.save_for_backward(logits, labels)
        ctx.temperature = temperature
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(logprobs), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        logits, labels = ctx.saved_tensors
        weights = (grad / ctx.temperature).unsqueeze(1)
        chunks = _chunks(ctx.temperature, logits, labels.unsqueeze(1), weights)
        for rows, part, picked, weight in chunks:
            gradient = part.softmax(1).mul_(-weight)
            rows.copy_(gradient.scatter_add_(1, picked, weight))
        return logits, None, None


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
    """Estimate the KL penalty of each token (B, R), in nats, from the sampled token alone.

    `kind` is "kl" (log ratio, unbiased), "abs" (its magnitude), "mse" (half its square) or "k3"
    (unbiased and never negative); another raises ValueError. Source: Schulman, "Approximating KL
    Divergence" (2020), where kl is k1 and mse is k2.
    """
    log_ratio = logprobs - ref_logprobs
    if kind == "kl":
        return log_ratio
    if kind == "abs":
        return log_ratio.abs()
    if kind == "mse":
        return 0.5 * log_ratio.square()
    if kind == "k3":
        return (-log_ratio).exp() - 1 + log_ratio
    raise ValueError(f"Unknown KL penalty {kind!r}: use kl, abs, mse or k3; full has `full_kl`.")


def full_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Compute KL(policy || reference), (...) in nats, over the whole vocabulary (..., V)."""
    return F.kl_div(
        ref_logits.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)


def token_rewards(
    scores: Tensor, kl: Tensor, kl_coef: float, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Give each token minus its weighted KL, and the last one the score too.

    Takes scores (B,), KL and mask (B, R) with at least one 1 in each row. Returns rewards (B, R)
    and the KL part alone (B, R). Source: Ziegler et al. 2019, eq. 2; TRL 0.11.4 `compute_rewards`.
    """
    non_score_rewards = (-kl_coef * kl).where(mask.bool(), 0)
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (positions * mask).argmax(1)
    rewards = non_score_rewards.clone()
    rewards[torch.arange(len(scores), device=mask.device), last] += scores
    return rewards, non_score_rewards


def generalized_advantages(
    rewards: Tensor, values: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Compute generalized advantages (B, R), not whitened, and returns (B, R).

    A_t = sum_k (gamma lam)^k delta_{t+k},  delta_t = r_t + gamma V_{t+1} - V_t, with V = 0 after
    the end. Rewards and values are (B, R) and 0 at masked positions. Source: Schulman et al. 2016,
    eq. 16.
    """
    # a product with a triangular matrix, so that there is no loop over tokens
    next_values = F.pad(values[:, 1:], (0, 1))
    deltas = rewards + gamma * next_values - values
    steps = torch.arange(rewards.shape[1], device=rewards.device)
    ahead = (steps[:, None] - steps[None, :]).clamp(min=0)  # row t + k, column t
    decay = torch.tensor(gamma * lam, dtype=rewards.dtype, device=rewards.device).pow(ahead)
    advantages = deltas @ decay.tril()
    return advantages, advantages + values


class PPOLosses(NamedTuple):
    """What one forward pass contributes, each (B, R) and not yet averaged."""

    policy: Tensor  # clipped surrogate, in score
    value: Tensor  # half the squared error of the clipped values, in score squared
    ratio: Tensor  # new over old probability
    policy_clipped: Tensor  # 1 where clipping decided, else 0
    value_clipped: Tensor  # the same for the value


def ppo_losses(
    logprobs: Tensor,
    values: Tensor,
    old_logprobs: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    cliprange: float,
    cliprange_value: float,
) -> PPOLosses:
    """Compute the clipped policy and value losses of each token; every tensor is (B, R).

    The ratio is clipped to 1 plus or minus `cliprange`, values to the old ones plus or minus
    `cliprange_value`. Losses carry a gradient, ratio and clip indicators none. Source: Schulman et
    al. 2017, eq. 7; TRL 0.11.4 `PPOTrainer.loss`.
    """
    ratio = (logprobs - old_logprobs).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)

    bounded = values.clamp(old_values - cliprange_value, old_values + cliprange_value)
    error, bounded_error = (values - returns).square(), (bounded - returns).square()
    return PPOLosses(
        policy=torch.maximum(unclipped, clipped),
        value=0.5 * torch.maximum(error, bounded_error),
        ratio=ratio.detach(),
        policy_clipped=(clipped > unclipped).detach().float(),
        value_clipped=(bounded_error > error).detach().float(),
    )
