"""Scoring a sampled batch of GRPO and RLOO, and what the batch looks like in numbers."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trl_recipes.data.conversations import plain_text
from trl_recipes.data.prompts import own_names
from trl_recipes.distributed import gather
from trl_recipes.errors import RecipeError
from trl_recipes.rewards.base import TokenRewards, score_part
from trl_recipes.stats import distinct_n

ROUNDING = 1e-6  # of float32, beside the size of the scores


class GroupScoring:
    """Calls the reward functions in TRL's place, as a mixin of its trainers."""

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list) -> Tensor:
        started = time.perf_counter()
        raw = self._score(inputs, prompts, completions, completion_ids_list)
        values = torch.tensor([raw[name] for name in self.rewards.names], dtype=torch.float32)
        by_function = self.accelerator.gather(values.T.contiguous().to(self.accelerator.device))
        self._note("time/scoring", time.perf_counter() - started)
        if self.model.training:
            self._note_batch(raw, prompts, completions, completion_ids_list, by_function)
        return by_function

    def _score(self, inputs, prompts, completions, ids) -> dict[str, list[float]]:
        """Values of each reward function and metric for this process's part; nan for None."""
        columns = own_names({n: [row[n] for row in inputs] for n in inputs[0] if n != "prompt"})
        once, extras = self.args.reward_once, self._reward_extras()
        _, raw = score_part(self.rewards, once, prompts, completions, ids, columns, **extras)
        for name, values in raw.items():
            if any(isinstance(value, TokenRewards) for value in values):
                raise RecipeError(
                    f"Reward function `{name}` returned a list of numbers for a completion, one a "
                    f"token. {self._name} gives all tokens of a response one advantage: return "
                    "their sum, or train with PPO."
                )
        return {n: [torch.nan if v is None else v for v in values] for n, values in raw.items()}

    def _reward_extras(self) -> dict[str, Any]:
        """Collect what TRL gives to reward functions besides texts and columns."""
        extras: dict[str, Any] = {"trainer_state": self.state}
        if not self.args.reward_once:  # what TRL gathers of all must be there in all
            extras |= {"log_extra": self._log_completion_extra, "log_metric": self._log_metric}
        return extras

    def _note(self, name: str, value: float) -> None:
        self._metrics["train" if self.model.training else "eval"][name].append(value)

    def _note_batch(self, raw, prompts, completions, ids, by_function: Tensor) -> None:
        """Note what a sampled batch looks like, and keep a response of each of the first groups."""
        weights = torch.tensor(self.rewards.weights, device=by_function.device)
        totals = (by_function * weights).nansum(1)  # nan where no function scored
        totals = totals.masked_fill(by_function.isnan().all(1), torch.nan)
        all_ids = gather(list(ids))
        texts = [plain_text(completion) for completion in completions]
        metrics = {name: gather(raw[name]) for name in self.rewards.metric_names}
        found = batch_statistics(totals, self.num_generations, gather(texts), all_ids, metrics)
        if self.mask_truncated_completions:
            ends = (*self._end_tokens(), self._tokenizer.pad_token_id)
            cut = [row[-1] not in ends for row in all_ids]
            found["tokens/masked_share"] = sum(cut) / len(cut)
        found |= self.rewards.normalization_stats()
        for name, value in found.items():
            self._note(name, value)
        self._episodes += len(all_ids)
        self._generated += sum(map(len, all_ids))
        first = self.accelerator.process_index * len(prompts)
        scores = totals[first : first + len(prompts)].tolist()
        few = slice(0, self.num_generations * self.args.log_samples, self.num_generations)
        self._samples = ([plain_text(prompt) for prompt in prompts[few]], texts[few], scores[few])


def batch_statistics(
    totals: Tensor,
    num_generations: int,
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    metrics: Mapping[str, Sequence[float]],
) -> dict[str, float]:
    """Measure score, variety and length of a batch, and how many groups have equal scores.

    `totals` (B,), `texts`, `ids` and what each of the `metrics` gave are of all processes.
    """
    scored = totals[~totals.isnan()]
    groups = totals.view(-1, num_generations)
    groups = torch.where(groups.isnan(), groups.nanmean(1, keepdim=True), groups).nan_to_num()
    ranges = groups.amax(1) - groups.amin(1)
    equal = ranges <= ROUNDING * groups.abs().amax(1).clamp(min=1.0)
    found = {
        "env/reward_mean": scored.mean().item(),
        "env/reward_std": scored.std(correction=0).item(),
        "groups/reward_std": groups.std(1, correction=0).mean().item(),
        "groups/equal": equal.float().mean().item(),
        "tokens/responses_len_mean": torch.tensor([float(len(row)) for row in ids]).mean().item(),
        "samples/distinct_2": distinct_n(ids, 2),
        "samples/unique": len(set(texts)) / len(texts),
    }
    for name, values in metrics.items():
        known = torch.tensor([value for value in values if not math.isnan(value)])
        if len(known):
            found[f"metrics/{name}/mean"] = known.mean().item()
            found[f"metrics/{name}/std"] = known.std(correction=0).item()
    return found
