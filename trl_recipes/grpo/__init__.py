"""GRPO and RLOO: TRL's stable trainers with our data, rewards and run folder."""

from trl_recipes.grpo.config import GRPOConfig, RLOOConfig
from trl_recipes.grpo.trainer import GRPOTrainer, RLOOTrainer

__all__ = ["GRPOConfig", "GRPOTrainer", "RLOOConfig", "RLOOTrainer"]
