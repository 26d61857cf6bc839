"""PPO: the only package that knows `trl.experimental`."""

import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # the version is pinned, so no notice is due

from trl_recipes.ppo.config import PPOConfig
from trl_recipes.ppo.trainer import PPOTrainer
from trl_recipes.ppo.value_head import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    create_reference_model,
)

__all__ = [
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "PPOConfig",
    "PPOTrainer",
    "create_reference_model",
]
