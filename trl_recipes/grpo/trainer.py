"""GRPOTrainer and RLOOTrainer: TRL's own, in a run folder and with our rewards."""

import copy
import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import trl
from accelerate.logging import get_logger
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import GenerationConfig, TrainerCallback, TrainerControl, TrainerState, set_seed
from trl.trainer import grpo_trainer, rloo_trainer
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from trl_recipes.callbacks import own_copy, show_progress, train_or_stop, write_row
from trl_recipes.data.conversations import plain_text
from trl_recipes.data.tokenizers import appended_tokens
from trl_recipes.describe import replace_unknown_characters
from trl_recipes.diagnostics import Alarms, group_alarms
from trl_recipes.errors import RecipeError
from trl_recipes.grpo import inputs
from trl_recipes.grpo.checkpointing import GroupCheckpoints, Place
from trl_recipes.grpo.config import GroupConfig, GRPOConfig, RLOOConfig
from trl_recipes.grpo.scoring import GroupScoring
from trl_recipes.models import adapters, sharding
from trl_recipes.models.forward import (
    check_causal,
    forward_arguments,
    switch_off_chance,
    temporarily,
    train_without_chance,
    unwrap_adapter,
)
from trl_recipes.models.sampling import ignores_padding, packed_weights, prepare_device
from trl_recipes.models.vllm_sampling import VLLMSampler
from trl_recipes.rewards.base import rewards_of
from trl_recipes.run_folder import begin_run

logger = get_logger(__name__)

# TRL reads a property that transformers renamed in 5.23
warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)

NOT_FINITE_ENDS = 3  # optimizer steps in a row without a finite gradient


class _Steps(TrainerCallback):
    """Tells a trainer where in its steps it is."""

    def __init__(self, trainer: "GroupTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._go_to_checkpoint()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer._begin_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer._skip_if_not_finite()

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer._after_step()


class GroupTrainer(GroupScoring, GroupCheckpoints):
    """What our GRPOTrainer and RLOOTrainer add to TRL's, whose algorithms stay as they are.

    `train_dataset` holds prompts, in a column `prompt` of texts or conversations; further columns
    reach reward functions. `metrics` are functions like `reward_funcs` that are logged and never
    optimized; `reward_weights` are 1 where none are given, and -1 for penalties.

    Differs from TRL's: the reference has the very weights that the policy starts with, where TRL
    loads them by the model's name; the model's own generation settings are set aside; positions are
    explicit, so that a row's log-probabilities do not depend on its neighbors' padding; the order
    of prompts follows from seed and epoch, so that it is the same after a resume; TRL is told of no
    run.
    """

    config_class: type[GroupConfig]

    def __init__(
        self,
        model: Any,
        reward_funcs: Callable | list[Callable] | None = None,
        args: GroupConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        reward_weights: list[float] | None = None,
        metrics: Callable | list[Callable] | None = None,
        callbacks: list | None = None,
        peft_config: Any = None,
        **kwargs: Any,
    ):
        args = self.config_class() if args is None else args
        inputs.check_arguments(args, self.config_class, train_dataset, kwargs)
        args = own_copy(args)
        sharding.check_fsdp_loading()
        set_seed(args.seed)
        policy = inputs.causal_model(model, args.trust_remote_code)
        self._saved_settings = copy.deepcopy(unwrap_adapter(policy).generation_config)
        tokenizer = inputs.group_tokenizer(processing_class, model, policy)
        self.rewards = rewards_of(args, reward_funcs, reward_weights, metrics)
        if self.rewards is None:
            raise RecipeError("`reward_funcs` is missing. Pass one function or a list of them.")
        args.reward_weights = self.rewards.weights
        peft_config = adapters.select_trainable(policy, args.trainable, peft_config)
        adapted = peft_config is not None or isinstance(policy, PeftModel)
        own_forward = vars(unwrap_adapter(policy)).get("forward")
        if "optimizers" in kwargs:
            kwargs["optimizers"] = adapters.with_own_schedule(*kwargs["optimizers"])
        in_hub = getattr(args, "log_completions_hub_repo", None) is not None
        self._steps = _Steps(self)
        with (
            inputs.named(policy, wanted=args.beta != 0 and not adapted),
            inputs.without_second_adapter(policy),
            # no folder is made before all was found fit for training
            temporarily(args, saves=False, log_completions=args.log_completions and in_hub),
            temporarily(grpo_trainer, VLLMGeneration=VLLMSampler),
            temporarily(rloo_trainer, VLLMGeneration=VLLMSampler),
        ):
            super().__init__(
                model=policy,
                reward_funcs=self.rewards.for_trl(),
                args=args,
                train_dataset=inputs.prompt_rows(train_dataset, "train_dataset", tokenizer),
                eval_dataset=inputs.evaluation_rows(eval_dataset, tokenizer),
                processing_class=tokenizer,
                callbacks=[*(callbacks or []), self._steps],
                peft_config=peft_config,
                **kwargs,
            )
        self._prepare_policy(policy, own_forward)
        self._prepare_reference(policy)
        self.log_completions = args.log_completions
        self._forget()
        show_progress(self)

    def _prepare_policy(self, policy: nn.Module, own_forward: Callable | None) -> None:
        """Make log-probabilities depend on their own row alone, and check that they do."""
        fused_head = vars(unwrap_adapter(policy)).get("forward")  # of TRL >= 1.15
        self._fused_head = None if fused_head is own_forward else fused_head
        _set_forward(unwrap_adapter(policy), own_forward)
        prepare_device(self.accelerator.device)
        inputs.count_positions(policy)
        check_causal(policy)
        if not ignores_padding(policy):
            raise RecipeError(
                f"{type(unwrap_adapter(policy)).__name__} reads padding as if it were text, and "
                "TRL's GRPO and RLOO trainers pad prompts. Train it with PPO, which does not."
            )
        trained = self.accelerator.unwrap_model(self.model)  # with its adapter
        adapters.check_trained(trained, self.optimizer)
        if self.args.disable_dropout:
            switch_off_chance(trained)
        adapters.keep_base(trained)

    def _prepare_reference(self, policy: nn.Module) -> None:
        """Make the reference the model that training starts from, whatever is trained of it."""
        trained = self.accelerator.unwrap_model(self.model)
        if isinstance(trained, PeftModel) and self.beta != 0:
            start = adapters.StartModel(trained)
            if start.weights and self.is_deepspeed_enabled:
                raise RecipeError(
                    "Under DeepSpeed the reference of an adapter is the model without it. This one "
                    "trains more, or does something already: launch without DeepSpeed, or merge it."
                )
            trained.disable_adapter = start.restored  # which TRL calls for the reference
        if self.ref_model is not None:
            reference = self.accelerator.unwrap_model(self.ref_model)
            inputs.count_positions(reference)
            if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
                inputs.copy_weights(policy, reference)

    def _forget(self) -> None:
        # everything but the weights is as before the first step
        self.all_stats: list[dict[str, Any]] = []
        self.state = TrainerState(max_steps=max(1, self.args.max_steps))  # rewards may divide by it
        self.control = TrainerControl()
        self.state.is_world_process_zero = self.is_world_process_zero()
        self.state.is_local_process_zero = self.is_local_process_zero()
        self._step, self._buffered_inputs = 0, None
        self._episodes = self._generated = self._not_finite = 0
        self._samples: dict[str, list] = {}
        self._alarms = Alarms(self._find_alarms)
        self._between: tuple[Place, dict, int] | None = None  # how the last step ended
        self._sampler: Sampler | None = None  # none for a stream of prompts
        self._checkpoint: str | None = None
        self._trying = False
        if hasattr(self, "entropy_coef"):  # which TRL may adapt
            self.entropy_coef, self._last_world_entropy = self.args.entropy_coef, float("inf")

    def _find_alarms(self, rows: list[dict[str, Any]]) -> dict[str, str]:
        compared = getattr(self.args, "scale_rewards", "none") in ("group", "batch")
        beta = None if compared else self.args.beta
        return group_alarms(rows, beta=beta, steps=self.state.max_steps)

    # What TRL calls: what it does is its own, what goes in and what is seen of it is ours

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        self._sampler = super()._get_train_sampler(dataset)
        return self._sampler

    def _tokenize_prompts(self, prompts: list) -> tuple:
        """Tokenize as TRL does, without the end that some tokenizers append to a text."""
        ids, *more = super()._tokenize_prompts(prompts)
        end = appended_tokens(self.processing_class, plain_text(prompts[0]))
        if end and isinstance(prompts[0], str):
            ids = [row[: len(row) - end] for row in ids]
        return ids, *more

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        """Sample from the policy itself: the model's own generation settings are set aside."""
        started = time.perf_counter()
        model = unwrap_adapter(self.accelerator.unwrap_model(self.model))
        packed = nullcontext() if self.use_vllm else packed_weights(model)
        with packed, temporarily(model, generation_config=GenerationConfig()):
            drawn = super()._generate_single_turn(*args, **kwargs)
        self._note("time/generation", time.perf_counter() - started)
        return drawn

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        compute_aux_loss=False,
        **images: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Compute log-probabilities and entropies of completions, (B, T), as TRL does."""
        # on a CPU from plain logits: TRL >= 1.15's fused head takes five times as long there
        policy = unwrap_adapter(self.accelerator.unwrap_model(model))
        if self.args.disable_dropout:
            train_without_chance(self.accelerator.unwrap_model(model))
        on_gpu = self.accelerator.device.type != "cpu"
        if on_gpu or any(value is not None for value in images.values()):
            settings = (batch_size, compute_entropy, compute_aux_loss)
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *settings, **images
            )
        more: dict[str, Any] = {"use_cache": False}
        if "logits_to_keep" in forward_arguments(policy):
            more["logits_to_keep"] = logits_to_keep + 1
        if compute_aux_loss:
            more["output_router_logits"] = True
        size = batch_size or len(input_ids)
        logps, entropies, aux_losses = [], [], []
        for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True):
            outputs = model(input_ids=ids, attention_mask=mask, **more)
            logits = outputs.logits[:, -logits_to_keep - 1 : -1] / self.temperature
            logps.append(selective_log_softmax(logits, ids[:, -logits_to_keep:]))
            if compute_entropy:
                in_loss = getattr(self, "_entropy_bonus_enabled", False)
                entropies.append(entropy_from_logits(logits if in_loss else logits.detach()))
            if compute_aux_loss:
                aux_losses.append(outputs.aux_loss)
        return (
            torch.cat(logps),
            torch.cat(entropies) if compute_entropy else None,
            torch.stack(aux_losses).mean() if compute_aux_loss else None,
        )

    @contextmanager
    def _with_fused_head(self) -> Iterator[None]:
        """Lend the policy the forward of TRL >= 1.15, in copies of which the original would run."""
        policy = unwrap_adapter(self.accelerator.unwrap_model(self.model))
        own = vars(policy).get("forward")
        if self._fused_head is not None:
            policy.forward = self._fused_head
        try:
            yield
        finally:
            _set_forward(policy, own)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as TRL does, also outside of training."""
        with nullcontext() if self.is_in_train else self._with_fused_head():
            return super().evaluate(*args, **kwargs)

    def _send_telemetry(self) -> None:
        """Tell TRL's makers nothing of a run, unless HF_HUB_DISABLE_TELEMETRY=0 asks for it."""
        if os.environ.get("HF_HUB_DISABLE_TELEMETRY") == "0":
            super()._send_telemetry()

    # What a step leaves

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what TRL logs, and keep the row of a training step in the run folder."""
        if self.log_completions:  # TRL prints a table, and writes a file there for each step
            replace_unknown_characters()
            (Path(self.args.output_dir) / "completions").mkdir(parents=True, exist_ok=True)
        super().log(logs, start_time)
        if "loss" in logs:
            self._record(logs)

    def _record(self, logs: dict[str, Any]) -> None:
        row = {"step": self.state.global_step, "episode": self._episodes}
        row["tokens/generated"] = self._generated
        row |= {key: value for key, value in logs.items() if isinstance(value, int | float)}
        self.all_stats.append(row)
        alarms = self._alarms.look(self.all_stats)
        if self._trying:
            return
        for sentence in alarms:
            logger.warning(sentence)
        if self.args.should_save:
            write_row(self.args.output_dir, row, alarms, self._samples)
        self._samples = {}  # a batch that is used again is written once

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train for `max_steps` steps, with rows, samples and checkpoints in the run folder.

        It goes on from the checkpoint given, from the newest whole one (True), or as `args` say.
        Raises RunStopped where SIGTERM or Ctrl-C came, and a checkpoint was written.
        """
        if resume_from_checkpoint is not None:
            self.args.resume_from_checkpoint = resume_from_checkpoint
        lengths = self._check_before_training()
        begin_run(self.args)
        if self._normalizes():
            self._measure_rewards()
        train = functools.partial(self._train, **kwargs)
        sharding.wrap_by_layer(self.model, self.accelerator)
        if self.args.saves:
            about = {
                "algorithm": self._name,
                "about": self._description(lengths),
                **self.rewards.about(),
            }
            return train_or_stop(self, train=train, about=about)
        if self.args.resume_from_checkpoint:
            raise RecipeError("`resume_from_checkpoint` needs `output_dir`: the run to go on with.")
        self.args.save_strategy = "no"
        return train()

    def _train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Train as TRL does; if a reward function fails, save the last whole step."""
        self._checkpoint = resume_from_checkpoint
        try:
            with self._with_fused_head():
                return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except RecipeError as error:
            alone = self.accelerator.num_processes == 1  # several save together or not
            if self.args.saves and (alone or error.everywhere):
                self._save_last_whole_step()
            raise

    def _skip_if_not_finite(self) -> None:
        """Skip a step whose gradient is not finite; several in a row end the run."""
        old_fsdp = self.is_fsdp_enabled and not sharding.is_sharded(self.model)
        if self.is_deepspeed_enabled or old_fsdp:
            return  # gradients are not here
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        finite = bool(sharding.full_tensor(nn.utils.get_total_norm(gradients)).isfinite())
        self._not_finite = 0 if finite else self._not_finite + 1
        self._note("skipped_steps", float(not finite))
        if not finite:
            self.model.zero_grad(set_to_none=True)
        if self._not_finite >= NOT_FINITE_ENDS:
            raise RecipeError(
                f"{self._not_finite} optimizer steps in a row had a gradient that is not finite, "
                f"the last in step {self.state.global_step + 1}; none of them changed a weight. "
                "Usual causes: a learning rate that is too high, rewards of very different size, "
                "or a max_grad_norm of 0."
            )

    def _end_tokens(self) -> list[int]:
        # TRL < 1.15 knows the tokenizer's own alone
        return list(getattr(self, "eos_token_ids", [self._tokenizer.eos_token_id]))


class GRPOTrainer(GroupTrainer, trl.GRPOTrainer):
    """Group relative policy optimization; [`GroupTrainer`] tells what differs from TRL's."""

    config_class = GRPOConfig

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple:
        """Compute log-probabilities as TRL does, and keep them for the KL of a response."""
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._logps = result[0].detach()
        return result

    def compute_loss(self, model, inputs, *args: Any, **kwargs: Any) -> Any:
        """Compute TRL's loss, and note the KL of a response, when a batch is used first."""
        self._logps = None  # a loss that computes none (Liger's) leaves it so
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        reference, mask = inputs.get("ref_per_token_logps"), inputs["completion_mask"]
        passes = self.args.steps_per_generation
        first_use = self._step % (passes * self.num_iterations) < passes
        if reference is not None and self._logps is not None and first_use:
            mask = mask * inputs["tool_mask"] if "tool_mask" in inputs else mask
            kl = ((self._logps - reference) * mask).sum(1)
            self._note("objective/kl", self.accelerator.gather(kl).mean().item())
        return loss


class RLOOTrainer(GroupTrainer, trl.RLOOTrainer):
    """REINFORCE leave-one-out; [`GroupTrainer`] tells what differs from TRL's."""

    config_class = RLOOConfig

    def _generate_and_score_completions(self, inputs: list) -> dict:
        """Let TRL sample and score a batch, and note the KL of a response as PPO does."""
        # TRL has averaged the log-ratio over all tokens: times tokens over responses it is the KL
        batch = super()._generate_and_score_completions(inputs)
        kls = self._metrics["train"].get("kl")
        if self.model.training and kls:
            mask = batch["completion_mask"]
            counts = torch.stack([mask.sum(), torch.tensor(len(mask), device=mask.device)])
            tokens, responses = self.accelerator.reduce(counts, reduction="sum").tolist()
            self._note("objective/kl", kls[-1] * tokens / responses)
        return batch


def _set_forward(model: nn.Module, forward: Callable | None) -> None:
    """Give a model a forward of its own; None: that of its class."""
    vars(model).pop("forward", None)
    if forward is not None:
        model.forward = forward
