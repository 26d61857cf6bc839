"""GRPOConfig and RLOOConfig: TRL's configurations, with the names and defaults of PPOConfig."""

import os
from dataclasses import dataclass
from typing import ClassVar

import trl

from trl_recipes.errors import RecipeError
from trl_recipes.settings import TrainingSettings, divide_exactly, setting


@dataclass
class GroupConfig(TrainingSettings):
    """What GRPOConfig and RLOOConfig share beyond [`TrainingSettings`].

    Where both names of one thing are given (`response_length` and `max_completion_length`) they
    must agree; afterwards both hold the value. `batch_size` counts the responses of one process in
    a step, to `batch_size` over `num_generations` prompts; written the way of TRL, it is the
    product of `per_device_train_batch_size` and `gradient_accumulation_steps`.
    """

    refused: ClassVar[dict[str, str]] = {
        "max_prompt_length": "TRL took it out, and prompts are never cut here. Cut them as you "
        "load them: `load_prompts(..., length_sampler=LengthSampler(2, 65))`",
        "vllm_device": "TRL took it out; vLLM shares the GPUs of training (`vllm_mode` colocate), "
        "or has a server of its own",
        "use_liger_loss": "it is called `use_liger_kernel` now",
        "vllm_guided_decoding_regex": "it is called `vllm_structured_outputs_regex` now",
        "vllm_max_model_len": "it is called `vllm_max_model_length` now",
        "wandb_log_unique_prompts": "it is called `log_unique_prompts` now",
    }

    num_generations: int = setting(
        8, "Responses to each prompt, which are compared with each other; divides the batch."
    )
    num_iterations: int = setting(1, "Passes over each sampled batch, one optimizer step each.")
    max_completion_length: int | None = setting(None, "TRL's name of response_length.")
    epsilon: float = setting(0.2, "The probability ratio is clipped at 1 plus or minus this.")
    epsilon_high: float | None = setting(None, "Upper end of the clipping (default: epsilon).")
    mask_truncated_completions: bool = setting(
        False, "Learn nothing from responses that were cut at their longest length."
    )
    disable_dropout: bool = setting(
        True, "Set dropout to 0, so that a response has one log-probability (TRL's default: no)."
    )

    def _unite_names(self) -> None:
        super()._unite_names()
        if self.max_completion_length is not None and self.response_length == 16:
            self.response_length = self.max_completion_length
        self._unite("response_length", "max_completion_length")

    def _check(self) -> None:
        super()._check()
        if self.num_generations < 2:
            raise RecipeError(
                f"`num_generations` is {self.num_generations}. A response is judged against others "
                "to the same prompt, so use 2 or more; 4 to 16 are usual."
            )

    def _resolve_batch(self) -> None:
        """Work out batch, passes and what a pass holds from whichever sizes were given."""
        self._unite("mini_batch_size", "per_device_train_batch_size")
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
        sampled = self.generation_batch_size
        if sampled is None:
            processes = int(os.environ.get("WORLD_SIZE", "1"))
            sampled = self.mini_batch_size * (self.steps_per_generation or found) * processes
        name = "batch_size" if sampled == self.batch_size else "generation_batch_size"
        divide_exactly(sampled, self.num_generations, name, "num_generations")


@dataclass
class GRPOConfig(GroupConfig, trl.GRPOConfig):
    """Settings of [`GRPOTrainer`]: all of `trl.GRPOConfig`, with the names of PPOConfig."""

    beta: float = setting(
        0.04,
        "Weight of the KL to the reference in the loss; 0: no reference model, no KL "
        "(TRL's default: 0).",
    )
    loss_type: str = setting(
        "dapo", "How tokens are weighed in the loss: dapo, grpo, dr_grpo, bnpo, ... (see TRL)."
    )
    scale_rewards: str = setting(
        "group",
        "Divide advantages by the rewards' standard deviation in the group, the batch, or none.",
    )


@dataclass
class RLOOConfig(GroupConfig, trl.RLOOConfig):
    """Settings of [`RLOOTrainer`]: all of `trl.RLOOConfig`, with the names of PPOConfig."""

    beta: float = setting(0.05, "Reward taken off per nat of a response's KL; 0: no reference.")
    normalize_advantages: bool = setting(
        False, "Shift and scale the advantages of a batch to mean 0 and standard deviation 1."
    )
