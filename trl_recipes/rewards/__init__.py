"""Reward functions: text in, one score a sample out."""

from trl_recipes.rewards.base import RewardFunc, Rewards
from trl_recipes.rewards.loading import load_reward_funcs
from trl_recipes.rewards.patterns import KeywordReward, RegexReward, UppercaseReward
from trl_recipes.rewards.penalties import LengthPenalty, RepetitionPenalty
from trl_recipes.rewards.perplexity import PerplexityReward
from trl_recipes.rewards.reward_model import RewardModelReward
from trl_recipes.rewards.sentiment import SentimentReward
from trl_recipes.rewards.similarity import SimilarityReward
from trl_recipes.rewards.words import KnownWordsReward

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
]
