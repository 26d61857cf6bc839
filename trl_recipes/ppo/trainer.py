"""PPOTrainer: reward functions, the classic loop, one trunk for two heads."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from trl_recipes.callbacks import StopSignals
from trl_recipes.data.prompts import LengthSampler, collator, stream_rows
from trl_recipes.diagnostics import Alarms, ppo_alarms
from trl_recipes.errors import RecipeError
from trl_recipes.lost_peer import notice_lost_machines
from trl_recipes.models.adapters import save_policy, select_trainable
from trl_recipes.models.forward import can_pack, decoder_start_token_id, response_logits
from trl_recipes.models.loading import check_lengths
from trl_recipes.models.memory import kept_by, set_malloc_thresholds
from trl_recipes.models.packing import length_groups, unpack
from trl_recipes.models.sampling import Samples, can_sample, generate_responses, sample_responses
from trl_recipes.models.sharding import (
    full_model,
    full_tensor,
    full_tensors,
    gathered,
    is_sharded,
    set_fsdp_root,
    shard,
    wrap_by_layer,
)
from trl_recipes.ppo import checks, keeping, objective, setup, snapshot
from trl_recipes.ppo.actor_critic import ActorCritic, switch_off_dropout
from trl_recipes.ppo.config import PPOConfig
from trl_recipes.ppo.controllers import AdaptiveKLController, FixedKLController
from trl_recipes.ppo.describe import describe_check, describe_run
from trl_recipes.ppo.reference import (
    frozen_reference_adapter,
    reference_is_start,
    reference_of,
)
from trl_recipes.ppo.rollout import Rollout, Targets, collate
from trl_recipes.ppo.running_moments import RunningMoments
from trl_recipes.ppo.sampling import generation_settings
from trl_recipes.ppo.statistics import (
    UpdateStats,
    average_updates,
    diversity,
    length_stats,
    normalisation_stats,
    rollout_stats,
    score_stats,
    to_plain,
    update_stats,
)
from trl_recipes.ppo.value_head import create_reference_model, save_value_head
from trl_recipes.progress import StepProgress
from trl_recipes.random_states import random_states, set_random_states
from trl_recipes.rewards.base import check_rewards, score_part
from trl_recipes.rewards.loading import rewards_of
from trl_recipes.rewards.text import made_up_batch, reward_inputs
from trl_recipes.run_folder import check_disk
from trl_recipes.stats import append_alarms, append_samples, append_stats

logger = get_logger(__name__)

NOT_FINITE_ENDS = 3  # optimizer steps in a row without a finite gradient
CHECK_STEPS = 4  # the first one checks and warms up; the others tell how long a step takes


class PPOTrainer(Trainer):
    """Proximal policy optimisation of a language model with a value head.

    Two ways in, one implementation. The classic one of TRL 0.11:

        trainer = PPOTrainer(config, model, ref_model, tokenizer, dataset, data_collator=collator)
        for batch in trainer.dataloader:
            responses = trainer.generate(batch["input_ids"], return_prompt=False, **kwargs)
            scores = [torch.tensor(score_of(text)) for text in ...]
            stats = trainer.step(batch["input_ids"], responses, scores)

    and that of TRL's other trainers, `PPOTrainer(args=..., model=..., reward_funcs=...,
    train_dataset=..., processing_class=...).train()`, which runs the same `step`.

    transformers' constructor does the set-up: accelerate, callbacks, optimizer and scheduler; what
    it is given is an [`ActorCritic`], and `train` is a loop of rollout, score, step, log.

    Args:
        config: settings; `args` is its other name.
        model: hub name, folder, transformers or PEFT model, or a model with a value head.
        ref_model: reference model of the KL penalty; None copies the model as it is now, or
            switches the adapter off where there is one.
        tokenizer: the model's tokenizer; `processing_class` is its other name. None loads it by the
            model's name.
        dataset: prompts, with token ids in `input_ids`; `train_dataset` is its other name. None:
            the caller has a loader of his own.
        optimizer: None makes AdamW with `learning_rate`.
        data_collator: None keeps each column a list.
        num_shared_layers: this many first layers are frozen and shared with the reference.
        lr_scheduler: None makes the one that `lr_scheduler_type` names.
        args: see `config`.
        reward_funcs: one reward function or several, for `train`.
        reward_weights: weight of each; None weighs all 1, and penalties -1.
        train_dataset: see `dataset`.
        processing_class: see `tokenizer`.
        callbacks: further transformers callbacks.
        peft_config: trains an adapter instead of the full model.
        metrics: functions like `reward_funcs` that are called and logged, and never optimised.

    Raises:
        RecipeError: what was passed cannot be trained; says why and what to do.

    Differs from TRL 0.11.4 on purpose: position ids are explicit, so a row's figures do not depend
    on its neighbours' padding; dropout is 0; means over tokens weigh tokens, not micro-batches; an
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
        *,
        args: PPOConfig | None = None,
        reward_funcs: Callable | list[Callable] | None = None,
        reward_weights: list[float] | None = None,
        train_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list | None = None,
        peft_config: Any = None,
        metrics: Callable | list[Callable] | None = None,
    ):
        config = setup.one_of("config", config, "args", args) or PPOConfig()
        tokenizer = setup.one_of("tokenizer", tokenizer, "processing_class", processing_class)
        dataset = setup.one_of("dataset", dataset, "train_dataset", train_dataset)
        if not isinstance(config, PPOConfig):
            raise RecipeError(
                f"`config` must be a trl_recipes.PPOConfig, got {type(config).__module__}."
                f"{type(config).__name__}. Change the import."
            )
        setup.check_launch(config)
        set_seed(config.seed)
        self.value_head_model = setup.with_value_head(model)
        policy = self.value_head_model.pretrained_model
        self.tokenizer = tokenizer or setup.tokenizer_of(model)
        self.is_encoder_decoder = bool(policy.config.is_encoder_decoder)
        checks.prepare_tokenizer(self.tokenizer, policy)
        self.rewards = rewards_of(config, reward_funcs, reward_weights, metrics)

        peft_config = select_trainable(policy, config.trainable, peft_config)
        ref_adapter = frozen_reference_adapter(policy) if ref_model is None else None
        if ref_adapter is not None:
            config.ref_adapter_name = ref_adapter
        ref_model = getattr(ref_model, "pretrained_model", ref_model)
        if ref_model is not None:
            checks.check_reference(policy, ref_model)
        elif num_shared_layers is not None:
            ref_model = create_reference_model(policy, num_shared_layers)

        if peft_config is not None:
            policy = get_peft_model(policy, peft_config)
        self.is_peft_model = isinstance(policy, PeftModel)
        if ref_model is None and not self.is_peft_model:
            ref_model = create_reference_model(policy)
        self.policy_model, self.ref_model = policy, ref_model
        self.ref_adapter_name = config.ref_adapter_name
        stops = self.tokenizer.eos_token_id if config.stop_token else None
        policy.generation_config.eos_token_id = stops
        actor_critic = self._prepared(config)
        length = None if dataset is None else len(dataset)
        with setup.as_transformers_expects(config, policy, length):
            super().__init__(
                model=actor_critic,
                args=config,
                data_collator=data_collator or collator,
                train_dataset=list(range(config.batch_size)) if dataset is None else dataset,
                processing_class=self.tokenizer,
                callbacks=callbacks,
                optimizers=(optimizer, lr_scheduler),
            )
        self.train_dataset_len = len(self.train_dataset)
        self.state.episode = 0
        setup.keep_float32_shards(self.accelerator)
        wrap_by_layer(policy, self.accelerator)
        self.create_optimizer_and_scheduler(config.num_total_batches)
        loader = DataLoader(
            self.train_dataset,
            batch_size=config.batch_size,
            shuffle=True,
            collate_fn=self.data_collator,
            drop_last=True,
        )
        torch.manual_seed(config.seed)  # all processes shuffle alike ...
        self.model, self.optimizer, self.dataloader = self.accelerator.prepare(
            self.model, self.optimizer, loader
        )
        torch.manual_seed(config.seed + 100003 * self.accelerator.process_index)  # and sample apart
        if self.ref_model is not None:
            self.ref_model.to(self.accelerator.device)
        self.config = config
        if dataset is None:
            self.dataset = self.dataloader = None
        else:
            self.dataset = self.train_dataset
        if self.accelerator.mixed_precision == "fp16":
            raise RecipeError(
                "float16 mixed precision is refused: the probability ratio needs more than it "
                "resolves. Launch with `--mixed_precision bf16`, or without."
            )
        notice_lost_machines()
        self.current_device = self.accelerator.device
        if is_sharded(self.model):
            set_fsdp_root(self.model)
            if self.ref_model is not None:
                shard(self.ref_model)
        if self.current_device.type == "cpu":
            set_malloc_thresholds()
        self.kl_ctl = (
            AdaptiveKLController(config.init_kl_coef, config.target, config.horizon)
            if config.adap_kl_ctrl
            else FixedKLController(config.init_kl_coef)
        )
        self.running = RunningMoments()
        self.all_stats: list[dict] = []
        held_to = ("batch_size", "response_length", "min_response_length", "stop_token")
        settings = {name: getattr(config, name) for name in (*held_to, "ratio_threshold")}
        self.alarms = Alarms(partial(ppo_alarms, **settings))
        self._first_batch = True
        self._trust_sampling: bool | None = None  # found out on the first batch
        self._pass_cost = setup.pass_cost(policy, self.current_device.type)
        with self._gathered():
            pack = can_pack(self._policy())
        if self.ref_model is not None:
            with self._reference() as reference:
                pack = can_pack(reference) and pack
        self._actor_critic().pack = pack
        self._updated = False
        self._not_finite = 0  # optimizer steps in a row
        self._step_began: dict[str, Any] | None = None  # random states, until weights change
        self._training = False
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        if not config.disable_tqdm:
            self.add_callback(StepProgress)

    def _prepared(self, config: PPOConfig) -> ActorCritic:
        """Policy and value head in one model, fit for training, and the reference beside it."""
        policy, head = self.policy_model, self.value_head_model.v_head
        self.value_head_model.pretrained_model = policy  # with its adapter, if it just got one
        self.value_head_model.is_peft_model = self.is_peft_model
        model = ActorCritic(policy, head)
        switch_off_dropout(model)
        setup.fuse_activations(model)
        setup.spare_embedding_gradient(policy)
        for parameter in model.parameters():
            if parameter.requires_grad:  # master weights
                parameter.data = parameter.data.float()
        head.float()
        if config.activation_checkpointing:
            setup.checkpoint_activations(policy, config.gradient_checkpointing_kwargs)
        if self.ref_model is not None:
            switch_off_dropout(self.ref_model)
            setup.fuse_activations(self.ref_model)
            self.ref_model.requires_grad_(False).eval()
        return model

    def get_train_dataloader(self) -> DataLoader | None:
        """The loader of `dataset`, or None."""
        return self.dataloader

    # Rollout

    def generate(
        self,
        query_tensor: Tensor | list[Tensor],
        length_sampler: Callable[[], int] | None = None,
        batch_size: int | None = None,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        **generation_kwargs,
    ) -> Any:
        """Sample responses, all queries in one batch unless told otherwise.

        Args:
            query_tensor: token ids of one query, shape (query length,), or a list of them.
            length_sampler: draws the most new tokens of each response, one for each query.
            batch_size: queries generated together; None takes all.
            return_prompt: whether a causal model's query stands before its response.
            generate_ref_response: sample from the reference model too.
            **generation_kwargs: fields of `transformers.GenerationConfig`; none is needed. The
                neutral ones of the classic walkthrough (`top_k=0.0, top_p=1.0, min_length=-1`) do
                nothing; one that bends the distribution is warned about once.

        Returns:
            For one query a tensor (1, length), for a list a list of 1-D tensors of different
            lengths; a pair of these with `generate_ref_response`. An encoder-decoder's responses
            begin with its start token, as `step` expects them.

        Raises:
            RecipeError: a query is not a 1-D tensor.
        """
        single = isinstance(query_tensor, Tensor)
        queries = [query_tensor] if single else list(query_tensor)
        for row, query in enumerate(queries):
            checks._check_tensor("query_tensor", row, query)
        settings = generation_settings(generation_kwargs, self.config, self.tokenizer)
        limit = settings.pop("max_new_tokens")
        if length_sampler is not None:
            limit = [int(length_sampler()) for _ in queries]

        def sample(model: nn.Module) -> Any:
            with self._autocast():
                responses = generate_responses(
                    model, queries, max_new_tokens=limit, batch_size=batch_size, **settings
                )
            responses = [
                self._with_prompt(query, response, return_prompt)
                for query, response in zip(queries, responses, strict=True)
            ]
            return responses[0].unsqueeze(0) if single else responses

        with self._gathered():
            response = sample(self._policy())
        if not generate_ref_response:
            return response
        with self._reference() as ref_model:
            return response, sample(ref_model)

    def _with_prompt(self, query: Tensor | None, response: Tensor, return_prompt: bool) -> Tensor:
        if self.is_encoder_decoder:
            start = decoder_start_token_id(self._policy().config)
            return torch.cat([response.new_tensor([start]), response])
        return torch.cat([query.to(response.device), response]) if return_prompt else response

    # Step: evaluation and optimisation

    def step(
        self,
        queries: list[Tensor],
        responses: list[Tensor],
        scores: list[Tensor],
        response_masks: list[Tensor] | None = None,
    ) -> dict[str, Any]:
        """Train on one batch of sampled responses.

        Args:
            queries: token ids, each of shape (query length,).
            responses: token ids, each of shape (response length,); an encoder-decoder's begin with
                its start token, as `generate` returns them.
            scores: one number each.
            response_masks: 1 at response tokens to train on, 0 at others, each as long as its
                response; None trains on all of them.

        Returns:
            Statistics under the keys of TRL 0.11.4; `trl_recipes.stats.STAT_KEYS` explains them.

        Raises:
            RecipeError: names the argument and the row that is wrong.
        """
        checks.check_step_inputs(queries, responses, scores, response_masks, self.config.batch_size)
        checks.check_token_ids(queries, responses, self._policy())
        return self._step(queries, responses, scores, response_masks)

    def _step(self, queries, responses, scores, response_masks=None, samples=None) -> dict:
        """The step itself; `samples` spares a forward pass where the batch was just sampled."""
        started = self._clock()
        scores = self._shape_scores(scores)
        kl_coef = self.kl_ctl.value

        clock = self._clock()
        rollout = self._collate(queries, responses, response_masks)
        with self._gathered():
            logprobs, values, ref_logprobs, kl = self._evaluate(rollout, samples)
        timing = {"time/ppo/forward_pass": self._clock() - clock}

        clock = self._clock()
        mask = rollout.loss_mask
        rewards, non_score_rewards = objective.token_rewards(scores, kl, kl_coef, mask)
        timing["time/ppo/compute_rewards"] = self._clock() - clock

        clock = self._clock()
        values = values * mask
        advantages, returns = self._advantages(rollout, rewards, values)
        advantages = objective.masked_whiten(advantages, mask, True, self._all_sum)
        timing["time/ppo/compute_advantages"] = self._clock() - clock

        clock = self._clock()
        targets = Targets(logprobs, values, advantages, returns)
        updates, skipped = self._optimize(rollout, targets)
        timing["time/ppo/optimize_step"] = self._clock() - clock

        clock = self._clock()
        stats = rollout_stats(
            scores, logprobs, ref_logprobs, kl, non_score_rewards, mask, kl_coef, self._all_sum
        )
        rows = {"queries": queries, "responses": responses}
        stats |= length_stats(rows, self.current_device, self._all_sum)
        stats |= average_updates(updates)
        stats["ppo/skipped_minibatches"] = skipped
        stats["ppo/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        stats = to_plain(stats)
        timing["time/ppo/calc_stats"] = self._clock() - clock

        episodes = self.config.batch_size * self.accelerator.num_processes
        self.kl_ctl.update(stats["objective/kl"], episodes)
        self.lr_scheduler.step()
        if self.config.optimize_device_cache and torch.cuda.is_available():
            torch.cuda.empty_cache()
        timing["time/ppo/total"] = self._clock() - started
        return stats | timing

    def _shape_scores(self, scores: list[Tensor]) -> Tensor:
        """Scale, normalise and clip scores as configured, (B,)."""
        shaped = torch.stack([score.detach().float().reshape(()) for score in scores])
        shaped = shaped.to(self.current_device)
        if self.config.use_score_scaling:
            self.running.update(shaped, self._all_sum)
            scale = self.running.std + torch.finfo(shaped.dtype).eps
            shift = self.running.mean if self.config.use_score_norm else 0.0
            shaped = (shaped - shift) / scale
        if self.config.score_clip is not None:
            shaped = shaped.clamp(-self.config.score_clip, self.config.score_clip)
        return shaped

    def _collate(self, queries, responses, response_masks) -> Rollout:
        """Pad the batch; an encoder-decoder's start token moves out of the responses."""
        masks = response_masks or [torch.ones_like(response) for response in responses]
        if self.is_encoder_decoder:
            start = decoder_start_token_id(self._policy().config)
            for row, response in enumerate(responses):
                if response[0] != start or len(response) < 2:
                    raise RecipeError(
                        f"`responses[{row}]` must begin with the decoder's start token ({start}) "
                        f"and "
                        "hold at least one more. Pass what `generate` returned."
                    )
            responses = [response[1:] for response in responses]
            masks = [mask[1:].clone() for mask in masks]
            if response_masks is None:
                for mask in masks:
                    mask[0] = int(len(mask) == 1 or not self._quirks())
        rollout = collate(queries, responses, masks, self.tokenizer.pad_token_id)
        return Rollout(*(field.to(self.current_device) for field in rollout))

    @torch.no_grad()
    def _evaluate(
        self, rollout: Rollout, samples: Samples | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Old log-probabilities, values, reference log-probabilities and KL, each (B, R)."""
        kind = self.config.kl_penalty
        known = samples is not None and self._trust_sampling is True and kind != "full"
        shape = rollout.responses.shape
        logprobs, values, ref_logprobs, kl = torch.zeros(4, *shape, device=self.current_device)
        if known:
            logprobs, values = samples.logprobs, self._actor_critic().values_of(samples.hidden)
        everything = torch.arange(shape[0], device=self.current_device)
        pack = self._actor_critic().pack
        size = self.config.local_rollout_forward_batch_size
        for indices in self._passes(rollout, everything, size):
            rows = rollout.rows(indices)
            mask = rows.response_mask.bool()
            labels, place = rows.responses[mask], (indices, slice(mask.shape[1]))
            with self._autocast(), self._reference() as reference:
                ref_logits, _ = response_logits(reference, *rows[:4], pack=pack)
                ref_logits = self._tempered(ref_logits)
            ref_logprobs[place] = unpack(objective.logprobs_from_logits(ref_logits, labels), mask)
            if known:
                continue
            with self._autocast():
                logits, row_values = self.model(*rows[:4])
            logits = self._tempered(logits)
            logprobs[place] = unpack(objective.logprobs_from_logits(logits, labels), mask)
            values[place] = unpack(row_values, mask)
            if kind == "full":
                kl[place] = unpack(objective.full_kl(logits, ref_logits), mask)
        if kind != "full":
            kl = objective.kl_penalty(logprobs, ref_logprobs, kind)
        if self._first_batch:
            self._first_batch = False
            self._check_first_batch(rollout, samples, logprobs, ref_logprobs)
        return logprobs, values, ref_logprobs, kl

    def _check_first_batch(self, rollout, samples, logprobs, ref_logprobs) -> None:
        """Hold a forward pass to the reference, and sampling to the forward pass."""
        policy, reduced = self._policy(), self._reduced_precision()
        if reference_is_start(policy, self.ref_model):
            log_ratio = (logprobs - ref_logprobs) * rollout.loss_mask
            checks.check_first_kl(log_ratio, policy, reduced)
        if samples is not None:
            off = (samples.logprobs - logprobs).abs().max()
            differs = self._all_sum((off > checks.ROUNDING).float())  # all processes agree
            self._trust_sampling = not differs
            if differs and not reduced:
                logger.warning(
                    "Log-probabilities from sampling and from a forward pass differ by %.2g nats: "
                    "each step takes a forward pass for them, which is safe and slower.",
                    off,
                )

    def _passes(self, rollout: Rollout, indices: Tensor, size: int) -> list[Tensor]:
        """Split rows into forward passes of at most `size`; of like length, where none share.

        Processes that hold parts of a model need as many passes each: they split alike.
        """
        if self._actor_critic().pack or is_sharded(self.model):
            return list(indices.split(size))
        groups = length_groups(rollout.lengths()[indices].tolist(), self._pass_cost)
        groups = [indices[torch.tensor(group, device=indices.device)] for group in groups]
        return [part for group in groups for part in group.split(size)]

    def _advantages(self, rollout: Rollout, rewards: Tensor, values: Tensor) -> tuple:
        """Advantages before whitening, and returns, each (B, R)."""
        gamma, lam = self.config.gamma, self.config.lam
        if self.config.whiten_rewards and not self._quirks():
            rewards = objective.masked_whiten(rewards, rollout.loss_mask, False, self._all_sum)
        if not (self.config.whiten_rewards and self._quirks()):
            return objective.generalized_advantages(rewards, values, gamma, lam)
        lengths = rollout.response_mask.sum(1)
        if not self.is_encoder_decoder:
            lengths = lengths + rollout.query_mask.sum(1)
        padding = self.accelerator.gather(lengths).max() - lengths
        rewards = objective.whiten_with_padding(rewards, rollout.loss_mask, padding, self._all_sum)
        width = values.shape[1]
        values = nn.functional.pad(values, (0, rewards.shape[1] - width))
        advantages, returns = objective.generalized_advantages(rewards, values, gamma, lam)
        return advantages[:, :width], returns[:, :width]

    def _optimize(self, rollout: Rollout, targets: Targets) -> tuple[list[dict], int]:
        """Run the epochs; returns statistics of each optimizer step and how many were skipped."""
        batch, step = self.config.batch_size, self.config.backward_batch_size
        updates: list[dict] = []
        skipped = 0
        self.model.train()
        for _ in range(self.config.ppo_epochs):
            order = torch.from_numpy(np.random.permutation(batch))  # noqa: NPY002  as TRL 0.11
            for indices in order.to(self.current_device).split(step):
                stats, stepped = self._update(indices, rollout, targets)
                updates.append(stats)
                skipped += not stepped
            moved = updates[-1]["policy/policykl"]  # over all processes: they leave together
            if self.config.early_stopping and moved > 1.5 * self.config.target_kl:
                break
        return updates, skipped

    def _update(self, indices: Tensor, rollout: Rollout, targets: Targets) -> tuple[dict, bool]:
        """One optimizer step over the given sequences, in passes that do not change it."""
        config = self.config
        step_mask = rollout.loss_mask[indices]
        token_count = self._all_sum(step_mask.sum().float())
        collected = UpdateStats(self._all_sum)
        passes = self._passes(rollout, indices, config.mini_batch_size)
        for number, rows_of_pass in enumerate(passes):
            rows = rollout.rows(rows_of_pass)
            tokens, mask = rows.response_mask.bool(), rows.loss_mask
            old = Targets(*(target[rows_of_pass, : mask.shape[1]] for target in targets))
            last = number == len(passes) - 1
            averages = last or is_sharded(self.model)  # parts of a gradient take less memory
            with nullcontext() if averages else self.accelerator.no_sync(self.model):
                with self._autocast():
                    logits, values = self.model(*rows[:4])
                logprobs, entropy = objective.logprobs_and_entropy(
                    self._tempered(logits), rows.responses[tokens]
                )
                del logits  # as large as all else together; the backward pass keeps its own
                logprobs, values, entropy = (unpack(x, tokens) for x in (logprobs, values, entropy))
                logprobs = torch.where(mask.bool(), logprobs, old.logprobs)
                losses = objective.ppo_losses(
                    logprobs, values, *old, config.cliprange, config.cliprange_value
                )
                log_ratio = (logprobs - old.logprobs).detach()
                collected.add(losses, entropy, log_ratio, values, old.returns, mask)
                if not self._updated:
                    checks.check_first_ratio(log_ratio, self._policy(), self._reduced_precision())
                loss = ((losses.policy + config.vf_coef * losses.value) * mask).sum() / token_count
                self.accelerator.backward(loss * self.accelerator.num_processes)
        means = collected.means(token_count)
        stepped = self._apply_gradients(means)
        stats = update_stats(
            means,
            *(target[indices] for target in (targets.advantages, targets.returns, targets.values)),
            step_mask,
            config.vf_coef,
            self._all_sum,
        )
        stats["policy/advantages"] = targets.advantages[indices][step_mask.bool()]
        stats["policy/ratio"] = torch.cat(collected.ratios)
        return stats, stepped

    def _apply_gradients(self, means: dict[str, Tensor]) -> bool:
        """Clip and step, unless the ratio or the gradient says that the step would do harm."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        clips = self.config.max_grad_norm and not (self._quirks() and self._updated)
        self._updated = True
        if clips:
            norm = self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm)
        else:
            norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        norm = full_tensor(norm)
        finite = bool(torch.isfinite(norm) & torch.isfinite(means["loss/policy"]))
        self._not_finite = 0 if finite else self._not_finite + 1
        healthy = finite and means["ratio"] <= self.config.ratio_threshold
        if healthy:
            self.optimizer.step()
        else:
            logger.warning(
                "Skipped an optimizer step: mean probability ratio %.2f (threshold %.2f), gradient "
                "norm %.3g.",
                means["ratio"],
                self.config.ratio_threshold,
                norm,
            )
        self.optimizer.zero_grad()
        return bool(healthy)

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None) -> None:
        """Train for `max_steps` steps: rollout, score, step, log; with checkpoints on the way.

        Args:
            resume_from_checkpoint: go on from this checkpoint, or from the newest whole one (True);
                None does what the configuration says.

        Raises:
            RecipeError: reward functions, data set, lengths or checkpoint are not fit for training,
                or the loss stopped being finite.
            RunStopped: SIGTERM or Ctrl-C came, and a checkpoint was written.
        """
        self._check_before_training()
        self._training = True
        self.state.max_steps = self.args.num_total_batches
        self.state.logging_steps = self.args.logging_steps
        self.state.num_train_epochs = self.args.total_episodes / self.train_dataset_len
        keeping.resume(self, resume_from_checkpoint or self.args.resume_from_checkpoint)
        if self.config.reward_norm == "reference" and not self.rewards.normalisation:
            self._normalise_rewards()
        with keeping.record(self, self._described()):
            self._loop()

    def _loop(self) -> None:
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        with StopSignals() if self.args.saves else nullcontext() as signals:
            while self.state.global_step < self.state.max_steps and not self._stopped():
                self._step_began = random_states()
                batch = self._next_batch()
                try:
                    stats = self._train_on(batch)
                except RecipeError as error:  # of a reward function; all save together or none
                    alone = self.accelerator.num_processes == 1
                    if self._step_began is not None and (alone or error.everywhere):
                        keeping.save(self, self._step_began)
                    raise
                self.state.global_step += 1
                self.state.episode += self.config.global_batch_size
                self.state.epoch = self.state.episode / self.train_dataset_len
                self._record(stats, batch)
                self.control = self.callback_handler.on_step_end(
                    self.args, self.state, self.control
                )
                if self._not_finite >= NOT_FINITE_ENDS:
                    keeping.stop_not_finite(self, stats, batch)
                if signals is not None:
                    keeping.save_or_stop(self, signals)
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)

    def describe(self) -> str:
        """Say in one paragraph what `train` is about to do, with the batch arithmetic in words.

        Raises:
            RecipeError: reward functions, data set or lengths are not fit for training.
        """
        self._check_before_training()
        return self._described()

    def _described(self) -> str:
        return describe_run(
            self.config,
            self._actor_critic(),
            self.rewards.names,
            [len(ids) for ids in self.dataset["input_ids"]],
            str(self.current_device),
        )

    def check(self) -> str:
        """Make the first steps of `train` on a copy of what they change, and write nothing.

        Every check of a first batch is made: reward functions, ratio 1, KL 0 to a reference that is
        the start model. Afterwards the trainer is as it was before.

        Returns:
            What was checked, and the time and memory that the whole run will take.

        Raises:
            RecipeError: as `train`.
        """
        self._check_before_training()
        self._training = True
        before, randomness = snapshot.copy_of(self), random_states()
        seconds = []
        for _ in range(CHECK_STEPS):
            started = time.perf_counter()
            batch = self._next_batch()
            self._train_on(batch)
            self.state.episode += self.config.global_batch_size
            seconds.append(time.perf_counter() - started)
        self._training = False
        snapshot.restore(self, before)
        set_random_states(randomness)
        kept = kept_by(self._actor_critic(), self.ref_model)
        return describe_check(seconds, self.args.num_total_batches, batch, kept)

    def _train_on(self, batch: dict[str, list]) -> dict[str, Any]:
        """One round of the loop: what a hand-written one does, in four lines."""
        started = self._clock()
        queries = [torch.as_tensor(ids, device=self.current_device) for ids in batch["input_ids"]]
        if "query" not in batch:
            batch["query"] = self.tokenizer.batch_decode(queries, skip_special_tokens=True)
        responses, samples = self._rollout(queries)
        generated = self._clock()
        batch["response"] = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
        scores, by_function = self._score(responses, batch)
        self._step_began = None  # from here on weights change
        scored = self._clock()
        scores_of_step = [torch.tensor(score) for score in scores]
        stats = self._step(queries, responses, scores_of_step, samples=samples)
        batch["score"] = self.rewards.raw_totals(by_function)
        return {
            **stats,
            **self._score_stats(batch["score"], by_function),
            **normalisation_stats(self.rewards.normalisation),
            **diversity(responses, batch["response"]),
            "time/generation": generated - started,
            "time/generation_share": (generated - started) / (self._clock() - started),
            "time/scoring": scored - generated,
        }

    def _rollout(self, queries: list[Tensor]) -> tuple[list[Tensor], Samples | None]:
        """Sample a response to each query, with what was known when each token was drawn."""
        sampler = self._length_sampler()
        if not can_sample(self._policy()):
            return self.generate(queries, sampler, return_prompt=False), None
        settings = generation_settings({}, self.config, self.tokenizer)
        limit = settings.pop("max_new_tokens")
        limits = [sampler() if sampler else limit for _ in queries]
        with self._gathered(), self._autocast():
            samples = sample_responses(self._policy(), queries, max_new_tokens=limits, **settings)
        responses = [self._with_prompt(None, row, False) for row in samples.rows()]
        return responses, samples

    def _score(self, responses, batch) -> tuple[list[float], dict[str, list]]:
        """Call the reward functions with text, as TRL's GRPOTrainer does."""
        prompts, completions, columns = reward_inputs(batch, self.tokenizer)
        completion_ids = [response.tolist() for response in responses]
        texts = (prompts, completions, completion_ids, columns)
        return score_part(self.rewards, self.args.reward_once, *texts, trainer_state=self.state)

    def _score_stats(self, scores: list[float], by_function: dict[str, list]) -> dict[str, float]:
        names = self.rewards.metric_names
        return score_stats(scores, by_function, self.current_device, self._all_sum, names)

    def _normalise_rewards(self) -> None:
        """Fix shift and scale of each reward function by the reference model's own samples."""
        order = np.random.default_rng(self.args.seed).permutation(len(self.dataset))
        share = slice(self.accelerator.process_index, 256, self.accelerator.num_processes)
        batch = self.dataset[order[share].tolist()]
        queries = [torch.as_tensor(ids, device=self.current_device) for ids in batch["input_ids"]]
        _, responses = self.generate(
            queries,
            self._length_sampler(),
            batch_size=self.config.batch_size,
            return_prompt=False,
            generate_ref_response=True,
        )
        batch["response"] = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
        scores, by_function = self._score(responses, batch)
        stats = self._score_stats(scores, by_function)
        prefixes = {name: f"rewards/{name}/" for name in self.rewards.names}
        self.rewards.normalise(
            {n: (stats[p + "mean"], stats[p + "std"]) for n, p in prefixes.items()}
        )

    def _record(self, stats: dict[str, Any], batch: dict[str, list]) -> None:
        """Keep the row, write it to disk at once, and hand it to the callbacks."""
        row = {"step": self.state.global_step, "episode": self.state.episode}
        row |= {key: value for key, value in stats.items() if not isinstance(value, np.ndarray)}
        self.all_stats.append(row)
        alarms = self.alarms.look(self.all_stats)
        for sentence in alarms:
            logger.warning(sentence)
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            append_stats(folder / "all_stats.jsonl", row)
            append_alarms(folder / "alarms.jsonl", row["step"], alarms)
            few = slice(0, self.args.log_samples)
            append_samples(
                folder / "samples.jsonl",
                row["step"],
                batch["query"][few],
                batch["response"][few],
                batch["score"][few],
            )
        self.log({key: value for key, value in row.items() if key != "step"})

    def _check_before_training(self) -> None:
        if self.rewards is None:
            raise RecipeError("`train` needs `reward_funcs`. Pass one function or a list of them.")
        if self.dataset is None:
            raise RecipeError(
                "`train` needs `train_dataset`: prompts, with token ids in `input_ids`."
            )
        if len(self.dataset) < self.config.global_batch_size:
            raise RecipeError(
                f"The data set has {len(self.dataset)} prompts, fewer than one batch of "
                f"{self.config.batch_size}. Lower `batch_size` or give more prompts."
            )
        rows = made_up_batch(self.dataset[:2])
        prompts, completions, columns = reward_inputs(rows, self.tokenizer)
        extras = {"columns": columns, "trainer_state": self.state}
        check_rewards(self.rewards, self.args.reward_once, prompts, completions, **extras)
        longest = max(len(ids) for ids in self.dataset["input_ids"])
        check_lengths(longest, self.args.response_length, self._policy())
        keeping.found_checkpoint(self, self.args.resume_from_checkpoint)
        if self.args.should_save and self.args.save_steps:
            trained = snapshot.trained_parameters(self._actor_critic()).values()
            kept = self.args.save_total_limit or 1
            weights = sum(parameter.numel() * 4 for parameter in trained)
            # weights and two moments a checkpoint, one more while it is written, and the model
            check_disk(Path(self.args.output_dir), weights * (3 * (kept + 1) + 1))

    def _stopped(self) -> bool:
        """Whether a callback asked to end the training, as transformers' trainers let it."""
        return self.control.should_training_stop

    def _next_batch(self) -> dict[str, list]:
        """This process's part of the prompts that come next."""
        size = self.config.batch_size
        first = self.state.episode + self.accelerator.process_index * size
        rows = stream_rows(first, size, len(self.dataset), self.config.seed)
        return self.data_collator([self.dataset[row] for row in rows])

    def _length_sampler(self) -> LengthSampler | None:
        shortest = self.args.min_response_length
        return shortest and LengthSampler(shortest, self.args.response_length + 1)

    # Logging and saving

    def log_stats(
        self,
        stats: dict[str, Any],
        batch: dict[str, list],
        rewards: Sequence[Tensor],
        columns_to_log: Sequence[str] = ("query", "response"),
    ) -> None:
        """Log what `step` returned, for a hand-written loop: to the run folder and to trackers.

        Args:
            stats: from `step`; gets `env/reward_mean` and `env/reward_std` of the raw scores.
            batch: holds the columns to log, a list each.
            rewards: one score a sample.
            columns_to_log: columns of `batch` written with the samples, if they are there.
        """
        scores = torch.stack([torch.as_tensor(r).float().reshape(()) for r in rewards])
        stats |= score_stats(scores.tolist(), {}, self.current_device, self._all_sum)
        self.state.global_step += 1
        self.state.episode += self.config.global_batch_size
        texts = {name: list(batch[name]) for name in columns_to_log if name in batch}
        empty = [""] * len(scores)
        self._record(
            stats,
            {
                "query": texts.get("query", empty),
                "response": texts.get("response", empty),
                "score": scores.tolist(),
            },
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save policy, value head and tokenizer to a folder in the hub's format.

        Args:
            output_dir: None takes `model/` in the run folder.
            _internal_call: transformers' own argument.
        """
        writes = self.accelerator.is_main_process
        policy = full_model(self._policy(), keep=writes)
        value_head = full_tensors(self._actor_critic().value_head.summary.state_dict(), writes)
        if not writes:
            return
        folder = Path(output_dir or Path(self.args.output_dir) / "model")
        folder.mkdir(parents=True, exist_ok=True)
        save_policy(policy, folder, self.args.merge_adapter)
        save_value_head(value_head, folder)
        self.tokenizer.save_pretrained(folder)

    def save_pretrained(self, save_directory: str) -> None:
        """Save as `save_model` does; the classic name.

        Args:
            save_directory: folder.
        """
        self.save_model(save_directory)

    # Small things that several phases use

    def _actor_critic(self) -> ActorCritic:
        return self.accelerator.unwrap_model(self.model)

    def _policy(self) -> nn.Module:
        return self._actor_critic().policy

    def _gathered(self) -> AbstractContextManager[None]:
        """All of the policy's weights in each process, where they lie in parts."""
        if not is_sharded(self.model):
            return nullcontext()
        return gathered(self.model, self.accelerator.state.fsdp_plugin.reshard_after_forward)

    def _reference(self) -> AbstractContextManager[nn.Module]:
        return reference_of(self._policy(), self.ref_model, self.ref_adapter_name)

    def _reduced_precision(self) -> bool:
        models = [self._policy()] + ([] if self.ref_model is None else [self.ref_model])
        dtypes = {parameter.dtype for model in models for parameter in model.parameters()}
        autocast = self.args.bf16 or self.accelerator.mixed_precision == "bf16"
        return autocast or bool(dtypes & {torch.bfloat16, torch.float16})

    def _clock(self) -> float:
        """Seconds, once what runs on a GPU is done."""
        if self.current_device.type == "cuda":
            torch.cuda.synchronize(self.current_device)
        return time.perf_counter()

    def _autocast(self) -> AbstractContextManager:
        bf16 = self.args.bf16 or self.accelerator.mixed_precision == "bf16"
        return torch.autocast(self.current_device.type, dtype=torch.bfloat16, enabled=bf16)

    def _quirks(self) -> bool:
        """Whether to compute what TRL 0.11.4 computed where it was wrong; see the configuration."""
        chosen = self.config.trl_0_11_quirks
        return not self._training if chosen is None else chosen

    def _tempered(self, logits: Tensor) -> Tensor:
        return logits if self.args.temperature == 1 else logits / self.args.temperature

    def _all_sum(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")
