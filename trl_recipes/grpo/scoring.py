"""Rewards of GRPO and RLOO: checked and measured before training, called for each batch."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import DefaultFlowCallback

from trl_recipes.checkpointing import find_checkpoint, random_states, set_random_states
from trl_recipes.data.conversations import answers, plain_text
from trl_recipes.data.prompts import own_names
from trl_recipes.describe import describe_check, describe_run
from trl_recipes.distributed import gather
from trl_recipes.errors import RecipeError
from trl_recipes.grpo.config import RLOOConfig
from trl_recipes.models.forward import temporarily, unwrap_adapter
from trl_recipes.models.generation import generate_responses
from trl_recipes.models.loading import check_lengths
from trl_recipes.models.sharding import is_whole
from trl_recipes.rewards.base import (
    TokenRewards,
    check_rewards,
    made_up,
    rows_to_measure,
    score_part,
)
from trl_recipes.run_folder import check_disk
from trl_recipes.stats import distinct_n

CHECK_STEPS = 4  # the first one warms up; the others tell how long a step takes
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
        shown = {"query": [*map(plain_text, prompts)], "response": texts, "score": scores}
        self._samples = {name: values[few] for name, values in shown.items()}

    # Before training

    def describe(self) -> str:
        """Say in one paragraph what `train` is about to do, with the batch arithmetic in words."""
        lengths = self._check_before_training()
        self._measure_rewards()
        return self._description(lengths)

    def _check_before_training(self) -> list[int]:
        """Check rewards, prompts, lengths and disk; return the lengths of the prompts."""
        held_out, rows = self.eval_dataset, self.train_dataset
        named = held_out if isinstance(held_out, dict) else {"eval_dataset": held_out}
        for name, part in named.items():
            try:
                self._check_rows(part)
            except RecipeError as error:
                raise RecipeError(f"`{name}`: {error}") from error
        lengths = self._check_rows(rows)
        groups = self.args.generation_batch_size // self.num_generations
        if 0 < len(lengths) < groups:
            raise RecipeError(
                f"The data set has {len(rows)} prompts, fewer than the {groups} of one "
                f"batch ({self.args.generation_batch_size} responses, {self.num_generations} to "
                "each). Lower `batch_size` or give more prompts."
            )
        check_disk(self.args, sum(p.numel() for p in self.model.parameters() if p.requires_grad))
        return lengths

    def _check_rows(self, rows: Any) -> list[int]:
        """Try the rewards on two rows, and return the lengths of all prompts; none of a stream."""
        if not isinstance(rows, Dataset):
            return []
        columns = rows[:2]
        prompts = columns.pop("prompt")
        texts, ids = made_up(prompts, self._tokenizer)
        samples = (prompts, answers(texts, prompts), ids, own_names(columns))
        extras = self._reward_extras()
        extras |= {name: lambda *_: None for name in extras if name.startswith("log_")}
        check_rewards(self.rewards, self.args.reward_once, *samples, **extras)
        lengths = [len(ids) for ids in self._tokenize_prompts(rows["prompt"][:])[0]]
        check_lengths(max(lengths), self.args.response_length, self.model)
        return lengths

    def _description(self, lengths: list[int]) -> str:
        """Say in one paragraph what a run is about to do, on prompts of these lengths."""
        model = unwrap_adapter(self.accelerator.unwrap_model(self.model))
        return describe_run(self._name, self, model, lengths, self._number_of_steps())

    def _number_of_steps(self) -> int:
        return self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]

    def _measure_rewards(self) -> None:
        """Measure rewards on samples of the start model, and weigh them by it where asked, once.

        Responses to one prompt are compared: a function's mean cancels out, its deviation divides
        its weight. A resumed run takes its checkpoint's.
        """
        args, rewards = self.args, self.rewards
        wanted = rewards.wants_reference_norm(args.reward_norm)
        if not wanted or rewards.scales or find_checkpoint(args):
            return
        policy = self.accelerator.unwrap_model(self.model)
        loops = any(getattr(self, n, None) for n in ("tools", "environments", "rollout_func"))
        if loops or not (isinstance(self.train_dataset, Dataset) and is_whole(policy)):
            if args.reward_norm == "reference":
                raise RecipeError(
                    "`reward_norm` is reference, which needs a data set with a length, a model "
                    "that lies whole in each process, and neither tools nor environments. Use none."
                )
            return
        randomness = random_states()
        rows = rows_to_measure(len(self.train_dataset), args.seed, self.accelerator)
        inputs = [self.train_dataset[row] for row in rows]
        prompts = [row["prompt"] for row in inputs]
        responses = generate_responses(
            policy,
            [torch.tensor(ids) for ids in self._tokenize_prompts(prompts)[0]],
            pad_token_id=self._tokenizer.pad_token_id,
            eos_token_id=self._end_tokens(),
            max_new_tokens=args.response_length,
            temperature=args.temperature,
            batch_size=args.batch_size,
        )
        texts = self._tokenizer.batch_decode(responses, skip_special_tokens=True)
        ids = [row.tolist() for row in responses]
        raw = self._score(inputs, prompts, answers(texts, prompts), ids)
        set_random_states(randomness)
        raw = {name: gather(values) for name, values in raw.items()}
        rewards.measure(raw, self._normalizes())
        self._weigh_rewards()

    def _weigh_rewards(self) -> None:
        """Have TRL weigh each function by its weight over its scale."""
        scales = [self.rewards.normalization.get(n, (0.0, 1.0))[1] for n in self.rewards.names]
        weights = torch.tensor([self.rewards.weights, scales], dtype=torch.float32)
        self.reward_weights = weights[0] / weights[1]

    def _normalizes(self) -> bool:
        """Whether rewards are normalized; by default not in GRPO, which compares within groups."""
        norm, rloo = self.args.reward_norm, isinstance(self.args, RLOOConfig)
        return norm == "reference" or (rloo and self.rewards.wants_reference_norm(norm))

    def check(self) -> str:
        """Try the first steps of `train`, write nothing, restore everything; say what was found."""
        self._check_before_training()
        steps, handler = self._number_of_steps(), self.callback_handler
        reference = [] if self.ref_model is None else self.ref_model.parameters()
        changed = [p for p in self.model.parameters() if p.requires_grad] + list(reference)
        before, randomness = [parameter.detach().clone() for parameter in changed], random_states()
        few = {"max_steps": min(CHECK_STEPS, steps), "save_strategy": "no", "eval_strategy": "no"}
        few |= {"logging_strategy": "steps", "logging_steps": 1, "log_samples": 1}
        few |= {"resume_from_checkpoint": None}
        # neither trackers nor bars
        listeners = [c for c in handler.callbacks if isinstance(c, DefaultFlowCallback)]
        listeners.append(self._steps)
        try:
            with (
                temporarily(self.args, **few),
                temporarily(handler, callbacks=listeners),
                temporarily(self, _trying=True, log_completions=False),
            ):
                self._train()
            seconds = [row["step_time"] for row in self.all_stats]
            sample = tuple(column[0] for column in self._samples.values())
        finally:
            self.optimizer = self.lr_scheduler = None
            self._forget()
            self._metrics["train"].clear()
            with torch.no_grad():
                for parameter, value in zip(changed, before, strict=True):
                    parameter.copy_(value)
            set_random_states(randomness)
        return describe_check(seconds, steps, "the prompts", sample)


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
