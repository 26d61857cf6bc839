"""PPOConfig: TRL's configuration, plus the names that classic users wrote."""

import dataclasses
import functools
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from trl_recipes.distributed import init_process
from trl_recipes.errors import RecipeError
from trl_recipes.models.adapters import TRAINABLE
from trl_recipes.settings import check_range, divide_exactly

KL_PENALTIES = ("kl", "abs", "mse", "full", "k3")

# Classic options that scripts read back and no trainer ever did.
LABELS = ("model_name", "reward_model", "query_dataset", "task_name", "exp_name")

# Classic options that no longer do anything, and why.
WITHOUT_MEANING = {
    "steps": "TRL never read it; your loop decides, or `max_steps` for train()",
    "tracker_project_name": "trackers of `report_to` take their project from the environment",
    "tracker_kwargs": "trackers of `report_to` take their settings from the environment",
    "accelerator_kwargs": "give them to `accelerate launch`",
    "project_kwargs": "the run folder is `output_dir`",
    "push_to_hub_if_best_kwargs": "use `push_to_hub`",
    "compare_steps": "it belonged to push_to_hub_if_best_kwargs",
    "is_encoder_decoder": "the trainer reads it from the model",
    "is_peft_model": "the trainer reads it from the model",
    "sft_model_path": "give the model to the trainer",
    "reward_model_path": "give reward functions to the trainer",
    "missing_eos_penalty": "write it as a reward function",
    "ds3_gather_for_generation": "PPO does not train under DeepSpeed",
    "dataset_num_proc": "TRL's trainer never read it",
    "model_adapter_name": "the adapter that is active is trained",
}
_warned: set[str] = set()


def _field(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def _with_classic_arguments(cls: type) -> type:
    """Let a configuration be called with classic arguments that are no fields of it."""
    init = cls.__init__

    @functools.wraps(init)
    def __init__(self, *args, **kwargs):
        for name in LABELS:
            setattr(self, name, kwargs.pop(name, None))
        for name in WITHOUT_MEANING.keys() & kwargs.keys():
            kwargs.pop(name)
            if name not in _warned:
                _warned.add(name)
                warnings.warn(
                    f"`{name}` no longer means anything: {WITHOUT_MEANING[name]}.", stacklevel=2
                )
        if "optimize_cuda_cache" in kwargs:
            kwargs["optimize_device_cache"] = kwargs.pop("optimize_cuda_cache")
        init(self, *args, **kwargs)

    cls.__init__ = __init__
    return cls


@_with_classic_arguments
@dataclass
class PPOConfig(TrainingArguments):
    """Settings of [`PPOTrainer`]: those of TRL 1.12 and those of TRL 0.11, one meaning each.

    Where both names of one thing are given (`ppo_epochs` and `num_ppo_epochs`, `init_kl_coef` and
    `kl_coef`, `mini_batch_size` and `per_device_train_batch_size`, `log_with` and `report_to`) they
    must agree; afterwards both hold the value. Batch sizes count samples of one process, as in TRL
    0.11; `gradient_accumulation_steps` is the number of forward and backward passes that make one
    optimizer step. Written the way of TRL 1.12 (`per_device_train_batch_size` without
    `batch_size`), it says how many such passes make one batch, as there, and is turned into ours.

    Every field of `transformers.TrainingArguments` works too.

    Raises:
        RecipeError: a value out of range, two names that differ, or batch sizes that do not divide.
    """

    # What is trained, and for how long.
    learning_rate: float = _field(1.41e-5, "Learning rate of AdamW.")
    lr_scheduler_type: str = _field("constant", "Learning-rate schedule, by its transformers name.")
    max_steps: int = _field(
        -1, "Number of PPO steps; -1 goes by total_episodes or num_train_epochs."
    )
    seed: int = _field(0, "Seed of python, numpy and torch.")
    trainable: str = _field(
        "all", "What is trained beside the value head: all, attention (its projections) or lora."
    )
    merge_adapter: bool = _field(
        False, "Merge a LoRA adapter into the base weights when the model is saved."
    )

    # The batch: samples of one process.
    batch_size: int | None = _field(None, "Samples a step and process (default 128).")
    mini_batch_size: int | None = _field(
        None, "Samples in one forward and backward pass (default: all of an optimizer step's)."
    )
    gradient_accumulation_steps: int | None = _field(
        None, "Forward and backward passes that make one optimizer step (default 1)."
    )
    per_device_train_batch_size: int | None = _field(
        None, "TRL 1.12's name of mini_batch_size (default: as there)."
    )
    num_mini_batches: int | None = _field(
        None, "Optimizer steps an epoch over the batch (default 1, or what the sizes give)."
    )
    ppo_epochs: int | None = _field(None, "Passes over each batch (default 4).")
    num_ppo_epochs: int | None = _field(None, "TRL 1.12's name of ppo_epochs (default 4).")

    total_episodes: int | None = _field(
        None, "Responses in all (default: num_train_epochs times the data set)."
    )
    num_total_batches: int | None = _field(None, "PPO steps in all; the trainer works it out.")
    local_rollout_forward_batch_size: int = _field(
        64, "Sequences in one forward pass that needs no gradient."
    )

    # The response.
    response_length: int = _field(16, "Longest response, in tokens.")
    min_response_length: int | None = _field(
        4,
        "Shortest limit drawn for a response, up to response_length; none: always response_length.",
    )
    temperature: float = _field(1.0, "Sampling temperature; log-probabilities use the same.")
    stop_token: Literal["eos"] | None = _field("eos", "Token that ends a response: eos, or none.")

    # The objective.
    init_kl_coef: float | None = _field(None, "KL coefficient at the start (default 0.2).")
    kl_coef: float | None = _field(None, "TRL 1.12's name of init_kl_coef (default 0.2).")
    kl_penalty: str | None = _field(
        None, "KL penalty a token: kl (log ratio, the default), abs, mse, full or k3."
    )
    kl_estimator: str | None = _field(None, "TRL 1.12's kl_penalty: k1 (which is kl) or k3.")
    adap_kl_ctrl: bool = _field(True, "Adapt the KL coefficient so that the KL nears target.")
    target: float = _field(6.0, "KL a sequence that the adaptive controller aims at, in nats.")
    horizon: float = _field(10000.0, "Episodes over which the adaptive controller acts.")
    ratio_threshold: float = _field(
        10.0, "An optimizer step whose mean probability ratio exceeds this is skipped and counted."
    )
    early_stopping: bool = _field(False, "Leave a batch's epochs once the policy moved too far.")
    target_kl: float = _field(1.0, "early_stopping leaves at 1.5 times this, in nats a token.")
    max_grad_norm: float | None = _field(
        None, "Clip gradients to this norm (default: no clipping)."
    )

    cliprange: float = _field(0.2, "The probability ratio is clipped to 1 plus or minus this.")
    cliprange_value: float = _field(0.2, "Values are clipped to plus or minus this of the old.")
    vf_coef: float = _field(0.1, "Weight of the value loss.")
    gamma: float = _field(1.0, "Discount of rewards, a token.")
    lam: float = _field(0.95, "Lambda of the generalised advantages.")
    whiten_rewards: bool = _field(False, "Whiten the rewards of tokens.")

    # Scores.
    reward_funcs: list[str] | None = _field(
        None,
        "Reward functions in place of the recipe's own: module.path:function, file.py:function, a "
        "kind such as RepetitionPenalty, or a model; in YAML also `name: {setting: value}`.",
    )
    reward_weights: list[float] | None = _field(
        None, "Weight of each reward function (default: 1, and -1 for penalties)."
    )
    metrics: list[str] | None = _field(
        None, "Functions, named like reward_funcs, that are logged and never optimised."
    )
    reward_once: bool = _field(
        False, "Let the main process call the reward functions once, for all processes."
    )
    reward_norm: Literal["none", "reference"] = _field(
        "none",
        "reference: optimise each reward function's value less its mean, over its spread, on "
        "samples of the reference model taken at the start.",
    )
    use_score_scaling: bool = _field(False, "Divide scores by their running standard deviation.")
    use_score_norm: bool = _field(False, "With use_score_scaling: subtract the running mean first.")
    score_clip: float | None = _field(None, "Clip scores to plus or minus this (default: none).")

    trl_0_11_quirks: bool | None = _field(
        None,
        "Compute what TRL 0.11.4 computed where it was wrong: clip gradients at the first "
        "optimizer step alone, let padding into whitened rewards, leave an encoder-decoder's first "
        "token out (default: in a hand-written loop, which then gives TRL's figures; not in "
        "train()).",
    )

    trust_remote_code: bool = _field(False, "Run code that a model from the hub brings along.")

    # Precision, memory and what is seen.
    bf16: bool | None = _field(
        None, "bfloat16 autocast over float32 weights (default: on a GPU that has it)."
    )
    activation_checkpointing: bool | None = _field(
        None, "Trade compute for memory in the backward pass (default: no)."
    )
    gradient_checkpointing: bool | None = _field(None, "Old name of activation_checkpointing.")
    optimize_device_cache: bool = _field(False, "Empty the device's cache after each step.")
    logging_steps: float = _field(1, "Steps between two rows sent to the trackers of report_to.")
    log_samples: int = _field(4, "Samples a step written to samples.jsonl.")
    save_steps: float = _field(50, "Steps from one checkpoint to the next; 0: none.")
    save_total_limit: int | None = _field(2, "Checkpoints to keep; none: all.")
    check: bool = _field(
        False, "Check everything, try a few steps, say what the run takes; write nothing."
    )
    overwrite_output_dir: bool = _field(False, "Replace the run that output_dir holds.")
    log_with: str | list[str] | None = _field(None, "TRL 0.11's name of report_to.")
    num_sample_generations: int = _field(0, "TRL 1.12's table of samples; use log_samples.")

    ref_adapter_name: str | None = _field(None, "Adapter that is the reference model.")

    forward_batch_size: int | None = _field(None, "Old name of mini_batch_size.")

    def __post_init__(self):
        self.saves = self.output_dir is not None  # without a folder nothing is written
        trl_batch = self.batch_size is None and self.mini_batch_size is None
        trl_batch &= (
            self.forward_batch_size is None and self.per_device_train_batch_size is not None
        )
        self._unite_names()
        if trl_batch:
            self._read_trl_batch()
        self._resolve_batch()
        self._check()
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # transformers wants to be told
        init_process()
        super().__post_init__()

    @property
    def should_save(self) -> bool:
        """Whether this process writes files: the main one, and only where output_dir was given."""
        return self.saves and super().should_save

    def save_to(self, output_dir: str) -> None:
        """Write to this folder where the user named none.

        Args:
            output_dir: the run folder that a recipe proposes.
        """
        if not self.saves:
            self.saves, self.output_dir = True, output_dir

    @property
    def backward_batch_size(self) -> int:
        """Samples of one process in one optimizer step."""
        return self.mini_batch_size * self.gradient_accumulation_steps

    @property
    def global_batch_size(self) -> int:
        """Samples a step over all processes."""
        return self.batch_size * (self.world_size or 1)

    def _unite_names(self) -> None:
        """Give both names of one thing one value."""
        if self.kl_estimator is not None:
            self.kl_estimator = {"k1": "kl"}.get(self.kl_estimator, self.kl_estimator)
        self.kl_penalty = self._one_of("kl_penalty", "kl_estimator") or "kl"
        self.kl_estimator = "k3" if self.kl_penalty == "k3" else "k1"
        for classic, modern, default in (
            ("activation_checkpointing", "gradient_checkpointing", False),
            ("ppo_epochs", "num_ppo_epochs", 4),
            ("init_kl_coef", "kl_coef", 0.2),
            ("mini_batch_size", "forward_batch_size", None),
            ("mini_batch_size", "per_device_train_batch_size", None),
        ):
            value = self._one_of(classic, modern)
            value = default if value is None else value
            setattr(self, classic, value)
            if modern != "forward_batch_size":
                setattr(self, modern, value)
        if self.log_with is not None:
            trackers = [self.log_with] if isinstance(self.log_with, str) else list(self.log_with)
            given = (
                [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or [])
            )
            if given not in ([], ["none"], trackers):
                raise RecipeError(
                    f"`log_with` ({trackers}) and `report_to` ({given}) are two names of one thing "
                    "and differ. Give one of them."
                )
            self.report_to = trackers

    def _one_of(self, classic: str, modern: str) -> Any:
        first, second = getattr(self, classic), getattr(self, modern)
        if first is not None and second is not None and first != second:
            raise RecipeError(
                f"`{classic}` ({first}) and `{modern}` ({second}) are two names of one thing and "
                "differ. Give one of them."
            )
        return second if first is None else first

    def _resolve_batch(self) -> None:
        """Work out batch, optimizer step and forward pass from whichever sizes were given."""
        for name in (
            "batch_size",
            "mini_batch_size",
            "gradient_accumulation_steps",
            "num_mini_batches",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"`{name}` must be at least 1, got {value}.")
        accumulate = self.gradient_accumulation_steps or 1
        if self.batch_size is None:
            self.batch_size = 128
        if self.mini_batch_size is None:
            step = accumulate * (self.num_mini_batches or 1)
            name = "gradient_accumulation_steps * num_mini_batches"
            self.mini_batch_size = divide_exactly(self.batch_size, step, "batch_size", name)
        self.gradient_accumulation_steps = accumulate
        steps = divide_exactly(
            self.batch_size,
            self.backward_batch_size,
            "batch_size",
            "mini_batch_size * gradient_accumulation_steps",
        )
        if self.num_mini_batches not in (None, steps):
            raise RecipeError(
                f"`num_mini_batches` is {self.num_mini_batches}, but batch_size "
                f"{self.batch_size} in "
                f"optimizer steps of {self.backward_batch_size} makes {steps}. Leave one of them "
                f"out."
            )
        self.num_mini_batches = steps
        self.per_device_train_batch_size = self.mini_batch_size

    def _read_trl_batch(self) -> None:
        """Read the sizes the way of TRL 1.12, where accumulation makes the batch, not the step."""
        passes = self.gradient_accumulation_steps or 1
        self.batch_size = self.mini_batch_size * passes
        self.gradient_accumulation_steps = divide_exactly(
            passes, self.num_mini_batches, "gradient_accumulation_steps", "num_mini_batches"
        )

    def _check(self) -> None:
        for name, allowed in (("kl_penalty", KL_PENALTIES), ("trainable", TRAINABLE)):
            if getattr(self, name) not in allowed:
                raise RecipeError(
                    f"Unknown `{name}` {getattr(self, name)!r}. Choose one of: "
                    f"{', '.join(allowed)}."
                )
        positive = ["target", "horizon", "temperature", "ratio_threshold", "response_length"]
        positive += [] if self.score_clip is None else ["score_clip"]
        for name in positive + (["ppo_epochs"] if self.ppo_epochs is not None else []):
            if not getattr(self, name) > 0:
                raise RecipeError(f"`{name}` must be greater than 0, got {getattr(self, name)}.")
        for settings in dataclasses.fields(self):
            check_range(settings.name, getattr(self, settings.name))
        if self.max_steps < 1 and self.max_steps != -1:
            raise RecipeError(
                f"`max_steps` is {self.max_steps}. Use 1 or more, or -1 to go by total_episodes."
            )
        shortest = self.min_response_length
        if shortest is not None and not 1 <= shortest <= self.response_length:
            raise RecipeError(
                f"`min_response_length` ({shortest}) must lie between 1 and `response_length` "
                f"({self.response_length})."
            )
        if self.fp16:
            raise RecipeError(
                "`fp16` is refused: the probability ratio needs more than float16 resolves, and "
                "AdamW "
                "on float16 weights turns to NaN. Use `bf16`, or leave both out for float32."
            )
