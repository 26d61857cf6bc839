"""The statistics of one PPO step, under the keys that TRL 0.11's `step` returned.

And what PPO learns from them: the KL coefficient, and the scale of scores.
"""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trl_recipes.distributed import gather
from trl_recipes.ppo.config import PPOConfig
from trl_recipes.ppo.objective import PPOLosses, Sum, local, masked_moments
from trl_recipes.ppo.rollout import Evaluation, Targets
from trl_recipes.stats import distinct_n

logger = logging.getLogger(__name__)


def rollout_stats(
    scores: Tensor,
    evaluation: Evaluation,
    non_score_rewards: Tensor,
    mask: Tensor,
    kl_coef: float,
    all_sum: Sum,
) -> dict[str, Tensor | float]:
    """Describe a batch before it is trained on: scores (B,), everything else (B, R)."""
    ones = torch.ones_like(scores)
    kl_dist = (evaluation.kl * mask).sum(1)
    entropy = (-evaluation.logprobs * mask).sum(1)
    means, variances = masked_moments(
        [kl_dist, entropy, scores, non_score_rewards], [ones, ones, ones, mask], all_sum
    )
    return {
        "objective/kl": means[0],
        "objective/kl_dist": kl_dist,
        "objective/logprobs": evaluation.logprobs,
        "objective/ref_logprobs": evaluation.ref_logprobs,
        "objective/kl_coef": kl_coef,
        "objective/entropy": means[1],
        "ppo/mean_non_score_reward": means[3],
        "ppo/mean_scores": means[2],
        "ppo/std_scores": variances[2].sqrt(),
    }


def sampling_stats(sampled: Tensor | None, logprobs: Tensor, mask: Tensor) -> dict[str, float]:
    """Say under TRL's names how far vLLM's log-probabilities are from the policy's, each (B, R)."""
    if sampled is None:
        return {}
    log_ratio = torch.cat(gather([(logprobs - sampled)[mask.bool()].cpu()]))
    off, ratio = log_ratio.abs(), log_ratio.exp()
    return {
        "sampling/sampling_logp_difference/mean": off.mean().item(),
        "sampling/sampling_logp_difference/max": off.max().item(),
        "sampling/importance_sampling_ratio/min": ratio.min().item(),
        "sampling/importance_sampling_ratio/mean": ratio.mean().item(),
        "sampling/importance_sampling_ratio/max": ratio.max().item(),
    }


def length_stats(lengths_by_name: dict[str, Tensor], all_sum: Sum) -> dict[str, Tensor]:
    """Describe the lengths (B,) of queries and of responses, in tokens."""
    lengths = {name: values.float() for name, values in lengths_by_name.items()}
    stats = {}
    for name, mean, std in _moments(lengths, all_sum):
        stats |= {f"tokens/{name}_len_mean": mean, f"tokens/{name}_len_std": std}
        stats[f"tokens/{name}_dist"] = lengths[name]
    return stats


def score_stats(
    scores: Sequence[float],
    by_function: dict[str, list],
    device,
    all_sum: Sum,
    metrics: Sequence[str] = (),
) -> dict[str, float]:
    """Average raw scores, before any scaling, in all and of each reward function.

    A function's value is None where it left a sample out; one that left all out has no statistics.
    Those named in `metrics` are only logged.
    """
    prefixes = {"env/reward_": scores}
    for name, values in by_function.items():
        prefixes[f"{'metrics' if name in metrics else 'rewards'}/{name}/"] = values
    known = {
        prefix: torch.tensor([float(v) for v in values if v is not None], device=device)
        for prefix, values in prefixes.items()
    }
    stats = {}
    counts = all_sum(torch.tensor([len(values) for values in known.values()], device=device))
    for count, (prefix, mean, std) in zip(counts.tolist(), _moments(known, all_sum), strict=True):
        if count:
            stats |= {f"{prefix}mean": mean.item(), f"{prefix}std": std.item()}
    return stats


def _moments(by_name: dict[str, Tensor], all_sum: Sum) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Compute mean and standard deviation of each tensor, over all processes."""
    ones = [torch.ones_like(values) for values in by_name.values()]
    means, variances = masked_moments([*by_name.values()], ones, all_sum)
    return zip(by_name, means, variances.sqrt(), strict=True)


def token_sums(losses: PPOLosses, entropy, log_ratio, values, returns, mask: Tensor) -> Tensor:
    """Add up what a forward pass says of its tokens, each (B, R): (10,), see `update_means`."""
    tokens = (
        *(losses.policy, losses.value, entropy, 0.5 * log_ratio.square(), -log_ratio),
        *(losses.policy_clipped, values, (values - returns).square()),
        *(losses.value_clipped, losses.ratio),
    )
    return (torch.stack(tokens).detach() * mask).sum((1, 2))


def update_means(sums: Tensor, token_count: Tensor) -> dict[str, Tensor]:
    """Average and name the sums of `token_sums` over an optimizer step."""
    names = (
        *("loss/policy", "loss/value", "policy/entropy", "policy/approxkl", "policy/policykl"),
        *("policy/clipfrac", "val/vpred", "val/error", "val/clipfrac", "ratio"),
    )
    return dict(zip(names, sums / token_count, strict=True))


def update_stats(
    means: dict[str, Tensor], targets: Targets, mask: Tensor, vf_coef: float, all_sum: Sum
) -> dict[str, Tensor]:
    """Describe one optimizer step, whose targets and mask are (B, R)."""
    averages, variances = masked_moments(
        [targets.advantages, targets.returns, targets.values], [mask] * 3, all_sum
    )
    return {
        "loss/total": means["loss/policy"] + vf_coef * means["loss/value"],
        **{key: value for key, value in means.items() if key != "ratio"},
        "policy/advantages_mean": averages[0],
        "returns/mean": averages[1],
        "returns/var": variances[1],
        "val/mean": averages[2],
        "val/var": variances[2],
        "policy/advantages": with_mask(targets.advantages, mask),
    }


def with_mask(values: Tensor, mask: Tensor) -> Tensor:
    """Put values beside their mask, (2, B * R): taking out the masked ones would wait for a GPU."""
    flags = mask.flatten().to(values.dtype)
    return torch.stack([values.flatten(), flags])


def judge_step(means: dict[str, Tensor], norm: Tensor, threshold: float) -> Tensor:
    """Judge a gradient before it is applied: finite, to be taken, ratio and norm, (4,)."""
    finite = torch.isfinite(norm) & torch.isfinite(means["loss/policy"])
    healthy = finite & (means["ratio"] <= threshold)
    return torch.stack([finite, healthy, means["ratio"], norm])


def count_skipped(verdicts: list[Tensor], threshold: float, not_finite: int) -> tuple[int, int]:
    """Warn of skipped optimizer steps; count them, and those in a row that were not finite."""
    skipped = 0
    for finite, healthy, ratio, norm in torch.stack(verdicts).tolist():
        not_finite = 0 if finite else not_finite + 1
        skipped += not healthy
        if not healthy:
            logger.warning(
                "Skipped an optimizer step: mean probability ratio %.2f (threshold %.2f), gradient "
                "norm %.3g.",
                ratio,
                threshold,
                norm,
            )
    return skipped, not_finite


def average_updates(updates: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Average the optimizer steps of a batch; what is one value per token is joined."""
    stats = {}
    for key in updates[0]:
        values = [update[key] for update in updates]
        if values[0].dim():
            joined, mask = torch.cat(values, 1)
            stats[f"ppo/{key}"] = joined[mask.bool()]
        else:
            stats[f"ppo/{key}"] = torch.stack(values).mean()
    stats["ppo/val/var_explained"] = 1 - stats["ppo/val/error"] / stats["ppo/returns/var"]
    return stats


def diversity(responses: Sequence[list[int]], texts: Sequence[str]) -> dict[str, float]:
    """Give the fractions of distinct token pairs and of distinct texts, over all processes."""
    texts = gather(list(texts))
    return {
        "samples/distinct_2": distinct_n(gather(list(responses)), 2),
        "samples/unique": len(set(texts)) / len(texts),
    }


def to_plain(stats: dict) -> dict:
    """Turn scalars into python floats, and other tensors into numpy arrays."""
    plain = {}
    for key, value in stats.items():
        if isinstance(value, Tensor):
            value = value.detach().float().cpu()
            value = value.numpy() if value.dim() else value.item()
        plain[key] = value
    return plain


class FixedKLController:
    """Keeps the KL coefficient as it is."""

    def __init__(self, kl_coef: float):
        self.value = kl_coef

    def update(self, current: float, n_steps: int) -> None:
        """Do nothing; the adaptive controller's counterpart."""


class AdaptiveKLController:
    """Moves the KL coefficient so that the KL per sequence nears `target`, in nats.

    `horizon` is the number of episodes over which it adapts. Source: Ziegler et al. 2019
    (arXiv:1909.08593), section 2.2; TRL 0.11.4 `AdaptiveKLController`.
    """

    def __init__(self, init_kl_coef: float, target: float, horizon: float):
        self.value = init_kl_coef
        self.target = target
        self.horizon = horizon

    def update(self, current: float, n_steps: int) -> None:
        """Take one proportional step, by the mean KL of `n_steps` episodes of all processes."""
        error = min(max(current / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * n_steps / self.horizon


def kl_controller(config: PPOConfig) -> AdaptiveKLController | FixedKLController:
    """Make the controller of the KL coefficient that the configuration asks for."""
    if config.adap_kl_ctrl:
        return AdaptiveKLController(config.init_kl_coef, config.target, config.horizon)
    return FixedKLController(config.init_kl_coef)


class RunningMoments:
    """Mean and standard deviation of every score seen so far, over all processes.

    Source: Chan et al. 1979 (merging variances); TRL 0.11.4 `RunningMoments`, whose start values
    (mean 0, variance 1 with next to no weight) it keeps.
    """

    def __init__(self):
        self.mean = 0.0
        self.std = 1.0
        self.var = 1.0
        self.count = 1e-24

    def update(self, scores: Tensor, all_sum: Sum = local) -> None:
        """Merge a batch of scores (B,)."""
        here = torch.stack([scores.sum(), scores.new_tensor(float(scores.numel()))])
        summed, count = all_sum(here).tolist()
        mean = summed / count
        squares = all_sum((scores - mean).square().sum()).item()

        delta, total = mean - self.mean, self.count + count
        squares += self.var * self.count + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.var = squares / total
        self.std = (squares / (total - 1)) ** 0.5 if total > 1 else 1.0
        self.count = total


class ScoreScaling:
    """Turns raw scores into those that are optimized: penalized, scaled, normalized and clipped."""

    def __init__(self, config: PPOConfig, all_sum: Sum):
        self.config, self.all_sum = config, all_sum
        self.running = RunningMoments()

    def __call__(self, scores: Tensor, ended: Tensor) -> tuple[Tensor, Tensor]:
        """Give the scores (B,) to optimize, and the factors (B,) that parts of them shrink by.

        `ended` says which responses hold an end token.
        """
        config, factors = self.config, torch.ones_like(scores)
        if config.missing_eos_penalty is not None:
            scores = scores - config.missing_eos_penalty * ~ended
        if config.use_score_scaling:
            self.running.update(scores, self.all_sum)
            scale = self.running.std + torch.finfo(scores.dtype).eps
            shift = self.running.mean if config.use_score_norm else 0.0
            scores, factors = (scores - shift) / scale, factors / scale
        if (limit := config.score_clip) is not None:
            factors = factors * limit / scores.abs().clamp(min=limit)
            scores = scores.clamp(-limit, limit)
        return scores, factors
