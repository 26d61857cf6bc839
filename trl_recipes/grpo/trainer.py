"""GRPOTrainer and RLOOTrainer: TRL's own, in a run folder and with our rewards."""

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trl
from accelerate.logging import get_logger
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from trl_recipes.errors import RecipeError
from trl_recipes.forward import context_length, unwrap_adapter
from trl_recipes.grpo.config import GRPOConfig, GroupConfig, RLOOConfig
from trl_recipes.grpo.inputs import (
    causal_model,
    fitting_tokenizer,
    made_up_sample,
    named,
    prompt_rows,
)
from trl_recipes.progress import StepProgress
from trl_recipes.rewards.loading import rewards_of
from trl_recipes.rewards.text import plain_text
from trl_recipes.runs import RunFolder
from trl_recipes.stats import append_samples, append_stats, distinct_n, keep_steps
from trl_recipes.stopping import train_or_stop
from trl_recipes.trainable import save_policy, select_trainable

logger = get_logger(__name__)


class _InRunFolder(TrainerCallback):
    """Tells a trainer when training begins, with its state as it was in the checkpoint."""

    def __init__(self, trainer: "GroupTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop what was logged after the checkpoint."""
        self.trainer._go_on()


class GroupTrainer:
    """What our GRPOTrainer and RLOOTrainer add to TRL's, whose algorithms stay as they are.

    Args:
        model: hub name, folder, or a causal transformers or PEFT model.
        reward_funcs: one reward function or several.
        args: settings; None takes the defaults.
        train_dataset: prompts, as `load_prompts` gives them or as TRL wants them: a column `prompt`
            of texts or conversations. Further columns reach reward functions.
        processing_class: the model's tokenizer; None loads it by the model's name.
        reward_weights: weight of each; None weighs all 1, and penalties -1.
        metrics: functions like `reward_funcs` that are called and logged, and never optimised.
        callbacks: further transformers callbacks.
        peft_config: trains an adapter instead of the full model.
        **kwargs: further arguments of TRL's trainer, such as `eval_dataset` or `tools`.

    Attributes:
        all_stats: one row for each logged step, with all that TRL logs.

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
        *,
        processing_class: Any = None,
        reward_weights: list[float] | None = None,
        metrics: Callable | list[Callable] | None = None,
        callbacks: list | None = None,
        peft_config: Any = None,
        **kwargs: Any,
    ):
        args = self.config_class() if args is None else args
        if not isinstance(args, self.config_class):
            raise RecipeError(
                f"`args` must be a trl_recipes.{self.config_class.__name__}, got "
                f"{type(args).__module__}.{type(args).__name__}. Change the import."
            )
        set_seed(args.seed)
        policy = causal_model(model, args.trust_remote_code)
        tokenizer = fitting_tokenizer(processing_class, model, policy)
        self.rewards = rewards_of(args, reward_funcs, reward_weights, metrics)
        if self.rewards is None:
            raise RecipeError("`reward_funcs` is missing. Pass one function or a list of them.")
        args.reward_weights = self.rewards.weights
        if train_dataset is None and "environment_factory" not in kwargs:
            raise RecipeError("`train_dataset` is missing: prompts, in a column `prompt`.")
        if "eval_dataset" in kwargs:
            kwargs["eval_dataset"] = prompt_rows(kwargs["eval_dataset"])
        peft_config = select_trainable(policy, args.trainable, peft_config)
        adapted = peft_config is not None or isinstance(policy, PeftModel)
        saves, args.saves = args.saves, False  # no folder before all was found fit for training
        try:
            with named(policy, wanted=args.beta != 0 and not adapted):
                super().__init__(
                    model=policy,
                    reward_funcs=self.rewards.for_trl(),
                    args=args,
                    train_dataset=prompt_rows(train_dataset),
                    processing_class=tokenizer,
                    callbacks=[*(callbacks or []), _InRunFolder(self)],
                    peft_config=peft_config,
                    **kwargs,
                )
        finally:
            args.saves = saves
        self.tokenizer = tokenizer
        if self.ref_model is not None and not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            # TRL loads it by name, which may be another revision or not what was passed
            reference = self.accelerator.unwrap_model(self.ref_model)
            reference.load_state_dict(policy.state_dict())
        self.all_stats: list[dict[str, Any]] = []
        self._episodes = self._generated = 0
        self._samples: tuple | None = None
        self._checkpoint: str | None = None
        self._trying = False
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        if not args.disable_tqdm:
            self.add_callback(StepProgress)

    # Seams of TRL's loop

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        """Sample from the policy itself: the model's own generation settings are set aside."""
        started = time.perf_counter()
        model = unwrap_adapter(self.accelerator.unwrap_model(self.model))
        own, model.generation_config = model.generation_config, GenerationConfig()
        try:
            return super()._generate_single_turn(*args, **kwargs)
        finally:
            model.generation_config = own
            self._note("time/generation", time.perf_counter() - started)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list) -> Tensor:
        """Let TRL call the reward functions, and note what the batch looks like."""
        started = time.perf_counter()
        by_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._note("time/scoring", time.perf_counter() - started)
        if self.model.training:
            self._describe_batch(inputs, prompts, completions, completion_ids_list, by_function)
        return by_function

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what TRL logs, and keep the row of a training step in the run folder."""
        super().log(logs, start_time)
        if "loss" in logs:
            self._record(logs)

    # What a step leaves

    def _note(self, name: str, value: float) -> None:
        """Add a value to those that TRL averages and logs."""
        self._metrics["train" if self.model.training else "eval"][name].append(value)

    def _describe_batch(self, inputs, prompts, completions, ids, by_function: Tensor) -> None:
        """Note figures of a freshly sampled batch.

        Args:
            inputs: rows of the data set, B of them.
            prompts: B texts or conversations of this process.
            completions: B texts or conversations.
            ids: their token ids.
            by_function: what each reward function gave, over all processes, (all B, functions).
        """
        weights = self.reward_weights.to(by_function.device)
        totals = (by_function * weights).nansum(1)
        groups = totals.view(-1, self.num_generations)
        spread = groups.max(1).values - groups.min(1).values
        equal = spread <= 1e-6 * groups.abs().max(1).values.clamp(min=1.0)
        lengths = self.accelerator.gather(torch.tensor([len(row) for row in ids]).to(totals.device))
        self._episodes += len(totals)
        self._generated += int(lengths.sum())
        texts = [plain_text(text) for text in completions]
        self._note("env/reward_mean", totals.mean().item())
        self._note("env/reward_std", totals.std().item())
        self._note("groups/reward_std", groups.std(1).mean().item())
        self._note("groups/equal", equal.float().mean().item())
        self._note("tokens/responses_len_mean", lengths.float().mean().item())
        self._note("samples/distinct_2", distinct_n(ids, 2))
        self._note("samples/unique", len(set(texts)) / len(texts))
        columns = {name: [row[name] for row in inputs] for name in inputs[0] if name != "prompt"}
        measured = self.rewards.measure(
            prompts=prompts, completions=completions, completion_ids=ids, **columns
        )
        for name, values in measured.items():
            known = [value for value in values if value is not None]
            if known:
                self._note(f"metrics/{name}/mean", sum(known) / len(known))
        first = self.accelerator.process_index * len(texts)
        scores = totals[first : first + len(texts)].tolist()
        few = slice(0, self.num_generations * self.args.log_samples, self.num_generations)
        self._samples = ([plain_text(prompt) for prompt in prompts[few]], texts[few], scores[few])

    def _note_kl(self, mask: Tensor) -> None:
        """From TRL's KL a token, a mean over all tokens of a batch, make that of a response."""
        kls = self._metrics["train"].get("kl")
        if self.model.training and kls:
            counts = torch.stack([mask.sum(), torch.tensor(len(mask), device=mask.device)])
            tokens, responses = self.accelerator.reduce(counts, reduction="sum").tolist()
            self._note("objective/kl", kls[-1] * tokens / responses)

    def _record(self, logs: dict[str, Any]) -> None:
        """Keep the row of a step, and write it to disk at once."""
        row = {"step": self.state.global_step, "episode": self._episodes}
        row["tokens/generated"] = self._generated
        row |= {key: value for key, value in logs.items() if isinstance(value, int | float)}
        self.all_stats.append(row)
        if not self.args.should_save or self._trying:
            return
        run = self._run()
        append_stats(run.all_stats, row)
        if self._samples is not None:
            append_samples(run.samples, row["step"], *self._samples)
            self._samples = None

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train for `max_steps` steps, with rows, samples and checkpoints in the run folder.

        Args:
            resume_from_checkpoint: go on from this checkpoint, or from the newest whole one (True);
                None does what the configuration says.
            **kwargs: further arguments of TRL's `train`.

        Raises:
            RecipeError: reward functions, data set, lengths or checkpoint are not fit for training,
                or a reward function failed.
            RunStopped: SIGTERM or Ctrl-C came, and a checkpoint was written.
        """
        self._check_before_training()
        if resume_from_checkpoint is not None:
            self.args.resume_from_checkpoint = resume_from_checkpoint
        if not self.args.saves:
            self.args.save_strategy = "no"
            return super().train(**kwargs)
        self._folder = Path(self.args.output_dir)
        return train_or_stop(self, train=functools.partial(self._train_from, **kwargs))

    def _train_from(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        self._checkpoint = resume_from_checkpoint
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _go_on(self) -> None:
        """Before the first step: what was logged after the checkpoint is dropped."""
        if self._trying or not self.args.saves or not self.args.resume_from_checkpoint:
            return
        if self.args.should_save:
            run, step = self._run(), self.state.global_step
            self.all_stats = keep_steps(run.all_stats, step)
            for path in (run.samples, run.alarms):
                keep_steps(path, step)
        last = self.all_stats[-1] if self.all_stats else {}
        self._episodes = int(last.get("episode", 0))
        self._generated = int(last.get("tokens/generated", 0))

    def _run(self) -> RunFolder:
        return RunFolder(self._folder)

    def describe(self) -> str:
        """Say in one paragraph what `train` is about to do, with the batch arithmetic in words.

        Raises:
            RecipeError: reward functions, data set or lengths are not fit for training.
        """
        self._check_before_training()
        return f"{type(self).__name__}"

    def check(self) -> str:
        """Make the first steps of `train`, and write nothing.

        Returns:
            What was checked, and the time and memory that the whole run will take.

        Raises:
            RecipeError: as `train`.
        """
        raise NotImplementedError

    def _check_before_training(self) -> None:
        if self.train_dataset is None:
            return
        sample = made_up_sample(self.train_dataset, self.processing_class)
        extras = {"trainer_state": self.state}
        extras |= {name: lambda *args: None for name in ("log_extra", "log_metric")}
        self.rewards.check(**sample, **extras)
        if len(self.train_dataset) < self.args.groups:
            raise RecipeError(
                f"The data set has {len(self.train_dataset)} prompts, fewer than the "
                f"{self.args.groups} of one batch. Lower batch_size or give more prompts."
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save policy and tokenizer to a folder in the hub's format.

        Args:
            output_dir: None takes `model/` in the run folder.
            _internal_call: transformers' own argument, for checkpoints.
        """
        if _internal_call:
            super().save_model(output_dir, _internal_call)
        elif self.accelerator.is_main_process:
            folder = Path(output_dir or Path(self.args.output_dir) / "model")
            folder.mkdir(parents=True, exist_ok=True)
            save_policy(self.accelerator.unwrap_model(self.model), folder, self.args.merge_adapter)
            self.processing_class.save_pretrained(folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no model card into checkpoints; TRL would write one beside each."""


class GRPOTrainer(GroupTrainer, trl.GRPOTrainer):
    __doc__ = GroupTrainer.__doc__
    config_class = GRPOConfig

    def compute_loss(self, model, inputs, *args: Any, **kwargs: Any) -> Any:
        """Compute TRL's loss, and note the KL of a response."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        mask = inputs["completion_mask"]
        self._note_kl(mask * inputs["tool_mask"] if "tool_mask" in inputs else mask)
        return loss


class RLOOTrainer(GroupTrainer, trl.RLOOTrainer):
    __doc__ = GroupTrainer.__doc__
    config_class = RLOOConfig

    def _generate_and_score_completions(self, inputs: list) -> dict:
        """Let TRL sample and score a batch, and note the KL of a response."""
        batch = super()._generate_and_score_completions(inputs)
        self._note_kl(batch["completion_mask"])
        return batch
