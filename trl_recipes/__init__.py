"""Reinforcement-learning recipes for language models, on TRL.

Names are loaded when they are first used, so that `import trl_recipes` is instant.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "AutoModelForCausalLMWithValueHead": "ppo",
    "AutoModelForSeq2SeqLMWithValueHead": "ppo",
    "PPOConfig": "ppo",
    "PPOTrainer": "ppo",
    "create_reference_model": "ppo",
    "GRPOConfig": "grpo",
    "GRPOTrainer": "grpo",
    "RLOOConfig": "grpo",
    "RLOOTrainer": "grpo",
    "LengthSampler": "data.prompts",
    "collator": "data.prompts",
    "load_prompts": "data.prompts",
    "load_rows": "data.prompts",
    "RecipeError": "errors",
    "generate_responses": "models.sampling",
    "load_run": "models.loading",
    "load_tokenizer": "models.loading",
    "Rewards": "rewards",
    "SentimentReward": "rewards",
    "load_stats": "stats",
    "plot_stats": "report.plots",
    "write_report": "report",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"trl_recipes.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'trl_recipes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
