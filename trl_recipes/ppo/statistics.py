"""The statistics of one PPO step, under the keys that TRL 0.11's `step` returned."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trl_recipes.distributed import gather
from trl_recipes.ppo.objective import PPOLosses, Sum, masked_moments
from trl_recipes.stats import distinct_n


def rollout_stats(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    kl: Tensor,
    non_score_rewards: Tensor,
    mask: Tensor,
    kl_coef: float,
    all_sum: Sum,
) -> dict[str, Tensor | float]:
    """Describe a batch before it is trained on.

    Args:
        scores: after scaling and clipping, (B,).
        logprobs: of the policy at sampling time, (B, R).
        ref_logprobs: of the reference model, (B, R).
        kl: KL penalty a token, (B, R).
        non_score_rewards: KL part of the rewards, (B, R).
        mask: tokens that are trained on, (B, R).
        kl_coef: the coefficient that was used.
        all_sum: adds over processes.

    Returns:
        KL and entropy are sums over a sequence, in nats, averaged over sequences.
    """
    ones = torch.ones_like(scores)
    kl_dist, entropy = (kl * mask).sum(1), (-logprobs * mask).sum(1)
    means, variances = masked_moments(
        [kl_dist, entropy, scores, non_score_rewards], [ones, ones, ones, mask], all_sum
    )
    return {
        "objective/kl": means[0],
        "objective/kl_dist": kl_dist,
        "objective/logprobs": logprobs,
        "objective/ref_logprobs": ref_logprobs,
        "objective/kl_coef": kl_coef,
        "objective/entropy": means[1],
        "ppo/mean_non_score_reward": means[3],
        "ppo/mean_scores": means[2],
        "ppo/std_scores": variances[2].sqrt(),
    }


def length_stats(
    rows_by_name: dict[str, Sequence[Tensor]], device, all_sum: Sum
) -> dict[str, Tensor]:
    """Lengths of queries and responses, in tokens.

    Args:
        rows_by_name: "queries" and "responses", each a list of token ids of shape (length,).
        device: where sums over processes are taken.
        all_sum: adds over processes.
    """
    lengths = [
        torch.tensor([len(row) for row in rows], dtype=torch.float32, device=device)
        for rows in rows_by_name.values()
    ]
    means, variances = masked_moments(lengths, [torch.ones_like(x) for x in lengths], all_sum)
    stats = {}
    for row, name in enumerate(rows_by_name):
        stats |= {
            f"tokens/{name}_len_mean": means[row],
            f"tokens/{name}_len_std": variances[row].sqrt(),
            f"tokens/{name}_dist": lengths[row],
        }
    return stats


def score_stats(
    scores: Sequence[float],
    by_function: dict[str, list],
    device,
    all_sum: Sum,
    metrics: Sequence[str] = (),
) -> dict[str, float]:
    """Mean and spread of raw scores, before any scaling: in all, and of each reward function.

    Args:
        scores: weighted sum a sample.
        by_function: values of each reward function, None where it left a sample out.
        device: where sums over processes are taken.
        all_sum: adds over processes.
        metrics: names of those functions that are only logged.
    """
    by_name = {"env/reward_": scores, **by_function}
    known = [
        torch.tensor([float(v) for v in values if v is not None], device=device)
        for values in by_name.values()
    ]
    means, variances = masked_moments(known, [torch.ones_like(x) for x in known], all_sum)
    stats = {}
    for row, name in enumerate(by_name):
        kind = "metrics" if name in metrics else "rewards"
        prefix = name if name == "env/reward_" else f"{kind}/{name}/"
        stats[f"{prefix}mean"] = means[row].item()
        stats[f"{prefix}std"] = variances[row].sqrt().item()
    return stats


def normalisation_stats(normalisation: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Shift and scale of each reward function, the same at every step.

    Args:
        normalisation: both numbers by name of the function; empty where nothing is normalised.
    """
    stats = {}
    for name, (shift, scale) in normalisation.items():
        stats |= {f"rewards/{name}/shift": shift, f"rewards/{name}/scale": scale}
    return stats


class UpdateStats:
    """Collects token sums over the forward passes of one optimizer step, then averages them.

    Args:
        all_sum: adds over processes.
    """

    MEANS = (
        "loss/policy",
        "loss/value",
        "policy/entropy",
        "policy/approxkl",
        "policy/policykl",
        "policy/clipfrac",
        "val/vpred",
        "val/error",
        "val/clipfrac",
        "ratio",
    )

    def __init__(self, all_sum: Sum):
        self.all_sum = all_sum
        self.sums: list[Tensor] = []
        self.ratios: list[Tensor] = []

    def add(
        self,
        losses: PPOLosses,
        entropy: Tensor,
        log_ratio: Tensor,
        values: Tensor,
        returns: Tensor,
        mask: Tensor,
    ) -> None:
        """Add one forward pass; every tensor has shape (B, R).

        Args:
            losses: of the pass.
            entropy: of the next-token distribution, in nats.
            log_ratio: new less old log-probability, in nats.
            values: of the value head now, in score.
            returns: what they should predict, in score.
            mask: 1 where there is a response token.
        """
        tokens = (
            losses.policy,
            losses.value,
            entropy,
            0.5 * log_ratio.square(),
            -log_ratio,
            losses.policy_clipped,
            values,
            (values - returns).square(),
            losses.value_clipped,
            losses.ratio,
        )
        self.sums.append((torch.stack(tokens).detach() * mask).sum((1, 2)))
        self.ratios.append(losses.ratio[mask.bool()])

    def means(self, token_count: Tensor) -> dict[str, Tensor]:
        """Average over the tokens of all forward passes and processes.

        Args:
            token_count: number of tokens of the optimizer step, over all processes.
        """
        totals = self.all_sum(torch.stack(self.sums).sum(0)) / token_count
        return dict(zip(self.MEANS, totals, strict=True))


def update_stats(
    means: dict[str, Tensor],
    advantages: Tensor,
    returns: Tensor,
    values: Tensor,
    mask: Tensor,
    vf_coef: float,
    all_sum: Sum,
) -> dict[str, Tensor]:
    """Statistics of one optimizer step.

    Args:
        means: from `UpdateStats.means`.
        advantages: whitened, (B, R).
        returns: (B, R).
        values: at sampling time, (B, R).
        mask: tokens of the optimizer step, (B, R).
        vf_coef: weight of the value loss in the total.
        all_sum: adds over processes.
    """
    averages, variances = masked_moments([advantages, returns, values], [mask] * 3, all_sum)
    return {
        **{key: value for key, value in means.items() if key != "ratio"},
        "loss/total": means["loss/policy"] + vf_coef * means["loss/value"],
        "policy/advantages_mean": averages[0],
        "returns/mean": averages[1],
        "returns/var": variances[1],
        "val/mean": averages[2],
        "val/var": variances[2],
    }


def average_updates(updates: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Average the optimizer steps of a batch; lists of tokens are joined.

    Args:
        updates: from `update_stats`, with one value a token in `policy/advantages` and
            `policy/ratio`.
    """
    stats = {}
    for key in updates[0]:
        values = [update[key] for update in updates]
        joined = torch.cat(values) if values[0].dim() else torch.stack(values).mean()
        stats[f"ppo/{key}"] = joined
    stats["ppo/val/var_explained"] = 1 - stats["ppo/val/error"] / stats["ppo/returns/var"]
    return stats


def diversity(responses: Sequence[Tensor], texts: Sequence[str]) -> dict[str, float]:
    """Share of distinct token pairs and of distinct texts in a batch, over all processes.

    Args:
        responses: token ids, each of shape (length,).
        texts: the same, decoded.
    """
    ids = gather([response.tolist() for response in responses])
    texts = gather(list(texts))
    return {
        "samples/distinct_2": distinct_n(ids, 2),
        "samples/unique": len(set(texts)) / len(texts),
    }


def to_plain(stats: dict) -> dict:
    """Turn tensors into python floats, and those of several elements into numpy arrays.

    Args:
        stats: tensors and numbers by key.
    """
    plain = {}
    for key, value in stats.items():
        if isinstance(value, Tensor):
            value = value.detach().float().cpu()
            value = value.item() if value.numel() == 1 and value.dim() == 0 else value.numpy()
        plain[key] = value
    return plain
