"""PPOTrainer: rollout, score, evaluate, advantages, optimize, record."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.scheduler import AcceleratedScheduler
from datasets import Dataset
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, set_seed

from trl_recipes.callbacks import end_step, own_copy, show_progress, tell, train_or_stop, write_row
from trl_recipes.checkpointing import random_states, set_random_states
from trl_recipes.data.prompts import LengthSampler, as_prompts, collated, collator, stream_rows
from trl_recipes.errors import RecipeError
from trl_recipes.models.sharding import full_tensor, gathered, is_sharded, set_fsdp_root
from trl_recipes.ppo import checks, classic, objective, setup, statistics
from trl_recipes.ppo.checkpointing import PPOCheckpoints
from trl_recipes.ppo.config import PPOConfig
from trl_recipes.ppo.models import ActorCritic
from trl_recipes.ppo.rollout import Evaluation, Rollout, Targets, sample
from trl_recipes.rewards import reward_inputs, rewards_of, score_part

logger = get_logger(__name__)

NOT_FINITE_ENDS = 3  # optimizer steps in a row without a finite gradient
# What a step takes time for, one after the other, behind the scaling of scores.
PHASES = ("forward_pass", "compute_rewards", "compute_advantages", "optimize_step", "calc_stats")


class PPOTrainer(classic.ClassicLoop, PPOCheckpoints, Trainer):
    """Proximal policy optimization of a language model with a value head.

    Two ways in, one implementation. The classic one of TRL 0.11:

        trainer = PPOTrainer(config, model, ref_model, tokenizer, dataset, data_collator=collator)
        for batch in trainer.dataloader:
            responses = trainer.generate(batch["input_ids"], return_prompt=False, **kwargs)
            scores = [torch.tensor(score_of(text)) for text in ...]
            stats = trainer.step(batch["input_ids"], responses, scores)

    and that of TRL's other trainers, `PPOTrainer(args=..., model=..., reward_funcs=...,
    train_dataset=..., processing_class=...).train()`, a loop of rollout, score, step, log.

    Args:
        config: settings; `args` is its other name.
        model: hub name, folder, transformers or PEFT model, or a model with a value head.
        ref_model: reference model of the KL penalty; None is the model as it is now.
        tokenizer: by default loaded by the model's name; `processing_class` is its other name.
        dataset: prompts, a `Dataset` or a list of dicts, in a column `prompt` of texts or
            conversations or in `input_ids`; `train_dataset` is its other name.
        num_shared_layers: this many first layers are frozen and shared with the reference.
        training_data_collator: pads for `prepare_model_inputs`; `step` pads for itself.
        reward_funcs: one reward function or several, for `train`; `reward_model` is TRL 1.12's
            name. Each weighs 1, penalties -1, unless `reward_weights` says otherwise.
        metrics: functions like `reward_funcs` that are called and logged, and never optimized.

    Differs from TRL 0.11.4 on purpose: position ids are explicit, so a row's figures do not depend
    on its neighbors' padding; dropout is 0; means over tokens weigh tokens, not micro-batches; an
    update whose ratio exceeds `ratio_threshold` is skipped, where TRL still moved by momentum.
    Three more only in `train`, so that a hand-written loop gives TRL's figures: `trl_0_11_quirks`.
    """

    def __init__(
        self,
        config: PPOConfig | None = None,
        model: str | nn.Module | None = None,
        ref_model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dataset: Dataset | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        data_collator: Callable | None = None,
        num_shared_layers: int | None = None,
        lr_scheduler: Any = None,
        training_data_collator: Callable | None = None,
        *,
        args: PPOConfig | None = None,
        reward_funcs: Callable | list[Callable] | None = None,
        reward_weights: list[float] | None = None,
        train_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list | None = None,
        peft_config: Any = None,
        metrics: Callable | list[Callable] | None = None,
        reward_model: nn.Module | str | None = None,
        optimizers: tuple = (None, None),
        **others: Any,
    ):
        config = setup.one_of("config", config, "args", args) or PPOConfig()
        tokenizer = setup.one_of("tokenizer", tokenizer, "processing_class", processing_class)
        self.dataset = setup.one_of("dataset", dataset, "train_dataset", train_dataset)
        setup.check_launch(config, self.dataset, others)
        reward_funcs = setup.one_of("reward_funcs", reward_funcs, "reward_model", reward_model)
        config = own_copy(config)
        set_seed(config.seed)
        self.value_head_model, self.tokenizer = setup.model_and_tokenizer(model, tokenizer)
        self.rewards = rewards_of(config, reward_funcs, reward_weights, metrics)
        actor_critic, self.ref_model = setup.build_models(
            config, self.value_head_model, ref_model, num_shared_layers, peft_config
        )
        self.policy_model = actor_critic.policy
        self.is_encoder_decoder = bool(self.policy_model.config.is_encoder_decoder)
        prompts = list(range(config.batch_size)) if self.dataset is None else self.dataset
        with setup.as_transformers_expects(config, self.policy_model, self.dataset):
            super().__init__(
                model=actor_critic,
                args=config,
                data_collator=data_collator or collator,
                train_dataset=prompts,
                processing_class=self.tokenizer,
                callbacks=callbacks,
                optimizers=setup.pair_of(actor_critic, optimizer, lr_scheduler, optimizers),
            )
        show_progress(self)
        self.config = config
        self.training_data_collator = training_data_collator
        self._distribute()
        self._begin()
        self._check_classic(ref_model, num_shared_layers)

    def _distribute(self) -> None:
        """Lay model, optimizer and prompts out over the processes."""
        config, accelerator = self.config, self.accelerator
        self.current_device = accelerator.device
        self._bf16 = config.bf16 or accelerator.mixed_precision == "bf16"
        setup.prepare_accelerator(accelerator, self.policy_model)
        self.vllm_generation = setup.start_vllm(self)
        self.create_optimizer_and_scheduler(config.num_total_batches)
        parts = [self.model, self.optimizer]
        if self.dataset is not None:
            parts.append(self.prepare_dataloader(self.dataset, self.data_collator))
        torch.manual_seed(config.seed)  # all processes shuffle alike ...
        self.model, self.optimizer, *loaders = accelerator.prepare(*parts)
        torch.manual_seed(config.seed + 100003 * accelerator.process_index)  # ... and sample apart
        self.lr_scheduler = AcceleratedScheduler(
            self.lr_scheduler, self.optimizer, step_with_optimizer=False
        )
        self.dataloader = classic.loader_of(loaders, self.dataset, config.global_batch_size)
        if self.ref_model is not None:
            self.ref_model.to(self.current_device)
        self._sharded = is_sharded(self.model)
        if self._sharded:
            set_fsdp_root(self.model)
            if self.ref_model is not None:
                fully_shard(self.ref_model)  # which is used within `gathered` alone

    def _begin(self) -> None:
        """Set what changes in the course of a run to where a run begins."""
        config = self.config
        self.state.episode = 0
        self.kl_ctl = statistics.kl_controller(config)
        self.scaling = statistics.ScoreScaling(config, self._all_sum)
        self.all_stats: list[dict] = []
        self.alarms = setup.alarms(config)
        policy = self._policy()
        self.first_batch = checks.FirstBatchCheck(
            self._actor_critic(), self.ref_model, self._bf16, self._all_sum
        )
        self.steps_not_finite = 0  # optimizer steps in a row
        self._drawn: dict = {}  # what `generate` knows of its last responses ...
        self._drawn_from = -1  # ... and of which weights
        self.stop_token_ids = setup.stop_token_ids(config, self.tokenizer, policy)
        self._pass_cost = setup.pass_cost(policy, self.current_device.type)
        self._small_pass = setup.small_pass(policy, self.current_device.type, self._bf16)
        self.captured_passes = setup.captured_passes(self, self._small_pass)
        with self._gathered(), self._reference() as reference:
            self._actor_critic().pack = setup.both_can_pack(policy, reference)

    def get_train_dataloader(self) -> DataLoader | None:
        """Return the loader of `dataset`, or None."""
        return self.dataloader

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None) -> None:
        """Train for `max_steps` steps: rollout, score, step, log; with checkpoints on the way.

        It goes on from the checkpoint given, from the newest whole one (True), or as the
        configuration says. Raises RunStopped where SIGTERM or Ctrl-C came, and a checkpoint was
        written.
        """
        if resume_from_checkpoint is not None:
            self.args.resume_from_checkpoint = resume_from_checkpoint
        checks.check_before_training(self)
        self._begin_in_folder(by_hand=False)
        if not self.args.saves:
            self._train()
            return
        about = {"algorithm": "PPO", "about": checks.description(self)} | self.rewards.about()
        train_or_stop(self, train=self._train, about=about)

    def _train(self, resume_from_checkpoint: str | None = None) -> None:
        self.state.max_steps = self.args.num_total_batches
        self.state.compute_steps(self.args, self.state.max_steps)
        self.state.num_train_epochs = self.args.total_episodes / len(self.prompts)
        if self.args.resume_from_checkpoint:
            self._resume(resume_from_checkpoint)
        self.state.epoch = self.state.episode / len(self.prompts)
        if self.state.global_step >= self.state.max_steps:
            logger.warning(checks.NOTHING_LEFT, self.state.max_steps)
        setup.measure_rewards(self)
        tell(self, "on_train_begin")
        tell(self, "on_epoch_begin")
        while self.state.global_step < self.state.max_steps:
            if self.control.should_training_stop:  # a callback may ask to end
                break
            epoch, randomness = int(self.state.epoch), random_states()
            tell(self, "on_step_begin")
            batch = self._next_batch()
            try:
                collected = self._collect(batch)
            except RecipeError as error:  # of a reward function; no weight has changed yet
                together = error.everywhere or self.accelerator.num_processes == 1
                if self.args.saves and together:
                    set_random_states(randomness)
                    self._save_checkpoint()
                raise
            stats = self._train_on(*collected)
            self.state.global_step += 1
            self.state.episode += self.config.global_batch_size
            self.state.epoch = self.state.episode / len(self.prompts)
            end_step(self, self._record(stats, batch), new_epoch=int(self.state.epoch) > epoch)
            if self.steps_not_finite >= NOT_FINITE_ENDS:
                self._stop_not_finite()
        tell(self, "on_train_end")

    def _collect(self, batch: dict[str, list]) -> tuple[Rollout, Tensor, dict[str, Any]]:
        """Sample responses and score them: rollout, scores (B,), statistics; texts join `batch`."""
        started = self._clock()
        rollout = self._rollout(batch["input_ids"])
        generated = self._clock()
        if "query" not in batch:
            batch["query"] = self.tokenizer.batch_decode(
                batch["input_ids"], skip_special_tokens=True
            )
        rows = rollout.response_rows()
        rows = self._with_start_token(rows) if self.is_encoder_decoder else rows
        responses = [row.tolist() for row in torch.cat(rows).cpu().split([*map(len, rows)])]
        texts = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
        scores, by_function = self._score(responses, texts, batch)
        batch["response"] = texts
        batch["score"] = self.rewards.raw_totals(by_function)
        stats = {
            **statistics.score_stats(
                batch["score"],
                by_function,
                self.current_device,
                self._all_sum,
                self.rewards.metric_names,
            ),
            **self.rewards.normalization_stats(),
            **statistics.diversity(responses, batch["response"]),
            "time/generation": generated - started,
            "time/scoring": self._clock() - generated,
        }
        by_token = self.rewards.by_token(by_function)
        rollout = rollout.with_token_scores(by_token, skip=self.is_encoder_decoder)
        return rollout, torch.tensor(scores), stats

    def _train_on(self, rollout: Rollout, scores: Tensor, stats: dict[str, Any]) -> dict[str, Any]:
        stats |= self._step(rollout, scores, quirks=bool(self.config.trl_0_11_quirks))
        phases = ("time/generation", "time/scoring", "time/ppo/total")
        stats["time/generation_share"] = stats["time/generation"] / sum(map(stats.get, phases))
        return stats

    # Prompts, rollout and score

    @cached_property
    def prompts(self) -> Dataset:
        """Tokenize the prompts of `train`, whatever form they were given in."""
        return as_prompts(self.dataset, self.tokenizer, self._policy())

    def _next_batch(self) -> dict[str, list]:
        """This process's part of the prompts that come next."""
        size = self.config.batch_size
        first = self.state.episode + self.accelerator.process_index * size
        rows = stream_rows(first, size, len(self.prompts), self.config.seed)
        columns = self.prompts[[*rows]]
        rows = zip(*columns.values(), strict=True)
        return collated(self.data_collator, [dict(zip(columns, r, strict=True)) for r in rows])

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        """Make the policy ready to sample, for the time of the block, unless vLLM does."""
        # once for all parts: processes may have different numbers of them
        if self.vllm_generation is None:
            with self._gathered(), self._autocast():
                yield
        else:
            yield

    def _rollout(self, query_ids: list) -> Rollout:
        """Sample a response to each query, with what was known when each token was drawn."""
        lengths = [len(ids) for ids in query_ids]
        together = torch.cat([torch.as_tensor(ids) for ids in query_ids])  # to the device at once
        queries = together.to(self.current_device).split(lengths)
        settings, sampler = self._generation_defaults(), self._length_sampler()
        limit = settings["max_new_tokens"]
        settings["max_new_tokens"] = [sampler() if sampler else limit for _ in queries]
        with self._sampling():
            rollout = sample(self._policy(), queries, self.vllm_generation, **settings)
        if self.config.trl_0_11_quirks and self.is_encoder_decoder:
            return classic.without_first_token(rollout)
        return rollout

    def _length_sampler(self) -> LengthSampler | None:
        shortest = self.args.min_response_length
        return shortest and LengthSampler(shortest, self.args.response_length + 1)

    def _generation_defaults(self) -> dict[str, Any]:
        return {
            "pad_token_id": self.tokenizer.pad_token_id,
            "eos_token_id": self.stop_token_ids or None,
            "max_new_tokens": self.config.response_length,
            "temperature": self.config.temperature,
        }

    def _ended(self, rollout: Rollout) -> Tensor:
        """Whether each response holds an end token, (B,)."""
        stops = self.stop_token_ids or setup.eos_token_ids(self.tokenizer, self._policy())
        ends = torch.isin(rollout.responses, rollout.responses.new_tensor(stops))
        return (ends & rollout.response_mask.bool()).any(1)

    def _score(
        self, responses: list[list[int]], texts: list[str], batch: dict[str, list]
    ) -> tuple[list[float], dict[str, list]]:
        prompts, completions, columns = reward_inputs(batch, texts, self.tokenizer)
        samples = (prompts, completions, responses, columns)
        once = self.args.reward_once
        return score_part(self.rewards, once, *samples, trainer_state=self.state)

    # Step: evaluate, advantages, optimize

    def _step(self, rollout: Rollout, scores: Tensor, quirks: bool) -> dict[str, Any]:
        """Train on one batch with one score per response, (B,).

        `quirks` computes what TRL 0.11.4 computed where it was wrong; see the configuration.
        """
        times = [self._clock()]
        kl_coef, mask = self.kl_ctl.value, rollout.loss_mask
        scores, factors = self.scaling(scores.to(self.current_device), self._ended(rollout))

        times.append(self._clock())
        hosted = rollout.with_masks_on_host()
        with self._gathered():
            evaluation = self._evaluate(hosted)

        times.append(self._clock())
        rewards, non_score_rewards, kl = self._token_rewards(rollout, scores, factors, evaluation)
        evaluation = evaluation._replace(kl=kl)

        times.append(self._clock())
        estimates = self._advantages(rollout, rewards, evaluation.values, quirks)
        targets = Targets(evaluation.logprobs, *estimates)

        times.append(self._clock())
        updates, skipped = self._optimize(hosted, targets, quirks)

        times.append(self._clock())
        lengths = {
            "queries": rollout.query_mask.sum(1),
            "responses": rollout.response_mask.sum(1) + self.is_encoder_decoder,  # its start token
        }
        stats = {
            **statistics.rollout_stats(
                scores, evaluation, non_score_rewards, mask, kl_coef, self._all_sum
            ),
            **statistics.sampling_stats(rollout.sampling_logprobs, evaluation.logprobs, mask),
            **statistics.length_stats(lengths, self._all_sum),
            **statistics.average_updates(updates),
            "ppo/skipped_minibatches": skipped,
            "ppo/learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        stats = statistics.to_plain(stats)
        times.append(self._clock())

        self.kl_ctl.update(stats["objective/kl"], self.config.global_batch_size)
        self.lr_scheduler.step()
        if self.config.optimize_device_cache and torch.cuda.is_available():
            torch.cuda.empty_cache()
        phases = zip(PHASES, pairwise(times[1:]), strict=True)
        spent = {f"time/ppo/{name}": end - start for name, (start, end) in phases}
        return stats | spent | {"time/ppo/total": self._clock() - times[0]}

    @torch.no_grad()
    def _evaluate(self, rollout: Rollout) -> Evaluation:
        """Ask policy, value head and reference about every response token."""
        kind, actor_critic = self.config.kl_penalty, self._actor_critic()
        sampled = rollout.logprobs is not None and kind != "full"
        known = sampled and self.first_batch.trust_sampling is True
        shape, temperature = rollout.responses.shape, self.args.temperature
        logprobs, values, ref_logprobs, kl = torch.zeros(4, *shape, device=self.current_device)
        if known:
            logprobs, values = rollout.logprobs, actor_critic.values_of(rollout.hidden)
        size = self.config.local_rollout_forward_batch_size
        if size is None:
            size = max(64, self._small_pass // (rollout.queries.shape[1] + shape[1]))
        for indices in self._passes(rollout, torch.arange(shape[0]), size):
            rows = rollout.rows(indices)
            place = (indices.to(self.current_device), slice(rows.responses.shape[1]))
            labels = rows.labels()
            with self._autocast(), self._reference() as reference:
                ref_logits = actor_critic.logits_of(*rows[:4], model=reference)[0]
            of_labels = objective.logprobs_from_logits(ref_logits, labels, temperature)
            ref_logprobs[place] = rows.unpack(of_labels)
            if known:
                continue
            with self._autocast():
                new, _, row_values, logits = self.model(*rows[:4], temperature, kind == "full")
            logprobs[place], values[place] = rows.unpack(new), rows.unpack(row_values)
            if kind == "full":
                ref_logits = ref_logits.float() / temperature
                kl[place] = rows.unpack(objective.full_kl(logits, ref_logits))
        evaluation = Evaluation(logprobs, values, ref_logprobs, kl)
        if not self.first_batch.evaluated:
            self.first_batch.after_evaluation(rollout, evaluation)
        return evaluation

    def _passes(self, rollout: Rollout, indices: Tensor, size: int) -> list[Tensor]:
        # processes that hold parts of a model need as many passes each: they split alike
        alike = self._actor_critic().pack or self._sharded
        return rollout.passes(indices, size, None if alike else self._pass_cost)

    def _optimize(self, rollout: Rollout, targets: Targets, quirks: bool) -> tuple[list[dict], int]:
        """Run the epochs; returns statistics of each optimizer step and how many were skipped."""
        batch, step = self.config.batch_size, self.config.backward_batch_size
        updates: list[dict] = []
        verdicts: list[Tensor] = []
        captured = None
        plain = self.first_batch.updated and not self._overrides("loss")
        if self.captured_passes and plain:
            names = ("mini_batch_size", "cliprange", "cliprange_value", "vf_coef", "temperature")
            settings = (getattr(self.config, name) for name in names)
            captured = self.captured_passes.load(rollout, targets, *settings)
        self.model.train()
        for _ in range(self.config.ppo_epochs):
            order = torch.from_numpy(np.random.permutation(batch))  # noqa: NPY002  as TRL 0.11
            for indices in order.split(step):
                there = indices.to(self.current_device, non_blocking=True)
                means, ratios = self._backward(indices, there, rollout, targets, captured)
                verdicts.append(self._apply_gradients(means, quirks))
                stats = statistics.update_stats(
                    means,
                    Targets(*(target[there] for target in targets)),
                    rollout.loss_mask[there],
                    self.config.vf_coef,
                    self._all_sum,
                )
                updates.append(stats | {"policy/ratio": ratios})
            moved = updates[-1]["policy/policykl"]  # over all processes: they leave together
            if self.config.early_stopping and moved > 1.5 * self.config.target_kl:
                break
        threshold, before = self.config.ratio_threshold, self.steps_not_finite
        skipped, self.steps_not_finite = statistics.count_skipped(verdicts, threshold, before)
        return updates, skipped

    def _backward(
        self, indices: Tensor, there: Tensor, rollout: Rollout, targets: Targets, captured
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Sum gradients over the given sequences, in passes that do not change the sum.

        `indices` number them on the host, `there` on the device.
        Returns means over their tokens, and the probability ratio of each token.
        """
        token_count = self._all_sum(rollout.loss_mask[there].sum().float())
        if captured is None:
            results = self._eager_passes(indices, there.device, rollout, targets, token_count)
        else:
            parts = there.split(self.config.mini_batch_size)
            results = [(*captured(rows, token_count), {}) for rows in parts]
        sums, ratios, of_loss = zip(*results, strict=True)
        own = {name: self._all_sum(sum(stats[name] for stats in of_loss)) for name in of_loss[0]}
        means = statistics.update_means(self._all_sum(torch.stack(sums).sum(0)), token_count)
        return means | own, torch.cat(ratios, 1)

    def _eager_passes(
        self, indices: Tensor, device, rollout: Rollout, targets: Targets, token_count: Tensor
    ) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Pass over rows of like length together; each result is that of `_pass`."""
        results, passes = [], self._passes(rollout, indices, self.config.mini_batch_size)
        for number, rows_of_pass in enumerate(passes):
            rows, places = rollout.rows(rows_of_pass), rows_of_pass.to(device, non_blocking=True)
            width = rows.loss_mask.shape[1]
            old = Targets(*(target[places, :width] for target in targets))
            last = number == len(passes) - 1
            averages = last or self._sharded  # parts of a gradient take less memory
            with nullcontext() if averages else self.accelerator.no_sync(self.model):
                results.append(self._pass(rows, old, token_count))
        return results

    def _pass(
        self, rows: Rollout, old: Targets, token_count: Tensor, padded: bool = False
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Run forward and backward: sums over tokens, their ratios, statistics of the user's loss.

        `padded` computes masked columns too, so that nothing asks the device how many there are.
        """
        config, mask, own = self.config, rows.loss_mask, {}
        with self._autocast():
            logprobs, entropy, values, logits = self.model(
                *rows[:4], config.temperature, self._overrides("loss"), padded
            )
        if logits is not None:
            loss, own = self._own_loss(rows, old, logits, values, token_count)
        unpack = (lambda tokens: tokens.view(mask.shape)) if padded else rows.unpack
        logprobs, values, entropy = map(unpack, (logprobs, values, entropy))
        logprobs = torch.where(mask.bool(), logprobs, old.logprobs)
        losses = objective.ppo_losses(
            logprobs, values, *old, config.cliprange, config.cliprange_value
        )
        log_ratio = (logprobs - old.logprobs).detach()
        if not self.first_batch.updated:
            self.first_batch.check("Before the first update, new and old", log_ratio)
        if logits is None:
            loss = losses.policy + config.vf_coef * losses.value
            loss = (loss * mask).sum() / token_count
        self.accelerator.backward(loss * self.accelerator.num_processes)
        sums = statistics.token_sums(losses, entropy, log_ratio, values, old.returns, mask)
        return sums, statistics.with_mask(losses.ratio, mask), own

    def _apply_gradients(self, means: dict[str, Tensor], quirks: bool) -> Tensor:
        """Clip and step, unless it would do harm; returns what `judge_step` found."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        clips = self.config.max_grad_norm and not (quirks and self.first_batch.updated)
        self.first_batch.updated = True
        if clips:
            norm = self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm)
        else:
            norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        norm = full_tensor(norm) if self._sharded else norm
        verdict = statistics.judge_step(means, norm, self.config.ratio_threshold)
        optimizer = self.optimizer.optimizer
        fused = all(group.get("fused") for group in optimizer.param_groups)
        if fused := fused and not self._sharded:
            optimizer.found_inf = 1 - verdict[1]  # where it is 1, the kernel leaves the step out
        if fused or verdict[1]:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return verdict

    # Record

    def _record(
        self, stats: dict[str, Any], batch: dict[str, list], columns: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Keep the row, write it to disk, samples too; return what the callbacks get of it."""
        row = {"step": self.state.global_step, "episode": self.state.episode}
        row |= {key: value for key, value in stats.items() if not isinstance(value, np.ndarray)}
        self.all_stats.append(row)
        alarms = self.alarms.look(self.all_stats)
        for sentence in alarms:
            logger.warning(sentence)
        if self.args.should_save:
            columns = dict.fromkeys(("query", "response", "score", *columns))
            samples = {name: batch[name][: self.args.log_samples] for name in columns}
            write_row(self.args.output_dir, row, alarms, samples)
        return {key: value for key, value in row.items() if key != "step"}

    # What several phases use

    def _actor_critic(self) -> ActorCritic:
        return self.accelerator.unwrap_model(self.model)

    def _policy(self) -> nn.Module:
        return self._actor_critic().policy

    def _gathered(self) -> AbstractContextManager[None]:
        """All of the policy's weights in each process, where they lie in parts."""
        if not self._sharded:
            return nullcontext()
        return gathered(self.model, self.accelerator.state.fsdp_plugin.reshard_after_forward)

    def _reference(self) -> AbstractContextManager[nn.Module]:
        """The reference model: one of its own, or the policy as it was before training."""
        if self.ref_model is None:
            return self._actor_critic().start.restored()
        return gathered(self.ref_model) if self._sharded else nullcontext(self.ref_model)

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast(self.current_device.type, torch.bfloat16, enabled=self._bf16)

    def _clock(self) -> float:
        """Seconds, once what runs on a GPU is done."""
        if self.current_device.type == "cuda":
            torch.cuda.synchronize(self.current_device)
        return time.perf_counter()

    def _all_sum(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")
