"""Rollout: what one batch of sampled responses carries from sampling to the last epoch."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from trl_recipes.models.packing import pad_rows


class Rollout(NamedTuple):
    """One batch of B queries and responses; Q and R are the longest query and response.

    Both stand at the left of their columns; responses leave out a decoder's start token. Masks come
    from lengths, never from token ids, so padding may use any id, that of the end token too.
    """

    queries: Tensor  # token ids, (B, Q)
    query_mask: Tensor  # 1 at query tokens, (B, Q)
    responses: Tensor  # token ids, (B, R)
    response_mask: Tensor  # 1 at response tokens, (B, R)
    loss_mask: Tensor  # 1 at response tokens that are trained on, (B, R)

    def rows(self, indices: Tensor) -> "Rollout":
        """Pick sequences, and cut the columns that only padding of others needed.

        Args:
            indices: of the sequences, (b,).
        """
        picked = Rollout(*(field[indices] for field in self))
        query, response = (
            int(mask.sum(1).max()) for mask in (picked.query_mask, picked.response_mask)
        )
        return Rollout(
            *(field[:, :query] for field in picked[:2]),
            *(field[:, :response] for field in picked[2:]),
        )

    def lengths(self) -> Tensor:
        """Tokens of each query and response together, (B,)."""
        return self.query_mask.sum(1) + self.response_mask.sum(1)


class Targets(NamedTuple):
    """What the epochs hold a batch's response tokens against, each (B, R).

    Attributes:
        logprobs: of the policy at sampling time, in nats.
        values: of the value head at sampling time, in score.
        advantages: whitened.
        returns: what the value head should predict, in score.
    """

    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


def collate(
    queries: Sequence[Tensor],
    responses: Sequence[Tensor],
    loss_masks: Sequence[Tensor],
    pad_token_id: int,
) -> Rollout:
    """Pad one batch into a [`Rollout`].

    Args:
        queries: token ids, each of shape (query length,).
        responses: token ids, each of shape (response length,), without a decoder's start token.
        loss_masks: 0 or 1 for each response token.
        pad_token_id: an id of the vocabulary.
    """
    query_ids, query_mask = pad_rows(queries, pad_token_id, side="right")
    response_ids, response_mask = pad_rows(responses, pad_token_id, side="right")
    loss_mask, _ = pad_rows(loss_masks, 0, side="right")
    return Rollout(query_ids, query_mask, response_ids, response_mask, loss_mask)
