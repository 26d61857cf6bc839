"""PPO: on transformers' Trainer, without TRL."""

from trl_recipes.ppo.config import PPOConfig
from trl_recipes.ppo.models import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    create_reference_model,
)
from trl_recipes.ppo.trainer import PPOTrainer

__all__ = [
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "PPOConfig",
    "PPOTrainer",
    "create_reference_model",
]
