"""Reinforcement-learning recipes for language models, on TRL.

Names are loaded when they are first used, so that `import trl_recipes` is instant.
"""

import importlib

__version__ = "0.1.0"

_NAMES = {
    "arguments": ("run_recipe",),
    "data.files": ("load_rows",),
    "data.prompts": ("LengthSampler", "PromptArguments", "collator", "load_prompts", "one_prompt"),
    "describe": ("printable",),
    "embedded": ("language_model",),
    "errors": ("RecipeError",),
    "evaluation.compare": ("compare",),
    "evaluation.judges": ("sentiment_measures", "trained_measures"),
    "grpo": ("GRPOConfig", "GRPOTrainer", "RLOOConfig", "RLOOTrainer"),
    "core": ("set_seed",),
    "text_environment": ("TextEnvironment", "TextHistory"),
    "models.loading": ("load_run", "load_tokenizer", "model_kwargs"),
    "models.generation": ("BestOfNSampler", "generate_responses"),
    "ppo": (
        "AutoModelForCausalLMWithValueHead",
        "AutoModelForSeq2SeqLMWithValueHead",
        "PPOConfig",
        "PPOTrainer",
        "create_reference_model",
    ),
    "report": ("write_comparison", "write_report", "write_results"),
    "report.plots": ("plot_stats",),
    "rewards": ("Rewards", "SentimentReward"),
    "run_folder": ("check_run", "start_run"),
    "settings": ("setting",),
    "stats": ("load_stats",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"trl_recipes.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'trl_recipes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
