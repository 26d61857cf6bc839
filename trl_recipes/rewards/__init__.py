"""Reward functions: text in, one score a sample out."""

from trl_recipes.rewards.base import RewardFunc, Rewards
from trl_recipes.rewards.sentiment import SentimentReward

__all__ = ["RewardFunc", "Rewards", "SentimentReward"]
