"""Running mean and standard deviation of scores."""

import torch
from torch import Tensor

from trl_recipes.ppo.objective import Sum, local


class RunningMoments:
    """Mean and standard deviation of every score seen so far, over all processes.

    Source: Chan et al. 1979 (merging variances); TRL 0.11.4 `RunningMoments`, whose start values
    (mean 0, variance 1 with next to no weight) it keeps.

    >>> import torch
    >>> moments = RunningMoments()
    >>> moments.update(torch.tensor([1.0, 2.0]))
    >>> moments.update(torch.tensor([3.0]))
    >>> moments.mean, moments.std
    (2.0, 1.0)
    """

    def __init__(self):
        self.mean = 0.0
        self.std = 1.0
        self.var = 1.0
        self.count = 1e-24

    def update(self, scores: Tensor, all_sum: Sum = local) -> None:
        """Merge a batch.

        Args:
            scores: (B,).
            all_sum: adds over processes.
        """
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
