"""Rollout: what one batch of sampled responses carries from sampling to the last epoch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from trl_recipes.models.forward import length_groups, pad_rows, rows_of, tokens_of, unpack
from trl_recipes.models.generation import generate_responses
from trl_recipes.models.sampling import can_sample, sample_responses


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
    # what was known when each token was drawn; None where the responses came from elsewhere
    logprobs: Tensor | None = None  # in nats, (B, R)
    hidden: Tensor | None = None  # the trunk's last hidden state before the token, (B, R, H)
    sampling_logprobs: Tensor | None = None  # vLLM's, which are only compared, in nats, (B, R)
    token_scores: Tensor | None = None  # the part of the scores that stands at a token, (B, R)

    def with_masks_on_host(self) -> "Rollout":
        """Fetch the masks of queries and responses, so that no pass over rows waits for a GPU."""
        return self._replace(
            query_mask=self.query_mask.cpu(), response_mask=self.response_mask.cpu()
        )

    def rows(self, indices: Tensor) -> "Rollout":
        """Pick sequences to run a model on, and cut the columns that only others needed."""
        queries, query_mask, *responses = (
            field[indices.to(field.device, non_blocking=True)] for field in self[:5]
        )
        query = int(query_mask.sum(1).max())
        response = int(responses[1].sum(1).max())
        return Rollout(
            queries[:, :query], query_mask[:, :query], *(field[:, :response] for field in responses)
        )

    def passes(self, indices: Tensor, size: int, pass_cost: int | None) -> list[Tensor]:
        """Split sequences into forward passes of at most `size`, those of like length together.

        `pass_cost` is what a pass costs beside its tokens, in tokens; None splits in order.
        """
        if pass_cost is None:
            return list(indices.split(size))
        groups = length_groups(self.lengths()[indices].tolist(), pass_cost)
        groups = [indices[torch.tensor(group, device=indices.device)] for group in groups]
        return [part for group in groups for part in group.split(size)]

    def labels(self) -> Tensor:
        """Give the N response tokens, row after row, (N,)."""
        return tokens_of(self.responses, self.response_mask)

    def unpack(self, values: Tensor) -> Tensor:
        """Put one value per response token (N,) back into rows (B, R), with 0 in gaps."""
        return unpack(values, self.response_mask)

    def lengths(self) -> Tensor:
        """Count the tokens of each query and response together, (B,)."""
        return self.query_mask.sum(1) + self.response_mask.sum(1)

    def with_token_scores(self, rows: list[list[float]] | None, skip: int) -> "Rollout":
        """Put numbers for each response's tokens beside them, less a start token's; or nothing."""
        if rows is None:
            return self
        scores = torch.zeros_like(self.response_mask, dtype=torch.float32)
        for row, values in enumerate(rows):
            scores[row, : max(len(values) - skip, 0)] = torch.tensor(values[skip:])
        return self._replace(token_scores=scores)

    def response_rows(self) -> list[Tensor]:
        """Give the responses as a list, each of shape (response length,)."""
        return rows_of(self.responses, self.response_mask)


class Evaluation(NamedTuple):
    """What policy, value head and reference say of each response token, each (B, R)."""

    logprobs: Tensor  # of the policy at sampling time, in nats
    values: Tensor  # of the value head at sampling time, in score
    ref_logprobs: Tensor  # of the reference model, in nats
    kl: Tensor  # KL penalty, in nats


class Targets(NamedTuple):
    """What the epochs hold a batch's response tokens against, each (B, R)."""

    logprobs: Tensor  # of the policy at sampling time, in nats
    values: Tensor  # of the value head at sampling time, in score
    advantages: Tensor  # whitened
    returns: Tensor  # what the value head should predict, in score


def collate(
    queries: Sequence[Tensor],
    responses: Sequence[Tensor],
    loss_masks: Sequence[Tensor] | None,
    pad_token_id: int,
) -> Rollout:
    """Pad token ids, each (length,), into a [`Rollout`]; by default every token is trained on."""
    query_ids, query_mask = pad_rows(queries, pad_token_id, side="right")
    response_ids, response_mask = pad_rows(responses, pad_token_id, side="right")
    loss_mask = response_mask
    if loss_masks is not None:
        loss_mask, _ = pad_rows(loss_masks, 0, side="right")
    return Rollout(query_ids, query_mask, response_ids, response_mask, loss_mask)


def sample(policy: nn.Module, queries: Sequence[Tensor], vllm: Any, **settings: Any) -> Rollout:
    """Draw one response to each query, with the settings of [`sample_responses`].

    Where there is a [`VLLMSampler`], it draws them.
    """
    pad_token_id = settings["pad_token_id"]
    if vllm is not None:
        drawn, logprobs = vllm.sample(queries, **settings)
        rollout = collate(queries, drawn, None, pad_token_id)
        return rollout._replace(sampling_logprobs=pad_sequence(logprobs, batch_first=True))
    if not can_sample(policy):  # no step-by-step decoding: a forward pass finds out the rest
        responses = generate_responses(policy, queries, **settings)
        return collate(queries, responses, None, pad_token_id)
    drawn, mask, logprobs, hidden = sample_responses(policy, queries, **settings)
    ids, query_mask = pad_rows(queries, pad_token_id, side="right")
    return Rollout(ids, query_mask, drawn, mask, mask, logprobs, hidden)
