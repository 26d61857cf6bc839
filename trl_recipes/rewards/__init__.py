"""Reward functions: text in, one score a sample out."""

from trl_recipes.rewards.base import Rewards, reward_inputs, rewards_of, score_part
from trl_recipes.rewards.loading import RewardFunc, load_reward_funcs
from trl_recipes.rewards.models import PerplexityReward, RewardModelReward, SentimentReward
from trl_recipes.rewards.rules import (
    KeywordReward,
    KnownWordsReward,
    LengthPenalty,
    RegexReward,
    RepetitionPenalty,
    UppercaseReward,
)
from trl_recipes.rewards.similarity import SimilarityReward

__all__ = [
    "KeywordReward",
    "KnownWordsReward",
    "LengthPenalty",
    "PerplexityReward",
    "RegexReward",
    "RepetitionPenalty",
    "RewardFunc",
    "RewardModelReward",
    "Rewards",
    "SentimentReward",
    "SimilarityReward",
    "UppercaseReward",
    "load_reward_funcs",
    "reward_inputs",
    "rewards_of",
    "score_part",
]
