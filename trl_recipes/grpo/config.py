"""GRPOConfig and RLOOConfig: TRL's configurations, with the names and defaults of PPOConfig."""

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any

import torch
import trl

from trl_recipes.distributed import init_process
from trl_recipes.errors import RecipeError
from trl_recipes.models.adapters import TRAINABLE
from trl_recipes.settings import check_range, divide_exactly


def _field(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class GroupConfig:
    """What GRPOConfig and RLOOConfig share: settings that are named and set as in PPOConfig.

    Where both names of one thing are given (`response_length` and `max_completion_length`,
    `mini_batch_size` and `per_device_train_batch_size`) they must agree; afterwards both hold the
    value. `batch_size` counts the responses of one process in a step, so there are `batch_size`
    over `num_generations` prompts a step; written the way of TRL
    (`per_device_train_batch_size` and `gradient_accumulation_steps` without `batch_size`), it
    is their product.
    """

    # What is trained, and for how long.
    learning_rate: float = _field(1.41e-5, "Learning rate of AdamW.")
    lr_scheduler_type: str = _field("constant", "Learning-rate schedule, by its transformers name.")
    max_steps: int = _field(-1, "Number of optimizer steps; -1 goes by num_train_epochs.")
    seed: int = _field(0, "Seed of python, numpy and torch.")
    trainable: str = _field(
        "all", "What is trained: all, attention (its projections) or lora (an adapter)."
    )
    merge_adapter: bool = _field(
        False, "Merge a LoRA adapter into the base weights when the model is saved."
    )

    # The batch: responses of one process.
    batch_size: int | None = _field(None, "Responses a step and process (default 64).")
    num_generations: int = _field(
        8, "Responses to each prompt, which are compared with each other; divides the batch."
    )
    mini_batch_size: int | None = _field(
        None, "Responses in one forward and backward pass (default: all of the batch)."
    )
    per_device_train_batch_size: int | None = _field(
        None, "TRL's name of mini_batch_size (default: as there)."
    )
    gradient_accumulation_steps: int | None = _field(
        None, "Passes that make one step (default: what batch_size and mini_batch_size give)."
    )
    num_iterations: int = _field(
        1, "Optimizer steps made with each sampled batch: its number of passes."
    )

    # The response.
    response_length: int = _field(16, "Longest response, in tokens.")
    max_completion_length: int | None = _field(
        None, "TRL's name of response_length (default: as there)."
    )
    temperature: float = _field(1.0, "Sampling temperature; log-probabilities use the same.")
    mask_truncated_completions: bool = _field(
        False, "Learn nothing from responses that were cut at their longest length."
    )

    # Rewards.
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

    # Precision, memory and what is seen.
    trust_remote_code: bool = _field(False, "Run code that a model from the hub brings along.")
    disable_dropout: bool = _field(
        True, "Set dropout to 0, so that a response has one log-probability (TRL's default: no)."
    )
    bf16: bool | None = _field(
        None, "bfloat16 autocast over float32 weights (default: on a GPU that has it)."
    )
    activation_checkpointing: bool | None = _field(
        None, "Trade compute for memory in the backward pass (default: no; TRL's is yes)."
    )
    gradient_checkpointing: bool | None = _field(None, "Old name of activation_checkpointing.")
    dataloader_pin_memory: bool | None = _field(
        None, "Copy prompts to a GPU through pinned memory (default: where there is a GPU)."
    )
    logging_steps: float = _field(
        1, "Steps that one row of statistics stands for (TRL's default: 10)."
    )
    log_samples: int = _field(4, "Samples a step written to samples.jsonl.")
    save_steps: float = _field(50, "Steps from one checkpoint to the next; 0: none.")
    save_total_limit: int | None = _field(2, "Checkpoints to keep; none: all.")
    check: bool = _field(
        False, "Check everything, try a few steps, say what the run takes; write nothing."
    )
    overwrite_output_dir: bool = _field(False, "Replace the run that output_dir holds.")

    def __post_init__(self):
        self.saves = self.output_dir is not None  # without a folder nothing is written
        if self.max_completion_length is not None and self.response_length == 16:
            self.response_length = self.max_completion_length
        self._unite("response_length", "max_completion_length", 16)
        self._unite("activation_checkpointing", "gradient_checkpointing", False)
        self._resolve_batch()
        self._check()
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = torch.accelerator.is_available()
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # transformers wants to be told
        init_process()
        if self.save_steps == 0:
            self.save_strategy = "no"
        if self.ddp_find_unused_parameters is None:  # else torch looks for some at each step
            self.ddp_find_unused_parameters = False
        super().__post_init__()

    @property
    def should_save(self) -> bool:
        """Whether this process writes files: the main one, and only where output_dir was given."""
        return self.saves and super().should_save

    @property
    def groups(self) -> int:
        """Prompts of one sampled batch, over all processes."""
        return self.generation_batch_size // self.num_generations

    def save_to(self, output_dir: str) -> None:
        """Write to this folder where the user named none.

        Args:
            output_dir: the run folder that a recipe proposes.
        """
        if not self.saves:
            self.saves, self.output_dir = True, output_dir

    def _unite(self, ours: str, trls: str, default: Any) -> None:
        """Give both names of one thing one value."""
        first, second = getattr(self, ours), getattr(self, trls)
        if first is not None and second is not None and first != second:
            raise RecipeError(
                f"`{ours}` ({first}) and `{trls}` ({second}) are two names of one thing and "
                "differ. Give one of them."
            )
        value = second if first is None else first
        value = default if value is None else value
        setattr(self, ours, value)
        setattr(self, trls, value)

    def _resolve_batch(self) -> None:
        """Work out batch, passes and what a pass holds from whichever sizes were given."""
        for name in ("batch_size", "mini_batch_size", "gradient_accumulation_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"`{name}` must be at least 1, got {value}.")
        self._unite("mini_batch_size", "per_device_train_batch_size", None)
        passes = self.gradient_accumulation_steps
        if self.batch_size is None:
            in_pass = self.mini_batch_size
            self.batch_size = 64 if in_pass is None else in_pass * (passes or 1)
        if self.mini_batch_size is None:
            self.mini_batch_size = divide_exactly(
                self.batch_size, passes, "batch_size", "gradient_accumulation_steps"
            )
        found = divide_exactly(
            self.batch_size, self.mini_batch_size, "batch_size", "mini_batch_size"
        )
        if passes not in (None, found):
            raise RecipeError(
                f"`gradient_accumulation_steps` is {passes}, but batch_size {self.batch_size} in "
                f"passes of {self.mini_batch_size} makes {found}. Leave one of them out."
            )
        self.gradient_accumulation_steps = found
        self.per_device_train_batch_size = self.mini_batch_size

    def _check(self) -> None:
        if self.trainable not in TRAINABLE:
            raise RecipeError(
                f"Unknown `trainable` {self.trainable!r}. Choose one of: {', '.join(TRAINABLE)}."
            )
        for name in ("temperature", "response_length", "num_iterations", "logging_steps"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"`{name}` must be greater than 0, got {getattr(self, name)}.")
        for settings in dataclasses.fields(self):
            check_range(settings.name, getattr(self, settings.name))
        if self.max_steps < 1 and self.max_steps != -1:
            raise RecipeError(
                f"`max_steps` is {self.max_steps}. Use 1 or more, or -1 to go by num_train_epochs."
            )
        if getattr(self.logging_strategy, "value", self.logging_strategy) != "steps":
            raise RecipeError(
                f"`logging_strategy` is {self.logging_strategy}. Leave it at steps: pictures and "
                "comparisons read a row for every `logging_steps` steps."
            )
        if self.fp16:
            raise RecipeError(
                "`fp16` is refused: the probability ratio needs more than float16 resolves, and "
                "AdamW on float16 weights turns to NaN. Use `bf16`, or leave both out for float32."
            )
        if self.num_generations < 2:
            raise RecipeError(
                f"`num_generations` is {self.num_generations}. A response is judged against others "
                "to the same prompt, so use 2 or more; 4 to 16 are usual."
            )
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if self.generation_batch_size is None:
            passes = self.steps_per_generation or self.gradient_accumulation_steps
            self._check_group_size(self.mini_batch_size * passes * processes, processes)
        else:
            self._check_group_size(self.generation_batch_size, processes)

    def _check_group_size(self, sampled: int, processes: int) -> None:
        """Hold the size of a group to the number of responses sampled together."""
        size = self.num_generations
        if sampled % size == 0:
            return
        sizes = [n for n in range(2, sampled + 1) if sampled % n == 0]
        near = sorted(sizes, key=lambda n: (abs(n - size), n))[:3]
        fitting = [n for n in (sampled // size * size, (sampled // size + 1) * size) if n]
        fitting = [n for n in fitting if n % processes == 0] or [size * processes]
        batches = " or ".join(str(n // processes) for n in fitting)
        of = f" over {processes} processes" if processes > 1 else ""
        raise RecipeError(
            f"`num_generations` ({size}) must divide the {sampled} responses that are sampled "
            f"together{of}: every prompt gets as many. Set num_generations to "
            f"{' or '.join(map(str, sorted(near)))}, or batch_size to {batches}."
        )


@dataclass
class GRPOConfig(GroupConfig, trl.GRPOConfig):
    """Settings of [`GRPOTrainer`]: those of `trl.GRPOConfig`, with the names of PPOConfig.

    Every field of `trl.GRPOConfig` and of `transformers.TrainingArguments` works too.

    Raises:
        RecipeError: a value out of range, two names that differ, or sizes that do not divide.
    """

    beta: float = _field(
        0.04,
        "Weight of the KL to the reference in the loss; 0: no reference model, no KL "
        "(TRL's default: 0).",
    )
    epsilon: float = _field(0.2, "The probability ratio is clipped at 1 plus or minus this.")
    epsilon_high: float | None = _field(None, "Upper end of the clipping (default: epsilon).")
    loss_type: str = _field(
        "dapo", "How tokens are weighed in the loss: dapo, grpo, dr_grpo, bnpo, ... (see TRL)."
    )
    scale_rewards: str = _field(
        "group", "Divide advantages by the rewards' spread in the group, the batch, or none."
    )


@dataclass
class RLOOConfig(GroupConfig, trl.RLOOConfig):
    """Settings of [`RLOOTrainer`]: those of `trl.RLOOConfig`, with the names of PPOConfig.

    Every field of `trl.RLOOConfig` and of `transformers.TrainingArguments` works too.

    Raises:
        RecipeError: a value out of range, two names that differ, or sizes that do not divide.
    """

    beta: float = _field(
        0.05, "Reward taken off for each nat of a response's KL; 0: no reference model."
    )
    epsilon: float = _field(0.2, "The probability ratio is clipped at 1 plus or minus this.")
    epsilon_high: float | None = _field(None, "Upper end of the clipping (default: epsilon).")
    normalize_advantages: bool = _field(
        False, "Shift and scale the advantages of a batch to mean 0 and spread 1."
    )
