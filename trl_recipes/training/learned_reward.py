"""A reward whose model is trained in the same run, on texts that are not prompts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import set_seed

from trl_recipes.data.conversations import Texts
from trl_recipes.data.files import load_rows
from trl_recipes.data.prompts import TEXT_COLUMNS, PromptArguments
from trl_recipes.errors import RecipeError
from trl_recipes.models.loading import load_tokenizer
from trl_recipes.rewards import RewardModelReward, SentimentReward
from trl_recipes.settings import setting
from trl_recipes.training.fit import stage_settings
from trl_recipes.training.reward_data import read_reward_data
from trl_recipes.training.reward_model import (
    ClassifierSizes,
    RewardModelConfig,
    base_model,
    train_reward_model,
)
from trl_recipes.training.stage import digest, settings_of


@dataclass
class RewardArguments:
    """What the reward model learns from, and how it is trained."""

    label_column: str = setting("label", "Column that holds the label.")
    reward_share: float = setting(0.5, "Fraction of the reviews that teach it, not prompts.")
    reward_base: str | None = setting(None, "Base model, or `embedded`; none when left out.")
    reward_epochs: float = setting(3.0, "Its passes over the rows.")
    reward_batch_size: int = setting(16, "Its rows in a step.")
    reward_learning_rate: float | None = setting(
        None, "Its peak learning rate (default: 5e-5 from a base model of yours, else 1e-3)."
    )
    reward_context_length: int = setting(128, "Its longest row, in tokens; longer texts are cut.")

    def __post_init__(self):
        if not 0 < self.reward_share < 1:
            raise RecipeError(
                f"--reward_share is {self.reward_share}. Give a fraction between 0 and 1: the "
                "reward model learns from it, the rest are prompts."
            )


def divide(rows: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split rows at random into two parts, each in the original order."""
    order = np.random.default_rng(seed).permutation(len(rows))
    count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
    return rows.select(np.sort(order[:count])), rows.select(np.sort(order[count:]))


class LearnedReward:
    """A reward function whose model is trained later; `ready` is false until `load`.

    Of the embedded reviews it learns from the split "prompts", which no other embedded model saw.
    `train`, `config` and `settings` are for its `Stage`; `heldout` measures it; `base` and
    `source` say in words what it starts and learns from.
    """

    __name__ = "reward_model"

    def __init__(self, args: RewardArguments, prompts: PromptArguments, config: Any, *, label: str):
        if config.reward_funcs:
            raise RecipeError(
                f"--reward_funcs {' '.join(map(str, config.reward_funcs))}: this recipe trains its "
                "own reward. Leave them out, or use recipes/ppo_sentiment.py."
            )
        name, base = prompts.dataset_name, base_model(args.reward_base)
        self.label, self.seed, self.text_column = label, config.seed, prompts.text_column
        self.source = name or "the embedded reviews"
        self.base = args.reward_base or "a small ModernBERT from scratch"
        rows = load_rows(name, split="train" if name else "prompts")
        self._seen, _ = divide(rows, args.reward_share, config.seed)
        columns = {"text_column": prompts.text_column, "label_column": args.label_column}
        self._data, self.heldout = read_reward_data(
            *(self._seen, load_rows(name, split="test"), self.source),
            tokenizer=load_tokenizer(base) if base else None,
            seed=config.seed,
            **columns,
        )
        self._names = self._data.names
        _check_label(label, self._names, self.source)
        content = (*asdict(self._data).values(), *asdict(self.heldout).values())
        self.settings = settings_of(args) | {"seed": config.seed, "data": digest(content)}
        self.config = RewardModelConfig(save_steps=200, **stage_settings(args, "reward", config))
        sizes = ClassifierSizes(vocab_size=4000, context_length=args.reward_context_length)
        start = {"model_name_or_path": base, "sizes": sizes}
        self.train = partial(train_reward_model, self._data, **start)
        self.learns = f"The reward model learns first: {self.base} on {self._data}."
        self.ready, self._function = False, None

    def unseen(self, prompts: Dataset) -> Dataset:
        """Keep the prompts, of the same data and split, from texts that the model never sees."""
        names = (self.text_column,) if self.text_column else TEXT_COLUMNS
        column = next(name for name in names if name in prompts.column_names)
        seen = set(self._seen[column][:])
        kept = [row for row, text in enumerate(prompts[column][:]) if text not in seen]
        if not kept:
            raise RecipeError(
                "--reward_share: every prompt is among the texts that the reward model learns "
                "from. Lower it, or give a data set whose texts differ."
            )
        return prompts.select(kept)

    def load(self, folder: Any) -> None:
        """Score with a trained model from now on: the log odds of the label, or its one logit."""
        sentiment = partial(SentimentReward, label=self.label, score="log_odds")
        self._function = (RewardModelReward if self._names is None else sentiment)(folder)
        self.ready = True
        set_seed(self.seed)  # random states are the same, whether it was trained now or before

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float]:
        """Score each prompt plus completion; an error until the model is trained."""
        if not self.ready:
            raise RecipeError("The reward model is not trained yet: train it, then `load` it.")
        return self._function(prompts=prompts, completions=completions)


def _check_label(label: str, names: Sequence[str] | None, source: str) -> None:
    if names is not None and label.lower() not in [name.lower() for name in names]:
        raise RecipeError(
            f"--label: {source} has no label {label!r}. Its labels are: {', '.join(names)}."
        )
    if names is None and label.upper() != "POSITIVE":
        raise RecipeError(
            f"--label {label}: a model of pairs or numbers has one score, which is higher for "
            "the better text. Leave --label out."
        )
