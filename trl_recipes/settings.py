"""Settings that PPO, GRPO and RLOO have in common, and the range of each number among settings."""

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import torch
from transformers.integrations import get_available_reporting_integrations

from trl_recipes.distributed import init_process
from trl_recipes.errors import RecipeError
from trl_recipes.run_folder import GIVEN

TRAINABLE = ("all", "attention", "lora")
INFINITY = float("inf")
ABOVE_ZERO = math.ulp(0.0)
_NUMBERS = {int: Integral, int | None: Integral, float: Real, float | None: Real}

# Smallest and largest value of a setting, by its name; one that is left out or None is not held.
RANGES: dict[str, tuple[float, float]] = {}
for _range, _names in {
    (0, INFINITY): (
        "learning_rate weight_decay max_grad_norm min_prompt_length pretrain_learning_rate "
        "reward_learning_rate reward_noise baseline_learning_rate log_samples init_kl_coef "
        "vf_coef cliprange cliprange_value beta epsilon epsilon_high fragments_per_text "
        "reward_epochs missing_eos_penalty"
    ),
    (0, 0.99999999): "adam_beta1 adam_beta2 dropout",
    (0, 2**32 - 1): "seed",
    (1, INFINITY): (
        "per_device_train_batch_size eval_prompts max_prompts max_prompt_length prompt_length "
        "baseline_steps pretrain_steps pretrain_batch_size reward_steps reward_batch_size "
        "baseline_batch_size total_episodes lora_r n_layer n_head n_embd num_layers num_heads "
        "hidden_size pairs_per_text tokens batch evaluations query response epochs steps repeats "
        "processes batch_size mini_batch_size gradient_accumulation_steps forward_batch_size "
        "num_mini_batches response_length ppo_epochs num_iterations "
        "vllm_tensor_parallel_size vllm_max_model_length"
    ),
    (ABOVE_ZERO, INFINITY): (
        "temperature target horizon ratio_threshold score_clip logging_steps target_kl"
    ),
    (0, 1): "reward_swapped gamma lam vllm_gpu_memory_utilization",
    (20, INFINITY): "reward_outputs",  # fewer are too few to learn from and to measure on
    (2, INFINITY): "context_length reward_context_length",
    (257, INFINITY): "vocab_size",  # 256 bytes and a special token
}.items():
    RANGES |= dict.fromkeys(_names.split(), _range)


def setting(default: Any, help: str) -> Any:
    """Declare a field of a configuration by its default and the help that `--help` shows."""
    return field(default=default, metadata={"help": help})


class OwnArguments:
    """Mixin of `TrainingArguments`: keeps the names of what was given, and fits the device."""

    def __new__(cls, *args: Any, **given: Any) -> Self:
        """Keep the names, for config.yaml; the parser keeps those of flags in their place."""
        made = super().__new__(cls)
        names = [entry.name for entry in dataclasses.fields(cls) if entry.init]
        setattr(made, GIVEN, {*names[: len(args)], *given})
        return made

    def __post_init__(self):
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if str(self.resume_from_checkpoint).lower() in ("false", "0", "no"):
            self.resume_from_checkpoint = None
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # else torch warns
            self.use_cpu |= self.bf16  # transformers wants to be told
        super().__post_init__()


class _NotGiven(str):
    """The folder that transformers names where the user named none; a copy knows it by its type."""


@dataclass
class TrainingSettings(OwnArguments):
    """What PPOConfig, GRPOConfig and RLOOConfig share, as a mixin of `TrainingArguments`."""

    refused: ClassVar[dict[str, str]] = {}  # TRL's names that are no settings here, and why

    # What is trained, and for how long.
    learning_rate: float = setting(1.41e-5, "Learning rate of AdamW.")
    lr_scheduler_type: str = setting("constant", "Learning-rate schedule, as in transformers.")
    max_steps: int = setting(-1, "Steps; -1 goes by total_episodes (PPO) or num_train_epochs.")
    seed: int = setting(0, "Seed of python, numpy and torch.")
    trainable: str = setting(
        "all",
        "What is trained, beside a value head: all, attention (projections) or lora (adapter).",
    )
    merge_adapter: bool = setting(False, "Save a LoRA adapter merged into the base weights.")

    # The batch: responses of one process.
    batch_size: int | None = setting(
        None, "Responses per step and process (default: PPO 128, GRPO and RLOO 64)."
    )
    mini_batch_size: int | None = setting(
        None, "Responses in one forward and backward pass (default: what the other sizes give)."
    )
    per_device_train_batch_size: int | None = setting(
        None, "TRL's name of mini_batch_size (default: as there)."
    )
    gradient_accumulation_steps: int | None = setting(
        None,
        "Forward and backward passes that make one optimizer step (default: PPO 1, GRPO and RLOO "
        "what the batch sizes give).",
    )

    # The response.
    response_length: int = setting(16, "Longest response, in tokens.")
    temperature: float = setting(1.0, "Sampling temperature; log-probabilities use the same.")

    # Rewards.
    reward_funcs: list[str] | None = setting(
        None,
        "Reward functions in place of the recipe's own: module.path:function, file.py:function, a "
        "kind such as RepetitionPenalty, or a model; in YAML also `name: {setting: value}`.",
    )
    reward_weights: list[float] | None = setting(
        None, "Weight of each reward function (default: 1, and -1 for penalties)."
    )
    metrics: list[str] | None = setting(
        None, "Functions, named like reward_funcs, that are logged and never optimized."
    )
    reward_norm: Literal["auto", "none", "reference"] = setting(
        "auto",
        "reference: optimize each reward function's value less its mean, over its standard "
        "deviation, on samples of the start model; none: the value itself; auto: reference in PPO "
        "and RLOO, unless a sentiment's logit is the only reward.",
    )
    reward_once: bool = setting(
        False, "Let the main process call the reward functions once, for all processes."
    )

    # Precision, memory and what is seen.
    bf16: bool | None = setting(
        None, "bfloat16 autocast over float32 weights (default: on a GPU that has it)."
    )
    activation_checkpointing: bool | None = setting(
        None, "Trade compute for memory in the backward pass (default: no)."
    )
    gradient_checkpointing: bool | None = setting(None, "Old name of activation_checkpointing.")
    logging_steps: float = setting(
        1, "Steps from one row in trackers to the next (GRPO and RLOO: in all_stats.jsonl too)."
    )
    log_samples: int = setting(4, "Samples per step written to samples.jsonl.")
    save_steps: float = setting(50, "Steps from one checkpoint to the next; 0: none.")
    save_total_limit: int | None = setting(2, "Checkpoints to keep; none: all.")
    check: bool = setting(False, "Check all, try a few steps, say what a run takes; write nothing.")
    overwrite_output_dir: bool = setting(False, "Replace the run that output_dir holds.")

    def __new__(cls, *args: Any, **given: Any) -> Self:
        """Refuse settings of TRL that are none here, by whatever subclass they are given."""
        taken = {entry.name for entry in dataclasses.fields(cls) if entry.init}
        for name, reason in cls.refused.items():
            if name in given.keys() - taken:
                raise RecipeError(f"`{name}` is TRL's, and no setting here: {reason}.")
        return super().__new__(cls, *args, **given)

    def __post_init__(self):
        # without a folder nothing is written
        self.saves = not isinstance(self.output_dir, _NotGiven | None)
        self._unite_names()
        self._check()
        self._resolve_batch()
        if self.ddp_find_unused_parameters is None:  # else torch looks for some at each step
            self.ddp_find_unused_parameters = False
        if self.save_steps == 0:
            self.save_strategy = "no"
        init_process()
        super().__post_init__()
        if not self.saves:
            self.output_dir = _NotGiven(self.output_dir)

    @property
    def should_save(self) -> bool:
        """Whether this process writes files: the main one, and only where output_dir was given."""
        return self.saves and super().should_save

    def save_to(self, output_dir: str) -> None:
        """Write to this run folder where the user named none; `reward_funcs` name theirs."""
        if self.saves:
            return
        if self.reward_funcs:
            specs = [next(iter(s)) if isinstance(s, dict) else s for s in self.reward_funcs]
            names = [re.split(r"[:/]", spec.rstrip("/"))[-1] for spec in specs]
            output_dir = "-".join([output_dir.partition("-")[0], *names])
        self.saves, self.output_dir = True, output_dir

    def _unite_names(self) -> None:
        self._unite("activation_checkpointing", "gradient_checkpointing", default=False)

    def _unite(self, ours: str, other: str, default: Any = None) -> None:
        """Give both names of one thing the value that either was given, or the default."""
        first, second = getattr(self, ours), getattr(self, other)
        if first is not None and second is not None and first != second:
            raise RecipeError(
                f"`{ours}` ({first}) and `{other}` ({second}) are two names of one thing and "
                "differ. Give one of them."
            )
        value = second if first is None else first
        value = default if value is None else value
        setattr(self, ours, value)
        setattr(self, other, value)

    def _check(self) -> None:
        self._check_choice("trainable", TRAINABLE)
        for entry in dataclasses.fields(self):
            name, value = entry.name, getattr(self, entry.name)
            kind = _NUMBERS.get(entry.type, object)
            if value is not None and not isinstance(value, kind):
                whole = "whole " * (kind is Integral)
                raise RecipeError(f"`{name}` is {value!r}. It must be a {whole}number.")
            check_range(name, value)
        if self.max_steps < 1 and self.max_steps != -1:
            raise RecipeError(
                f"`max_steps` is {self.max_steps}. Use 1 or more, or -1 to go by epochs."
            )
        if self.fp16:
            raise RecipeError(
                "`fp16` is refused: the probability ratio needs more than float16 resolves, and "
                "AdamW on float16 weights turns to NaN. Use `bf16`, or leave both out for float32."
            )
        for entry in () if self.use_vllm else dataclasses.fields(self):
            name = entry.name
            if name.startswith("vllm_") and getattr(self, name) != entry.default:
                raise RecipeError(f"`{name}` is vLLM's. Set `use_vllm` to true, or leave it out.")

    def _check_choice(self, name: str, allowed: Iterable[str]) -> None:
        if getattr(self, name) not in allowed:
            raise RecipeError(
                f"Unknown `{name}` {getattr(self, name)!r}. Choose one of: {', '.join(allowed)}."
            )


def check_range(name: str, value: Any) -> None:
    """Hold one setting to `RANGES`; what is no number is left to its own check."""
    low, high = RANGES.get(name, (-INFINITY, INFINITY))
    if name not in RANGES or not isinstance(value, int | float):
        return
    if not low <= value <= high or value == INFINITY:
        allowed = f"{low} or more" if high == INFINITY else f"from {low:g} to {high:g}"
        allowed = "greater than 0" if low == ABOVE_ZERO else allowed
        raise RecipeError(f"`{name}` is {value}. It must be {allowed}.")


def divide_exactly(total: int, part: int | None, total_name: str, part_name: str) -> int:
    """Divide one size by another (None: by 1), or say which numbers would do.

    >>> divide_exactly(128, 32, "batch_size", "mini_batch_size")
    4
    """
    part = part or 1
    if total % part == 0:
        return total // part
    below, above = total // part * part, (total // part + 1) * part
    fitting = " or ".join(str(n) for n in (below, above) if n)
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    raise RecipeError(
        f"`{total_name}` ({total}) must be a multiple of `{part_name}` ({part}). Set {total_name} "
        f"to {fitting}, or {part_name} to a divisor of {total}: {', '.join(map(str, divisors))}."
    )


def check_trackers(report_to: str | Iterable[str] | None) -> None:
    """Refuse a tracker that is not there, before anything is trained."""
    installed = get_available_reporting_integrations()
    for tracker in [report_to] if isinstance(report_to, str) else report_to or []:
        if tracker not in ("none", "all", *installed):
            raise RecipeError(
                f"`report_to`: the tracker '{tracker}' is unknown or not installed. Installed: "
                f"{', '.join(installed) or 'none'}. Install its package, or leave it out."
            )


def check_evaluation(settings: Any) -> None:
    """Refuse to evaluate while training, which no recipe does, before anything is trained."""
    for name in ("eval_strategy", "eval_on_start"):
        if getattr(settings, name, "no") not in ("no", False):
            raise RecipeError(
                f"`{name}`: recipes measure held-out data when training has ended, not on the way. "
                "Leave it out; a recipe of your own that has an `eval_dataset` sets it in `main`."
            )
