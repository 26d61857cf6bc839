"""PPO: on transformers' Trainer, without TRL."""

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
