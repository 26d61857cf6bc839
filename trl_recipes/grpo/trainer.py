"""GRPOTrainer and RLOOTrainer: TRL's own, in a run folder and with our rewards."""

import copy
import functools
import os
import time
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
from transformers import (
    GenerationConfig,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from trl_recipes.callbacks import StepProgress, own_copy, push_model, train_or_stop
from trl_recipes.checkpointing import (
    drop_later_rows,
    random_states,
    set_random_states,
)
from trl_recipes.data.conversations import plain_text
from trl_recipes.data.prompts import own_names
from trl_recipes.data.tokenizers import appended_tokens
from trl_recipes.describe import describe_run, replace_unknown_characters
from trl_recipes.diagnostics import Alarms, group_alarms
from trl_recipes.distributed import broadcast_from_main, gather
from trl_recipes.errors import RecipeError
from trl_recipes.grpo.checks import (
    check_before_training,
    dry_run,
    measure_rewards,
    normalizes,
)
from trl_recipes.grpo.config import GroupConfig, GRPOConfig, RLOOConfig
from trl_recipes.grpo.inputs import (
    causal_model,
    check_arguments,
    copy_weights,
    count_positions,
    evaluation_rows,
    fitting_tokenizer,
    named,
    prompt_rows,
    set_forward,
    without_renamings,
    without_second_adapter,
    writes_nothing,
)
from trl_recipes.grpo.resume import (
    Place,
    begin_epoch,
    read_place,
    read_weights,
    write_place,
    write_weights,
)
from trl_recipes.grpo.statistics import batch_statistics, weighted_totals
from trl_recipes.models.adapters import (
    StartModel,
    check_trained,
    keep_base,
    save_policy,
    select_trainable,
    with_own_schedule,
)
from trl_recipes.models.forward import (
    check_causal,
    forward_arguments,
    switch_off_chance,
    train_without_chance,
    unwrap_adapter,
)
from trl_recipes.models.memory import set_malloc_thresholds
from trl_recipes.models.sampling import ignores_padding, packed_weights
from trl_recipes.models.sharding import (
    check_fsdp_loading,
    full_model,
    full_tensor,
    is_sharded,
    wrap_by_layer,
)
from trl_recipes.rewards.base import TokenRewards, part_of, score_part
from trl_recipes.rewards.loading import rewards_of
from trl_recipes.run_folder import RunFolder
from trl_recipes.stats import (
    append_alarms,
    append_samples,
    append_stats,
)

logger = get_logger(__name__)

NOT_FINITE_ENDS = 3  # optimizer steps in a row without a finite gradient


class _Steps(TrainerCallback):
    """Tells a trainer where in its steps it is."""

    def __init__(self, trainer: "GroupTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        """The state is that of the checkpoint now, if there is one."""
        self.trainer._begin()

    def on_epoch_begin(self, args, state, control, **kwargs):
        """The prompts are put in order now."""
        if self.trainer._sampler is not None:
            begin_epoch(self.trainer._sampler, int(state.epoch or 0))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Gradients are clipped now."""
        self.trainer._leave_out_if_not_finite()

    def on_step_end(self, args, state, control, **kwargs):
        """The weights are those of a whole step now."""
        self.trainer._after_step()


class GroupTrainer:
    """What our GRPOTrainer and RLOOTrainer add to TRL's, whose algorithms stay as they are.

    `model` is a hub name, a folder, or a causal transformers or PEFT model; without
    `processing_class` the tokenizer is loaded by its name. `train_dataset` holds prompts, as
    `load_prompts` gives them or as TRL wants them: a column `prompt` of texts or conversations.
    Further columns reach reward functions. `metrics` are functions like `reward_funcs` that are
    logged and never optimised; `reward_weights` are 1 where none are given, and -1 for penalties.
    `all_stats` holds a row for each logged step, with all that TRL logs.

    Differs from TRL's: the reference model has the very weights that the policy starts with, where
    TRL loads them by the model's name; the model's own generation settings are set aside; positions
    are explicit, so that a row's log-probabilities do not depend on its neighbors' padding; the
    order of prompts follows from seed and epoch, so that it is the same after a resume; on a CPU
    log-probabilities come from plain logits; TRL is told of no run.

    Raises:
        RecipeError: what was passed cannot be trained; says why and what to do.
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
        check_arguments(args, self.config_class, train_dataset, kwargs)
        args = own_copy(args)
        check_fsdp_loading()
        set_seed(args.seed)
        policy = causal_model(model, args.trust_remote_code)
        self._saved_settings = copy.deepcopy(unwrap_adapter(policy).generation_config)
        tokenizer = fitting_tokenizer(processing_class, model, policy)
        self.rewards = rewards_of(args, reward_funcs, reward_weights, metrics)
        if self.rewards is None:
            raise RecipeError("`reward_funcs` is missing. Pass one function or a list of them.")
        args.reward_weights = self.rewards.weights
        peft_config = select_trainable(policy, args.trainable, peft_config)
        adapted = peft_config is not None or isinstance(policy, PeftModel)
        loads_reference = args.beta != 0 and not adapted
        forward = vars(unwrap_adapter(policy)).get("forward")
        if "optimizers" in kwargs:
            kwargs["optimizers"] = with_own_schedule(*kwargs["optimizers"])
        with (
            named(policy, loads_reference),
            without_second_adapter(policy),
            writes_nothing(args),
            without_renamings(),
        ):
            super().__init__(
                model=policy,
                reward_funcs=self.rewards.for_trl(),
                args=args,
                train_dataset=prompt_rows(train_dataset, "train_dataset", tokenizer),
                eval_dataset=evaluation_rows(eval_dataset, tokenizer),
                processing_class=tokenizer,
                callbacks=[*(callbacks or []), _Steps(self)],
                peft_config=peft_config,
                **kwargs,
            )
        fused_head = vars(unwrap_adapter(policy)).get("forward")  # of TRL >= 1.15
        self._fused_head = None if fused_head is forward else fused_head
        set_forward(unwrap_adapter(policy), forward)
        self._prepare_policy(policy)
        self._prepare_reference(policy)
        if self.accelerator.device.type == "cpu":
            set_malloc_thresholds()
        self.log_completions = args.log_completions
        self._forget()
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        if not args.disable_tqdm:
            self.add_callback(StepProgress)

    def _prepare_policy(self, policy: nn.Module) -> None:
        """Make log-probabilities depend on their own row alone, and hold the model to that."""
        count_positions(policy)
        check_causal(policy)
        if not ignores_padding(policy):
            raise RecipeError(
                f"{type(unwrap_adapter(policy)).__name__} reads padding as if it were text, and "
                "TRL's GRPO and RLOO trainers pad prompts. Train it with PPO, which does not."
            )
        trained = self.accelerator.unwrap_model(self.model)  # with its adapter
        check_trained(trained, self.optimizer)
        if self.args.disable_dropout:
            switch_off_chance(trained)
        keep_base(trained)

    def _prepare_reference(self, policy: nn.Module) -> None:
        """Make the reference the model that training starts from, whatever is trained of it."""
        trained = self.accelerator.unwrap_model(self.model)
        if isinstance(trained, PeftModel) and self.beta != 0:
            start = StartModel(trained)
            if start.weights and self.is_deepspeed_enabled:
                raise RecipeError(
                    "Under DeepSpeed the reference of an adapter is the model without it. This one "
                    "trains more, or does something already: launch without DeepSpeed, or merge it."
                )
            trained.disable_adapter = start.restored  # which TRL calls for the reference
        if self.ref_model is not None:
            reference = self.accelerator.unwrap_model(self.ref_model)
            count_positions(reference)
            if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
                copy_weights(policy, reference)

    def _forget(self) -> None:
        """Be as before the first step, but for the weights."""
        self.all_stats: list[dict[str, Any]] = []
        self.state, self.control = TrainerState(), TrainerControl()
        self.state.is_world_process_zero = self.is_world_process_zero()
        self.state.is_local_process_zero = self.is_local_process_zero()
        self._step, self._buffered_inputs = 0, None
        self._episodes = self._generated = self._not_finite = 0
        self._samples: tuple[list, list, list] | None = None
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
        """Give TRL's sampler, and keep it to begin epochs with."""
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
        own, model.generation_config = model.generation_config, GenerationConfig()
        try:
            with packed_weights(model), without_renamings():
                return super()._generate_single_turn(*args, **kwargs)
        finally:
            model.generation_config = own
            self._note("time/generation", time.perf_counter() - started)

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
        """Compute log-probabilities and entropies of completions, (B, T), as TRL does.

        On a CPU from plain logits: the head that TRL >= 1.15 fuses with them is for GPUs, and takes
        five times as long there.
        """
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
        """Lend the policy the forward that TRL >= 1.15 gave it: copies would call the original."""
        policy = unwrap_adapter(self.accelerator.unwrap_model(self.model))
        forward = vars(policy).get("forward")
        if self._fused_head is not None:
            policy.forward = self._fused_head
        try:
            yield
        finally:
            if self._fused_head is not None:
                set_forward(policy, forward)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as TRL does, also before and after training."""
        with nullcontext() if self.is_in_train else self._with_fused_head():
            return super().evaluate(*args, **kwargs)

    def _send_telemetry(self) -> None:
        """Tell TRL's makers nothing of a run, unless HF_HUB_DISABLE_TELEMETRY=0 asks for it."""
        if os.environ.get("HF_HUB_DISABLE_TELEMETRY") == "0":
            super()._send_telemetry()

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list) -> Tensor:
        """Call the reward functions as TRL does, and note what the batch looks like.

        Done here, so that an error in one process is told in all, and because TRL would call them
        in every process.
        """
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
        extra_columns: list[tuple[str, list]] = []
        extra_metrics: list[tuple[str, float]] = []
        extras: dict[str, Any] = {
            "trainer_state": self.state,
            "log_extra": lambda column, values: extra_columns.append((column, list(values))),
            "log_metric": lambda name, value: extra_metrics.append((name, value)),
        }
        if getattr(self, "environments", None) is not None:
            extras["environments"] = self.environments
        once = self.args.reward_once
        _, raw = score_part(self.rewards, once, prompts, completions, ids, columns, **extras)
        for name, values in raw.items():
            if any(isinstance(value, TokenRewards) for value in values):
                raise RecipeError(
                    f"Reward function `{name}` returned a list of numbers for a completion, one a "
                    f"token. {self._name} gives all tokens of a response one advantage: return "
                    "their sum, or train with PPO."
                )
        place = slice(None)
        if once:  # what TRL gathers of all must be there in all
            extra_columns, extra_metrics = broadcast_from_main(
                lambda: (extra_columns, extra_metrics)
            )
            place = part_of(len(prompts))
        for column, values in extra_columns:
            self._log_completion_extra(column, values[place])
        for name, value in extra_metrics:
            self._log_metric(name, value)
        return {n: [torch.nan if v is None else v for v in values] for n, values in raw.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what TRL logs, and keep the row of a training step in the run folder."""
        if self.log_completions:  # TRL prints a table, and writes a file there for each step
            replace_unknown_characters()
            (Path(self.args.output_dir) / "completions").mkdir(parents=True, exist_ok=True)
        super().log(logs, start_time)
        if "loss" in logs:
            self._record(logs)

    # What a step leaves

    def _note(self, name: str, value: float) -> None:
        """Add a value to those that TRL averages and logs."""
        self._metrics["train" if self.model.training else "eval"][name].append(value)

    def _note_batch(self, raw, prompts, completions, ids, by_function: Tensor) -> None:
        """Note what a sampled batch looks like, and keep a response of each of the first groups.

        `by_function` holds what each reward function gave, (all B, functions).
        """
        weights = torch.tensor(self.rewards.weights)
        totals, all_ids = weighted_totals(by_function, weights), gather(list(ids))
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

    def _record(self, logs: dict[str, Any]) -> None:
        """Keep the row of a step, and write it to disk at once."""
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
            run = RunFolder(Path(self.args.output_dir))
            append_stats(run.all_stats, row)
            append_alarms(run.alarms, row["step"], alarms)
            if self._samples is not None:
                append_samples(run.samples, row["step"], *self._samples)
        self._samples = None  # a batch that is used again is written once

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train for `max_steps` steps, with rows, samples and checkpoints in the run folder.

        It goes on from the checkpoint given, from the newest whole one (True), or as `args` say.

        Raises:
            RecipeError: something is not fit for training, a reward function failed, or gradients
                stopped being finite.
            RunStopped: SIGTERM or Ctrl-C came, and a checkpoint was written.
        """
        lengths = check_before_training(self)
        if resume_from_checkpoint is not None:
            self.args.resume_from_checkpoint = resume_from_checkpoint
        if normalizes(self):
            measure_rewards(self)
        train = functools.partial(self._train, **kwargs)
        wrap_by_layer(self.model, self.accelerator)
        if self.args.saves:
            about = {
                "algorithm": self._name,
                "about": self._described(lengths),
                "rewards": dict(zip(self.rewards.names, self.rewards.weights, strict=True)),
                "metrics": self.rewards.metric_names,
            }
            return train_or_stop(self, train=train, about=about)
        if self.args.resume_from_checkpoint:
            raise RecipeError("`resume_from_checkpoint` needs `output_dir`: the run to go on with.")
        self.args.save_strategy = "no"
        return train()

    def _train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """TRL's training; of what a failing reward function ends, the last whole step is kept."""
        self._checkpoint = resume_from_checkpoint
        try:
            with self._with_fused_head(), without_renamings():
                return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except RecipeError as error:
            alone = self.accelerator.num_processes == 1  # several save together or not
            possible = self.args.saves and (alone or error.everywhere)
            if self._between is not None and possible:
                _, randomness, self.state.num_input_tokens_seen = self._between
                set_random_states(randomness)
                self._save_checkpoint(self.model, trial=None)
            raise

    def _begin(self) -> None:
        """Before the first step, drop what was logged after the checkpoint, and go to its place."""
        self._between = None
        if self._trying or not self.args.resume_from_checkpoint:
            return
        run, step = RunFolder(Path(self.args.output_dir)), self.state.global_step
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.all_stats = drop_later_rows(run, step)
        self._alarms.replay(self.all_stats)
        if self._checkpoint is not None:
            process, device = self.accelerator.process_index, self.accelerator.device
            place, processes = read_place(Path(self._checkpoint), process, device)
            if processes != self.accelerator.num_processes:
                place = self._elsewhere(place, processes)
            self._step, self._buffered_inputs = place.passes, place.batch
            self._episodes, self._generated = place.episodes, place.generated
            if place.weights:
                self.reward_weights = torch.tensor(place.weights)
            if self.args.sync_ref_model:
                reference = self.accelerator.unwrap_model(self.ref_model)
                reference.load_state_dict(read_weights(Path(self._checkpoint), type(reference)))

    def _elsewhere(self, place: Place, processes: int) -> Place:
        """The place of a run that had another number of processes, as near as it can be given."""
        logger.warning(
            "The run had %d processes and has %d now: it goes on with the same weights, but draws "
            "other responses; prompts go on where they were if `batch_size` times processes is the "
            "same.",
            processes,
            self.accelerator.num_processes,
        )
        passes = self.state.global_step * self.args.gradient_accumulation_steps
        return place._replace(passes=passes, batch=None)

    def _leave_out_if_not_finite(self) -> None:
        """Leave a step out that would turn weights into nan; several in a row end the run."""
        if self.is_deepspeed_enabled or (self.is_fsdp_enabled and not is_sharded(self.model)):
            return  # gradients are not here
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        finite = bool(full_tensor(nn.utils.get_total_norm(gradients)).isfinite())
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

    def _after_step(self) -> None:
        """Note where the run is, in case that the next step fails."""
        unused = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        batch = None if unused else self._buffered_inputs
        weights = self.reward_weights.tolist()
        place = Place(self._step, self._episodes, self._generated, batch, weights)
        self._between = (place, random_states(), self.state.num_input_tokens_seen)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save the place between two batches, and a reference that follows the policy, too."""
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        place, processes = self._between[0], self.accelerator.num_processes
        write_place(folder, place, self.accelerator.process_index, processes)
        if self.args.sync_ref_model and self.args.should_save:  # else it is the start model
            write_weights(folder, self.accelerator.unwrap_model(self.ref_model))
        super()._save_checkpoint(model, trial)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: TRL would put one into the run folder with each checkpoint."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save policy and tokenizer in the hub's format: to `model/` in the run folder, or here."""
        if _internal_call:
            super().save_model(output_dir, _internal_call)
            return
        writes = self.accelerator.is_main_process
        policy = full_model(self.accelerator.unwrap_model(self.model), keep=writes)
        if writes:
            folder = Path(output_dir or RunFolder(Path(self.args.output_dir)).model)
            folder.mkdir(parents=True, exist_ok=True)
            # as the start model had them: TRL and transformers write the tokenizer's tokens in
            unwrap_adapter(policy).generation_config = self._saved_settings
            save_policy(policy, folder, self.args.merge_adapter)
            self.processing_class.save_pretrained(folder)
            push_model(self.args, folder)

    # Before training

    def describe(self) -> str:
        """Say in one paragraph what `train` is about to do, with the batch arithmetic in words."""
        lengths = check_before_training(self)
        measure_rewards(self)
        return self._described(lengths)

    def check(self) -> str:
        """Make the first steps of `train`, write nothing, and put everything back.

        Returns what was checked, and the time and memory that the whole run will take.
        """
        return dry_run(self, _Steps)

    def _described(self, lengths: list[int]) -> str:
        described = describe_run(
            self._name,
            self.args,
            unwrap_adapter(self.accelerator.unwrap_model(self.model)),
            self.rewards.names,
            lengths,
            self._number_of_steps(),
            str(self.accelerator.device),
        )
        return described + self.rewards.described()

    def _end_tokens(self) -> list[int]:
        # TRL < 1.15 knows the tokenizer's own alone
        return list(getattr(self, "eos_token_ids", [self._tokenizer.eos_token_id]))

    def _number_of_steps(self) -> int:
        return self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]


class GRPOTrainer(GroupTrainer, trl.GRPOTrainer):
    """Group relative policy optimization; [`GroupTrainer`] tells what differs from TRL's."""

    config_class = GRPOConfig

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple:
        """Compute log-probabilities as TRL does, and keep them for the KL of a response."""
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._logps = result[0].detach()
        return result

    def compute_loss(self, model, inputs, *args: Any, **kwargs: Any) -> Any:
        """Compute TRL's loss, and note the KL of a response as PPO does.

        It is noted where a sampled batch is gone over for the first time; later the policy is
        another one.
        """
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
        """Let TRL sample and score a batch, and note the KL of a response as PPO does.

        TRL has just averaged the log-ratio over all tokens of the batch, so that times tokens over
        responses is its sum over a response, averaged over responses.
        """
        batch = super()._generate_and_score_completions(inputs)
        kls = self._metrics["train"].get("kl")
        if self.model.training and kls:
            mask = batch["completion_mask"]
            counts = torch.stack([mask.sum(), torch.tensor(len(mask), device=mask.device)])
            tokens, responses = self.accelerator.reduce(counts, reduction="sum").tolist()
            self._note("objective/kl", kls[-1] * tokens / responses)
        return batch
