"""What subclasses of TRL 0.11's trainer call and override: the parts of `step`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trl_recipes.models.forward import evaluating, pad_rows
from trl_recipes.ppo import checks, objective
from trl_recipes.ppo.rollout import Evaluation, Rollout, Targets
from trl_recipes.ppo.statistics import token_sums, update_means, update_stats


class OverridableParts:
    """The methods of TRL 0.11's trainer that `step` calls, so that overriding them works."""

    def prepare_dataloader(self, dataset: Any, data_collator: Callable | None = None) -> DataLoader:
        """Make the loader of whole, shuffled batches of this process."""
        size = self.config.batch_size
        return DataLoader(dataset, size, shuffle=True, collate_fn=data_collator, drop_last=True)

    def _step_safety_checker(
        self,
        batch_size: int,
        queries: list[Tensor],
        responses: list[Tensor],
        scores: list[Tensor],
        masks: list[Tensor] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor] | None]:
        """Check what `step` is given; return it on the device."""
        given = {"queries": queries, "responses": responses, "scores": scores}
        masked = {} if masks is None else {"response_masks": masks}
        checks.check_step_inputs(given | masked, batch_size)
        rows = (queries, responses, masks or [])
        queries, responses, masks = ([x.to(self.current_device) for x in part] for part in rows)
        scores = [x.detach().to(self.current_device).float().reshape(()) for x in scores]
        return queries, responses, scores, masks or None

    def prepare_model_inputs(
        self, queries: Sequence[Tensor], responses: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Pad a batch into what the value-head model takes."""
        if not self.is_encoder_decoder:
            rows = [torch.cat(pair) for pair in zip(queries, responses, strict=True)]
            return self._padded(rows)
        decoder = {f"decoder_{name}": x for name, x in self._padded(responses).items()}
        return self._padded(queries) | decoder

    def _padded(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        if self.training_data_collator is None:
            ids, mask = pad_rows(rows, self.tokenizer.pad_token_id, "right")
            batch = {"input_ids": ids, "attention_mask": mask}
        else:
            inputs = [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in rows]
            batch = self.training_data_collator(inputs)
        names = ("input_ids", "attention_mask")
        return {name: batch[name].to(self.current_device) for name in names}

    def batched_forward_pass(
        self,
        model: nn.Module,
        queries: Sequence[Tensor],
        responses: Sequence[Tensor],
        model_inputs: dict[str, Tensor],
        return_logits: bool = False,
        response_masks: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Run a value-head model on B rows of L tokens, as TRL 0.11.4 laid them out.

        Returns log-probabilities, logits if asked for, values and the mask of response tokens, each
        (B, L - 1) and of the token that comes next. An encoder-decoder's first is left out.
        """
        kind = "decoder_" if self.is_encoder_decoder else ""
        ids, attention = model_inputs[f"{kind}input_ids"], model_inputs[f"{kind}attention_mask"]
        size, parts = self.config.mini_batch_size, []
        with evaluating(model):
            for start in range(0, len(ids), size):
                rows = {k: v[start : start + size] for k, v in model_inputs.items()}
                parts.append(model(**rows)[::2])
        logits, values = (torch.cat(part)[:, :-1] for part in zip(*parts, strict=True))
        first = torch.tensor([2 if kind else len(query) for query in queries], device=ids.device)
        places, labels = attention.cumsum(1)[:, 1:] - 1, ids[:, 1:]
        mask = ((places >= first[:, None]) & attention[:, 1:].bool()).long()
        for row, own in enumerate(response_masks or []):
            there = mask[row].bool()
            mask[row, there] = own[len(own) - int(there.sum()) :].to(mask)
        logprobs = objective.logprobs_from_logits(logits.flatten(0, 1), labels.flatten())
        return logprobs.view(labels.shape), logits if return_logits else None, values, mask

    def _kl_penalty(self, logprob: Tensor, ref_logprob: Tensor) -> Tensor:
        """KL penalty of each token, in nats; `full` takes the log-probabilities of all tokens."""
        if self.config.kl_penalty == "full":
            return objective.full_kl(logprob, ref_logprob)
        return objective.kl_penalty(logprob, ref_logprob, self.config.kl_penalty)

    def compute_rewards(
        self, scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, masks: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute rewards, their part without scores, and KL penalties of each token, (B, R)."""
        kl = self._kl_penalty(logprobs, ref_logprobs)
        return *objective.token_rewards(scores, kl, self.kl_ctl.value, masks), kl

    def _token_rewards(
        self, rollout: Rollout, scores: Tensor, factors: Tensor, evaluation: Evaluation
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Call `compute_rewards`, and add what functions gave for a token at that token."""
        mask = rollout.loss_mask
        if rollout.token_scores is not None:  # of a token that is not trained on: at the last one
            at_tokens = rollout.token_scores * factors[:, None] * mask
            rest, left = rollout._replace(token_scores=None), scores - at_tokens.sum(1)
            rewards, *more = self._token_rewards(rest, left, factors, evaluation)
            return rewards + at_tokens, *more
        if self.config.kl_penalty != "full":
            return self.compute_rewards(scores, evaluation.logprobs, evaluation.ref_logprobs, mask)
        kl_coef = self.kl_ctl.value
        return *objective.token_rewards(scores, evaluation.kl, kl_coef, mask), evaluation.kl

    def compute_advantages(
        self, values: Tensor, rewards: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute masked values, whitened advantages and returns, each (B, R)."""
        config, values, rewards = self.config, values * mask, rewards * mask
        if config.whiten_rewards:
            rewards = objective.masked_whiten(rewards, mask, False, self._all_sum)
        advantages, returns = objective.generalized_advantages(
            rewards, values, config.gamma, config.lam
        )
        return values, objective.masked_whiten(advantages, mask, True, self._all_sum), returns

    def _advantages(
        self, rollout: Rollout, rewards: Tensor, values: Tensor, quirks: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        config, mask, all_sum = self.config, rollout.loss_mask, self._all_sum
        if not (config.whiten_rewards and quirks) or self._overrides("compute_advantages"):
            return self.compute_advantages(values, rewards, mask)
        padded = rollout.response_mask.sum(1) if self.is_encoder_decoder else rollout.lengths()
        padding, width = self.accelerator.gather(padded).max() - padded, mask.shape[1]
        rewards, values = objective.whiten_with_padding(
            rewards, values * mask, mask, padding, self._all_sum
        )
        estimates = objective.generalized_advantages(rewards, values, config.gamma, config.lam)
        advantages, returns, values = (x[:, :width] for x in (*estimates, values))
        return values, objective.masked_whiten(advantages, mask, True, all_sum), returns

    def loss(
        self,
        old_logprobs: Tensor,
        values: Tensor,
        logits: Tensor,
        vpreds: Tensor,
        logprobs: Tensor,
        mask: Tensor,
        advantages: Tensor,
        returns: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute the policy loss, the weighted value loss, and statistics; means over tokens.

        Logits are (B, R, V), everything else (B, R). `step` computes the same without padding, and
        calls this where a subclass overrides it.
        """
        config = self.config
        targets = Targets(old_logprobs, values, advantages, returns)
        losses = objective.ppo_losses(
            logprobs, vpreds, *targets, config.cliprange, config.cliprange_value
        )
        full = logits.log_softmax(-1)
        entropy = -(full.exp() * full).sum(-1).expand_as(mask)
        sums = token_sums(losses, entropy, logprobs - old_logprobs, vpreds, returns, mask)
        means = update_means(sums, mask.sum())
        stats = update_stats(means, targets, mask, config.vf_coef, objective.local)
        policy, value = (objective.masked_mean(x, mask) for x in (losses.policy, losses.value))
        stats |= {"policy/ratio": losses.ratio, "policy/advantages": advantages[mask.bool()]}
        return policy, config.vf_coef * value, stats

    def _own_loss(
        self, rows: Rollout, old: Targets, logits: Tensor, values: Tensor, token_count: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        mask = rows.loss_mask
        share = mask.sum() / token_count
        whole = logits.new_zeros(*mask.shape, logits.shape[-1])
        whole[rows.response_mask.bool()] = logits
        logprobs = objective.logprobs_from_logits(logits, rows.labels())
        new = (whole, rows.unpack(values), rows.unpack(logprobs), mask)
        policy, value, stats = self.loss(
            old.logprobs, old.values, *new, old.advantages, old.returns
        )
        stats = {k: torch.as_tensor(v).detach() for k, v in stats.items()}
        stats |= {"loss/total": (policy + value).detach()}
        return (policy + value) * share, {k: v * share for k, v in stats.items() if v.dim() == 0}

    def _overrides(self, name: str) -> bool:
        """Whether a subclass or the user has replaced our method of that name."""
        method = getattr(self, name, None)
        return getattr(method, "__func__", method) is not getattr(OverridableParts, name, None)
