"""A finished run of recipes/ppo_seq2seq.py: its sources, and what its rewrites measure."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_recipes.rewards import RewardFunc, RewardModelReward, SentimentReward
from trl_recipes.run_folder import RunFolder
from trl_recipes.training.seq2seq_measures import measures_of
from trl_recipes.training.seq2seq_pairs import PairArguments, load_pairs, prompt_rows
from trl_recipes.training.seq2seq_pretraining import longest_text

if TYPE_CHECKING:
    from datasets import Dataset


def rewrites(config: Mapping[str, Any]) -> bool:
    """Whether a run's settings are those of recipes/ppo_seq2seq.py.

    Args:
        config: what `read_config` gave.
    """
    return "source_column" in config


def start_of(run: str | Path, config: Mapping[str, Any]) -> str | None:
    """Give the model that a run's PPO started from; None for the embedded one.

    Args:
        run: its folder.
        config: its settings.
    """
    pretrained = RunFolder(Path(run)).pretrained
    return str(pretrained) if pretrained.is_dir() else config.get("model_name_or_path")


def held_out_sources(
    config: Mapping[str, Any],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
) -> "Dataset":
    """Give the sources that a run was judged by.

    Args:
        config: its settings.
        model: the encoder-decoder.
        tokenizer: its own.
        count: most sources.

    Raises:
        RecipeError: as `load_pairs`.
    """
    names = ("dataset_name", "source_column", "target_column", "target_file")
    args = PairArguments(**{name: config[name] for name in names if config.get(name) is not None})
    sources = [pair["source"] for pair in load_pairs(args, "test")[:count]]
    return prompt_rows(sources, tokenizer, longest_text(model, tokenizer), "cut")


def measures_of_run(run: str | Path, config: Mapping[str, Any]) -> dict[str, RewardFunc]:
    """Give the run's learnt reward and what it is judged by, by name.

    Args:
        run: its folder.
        config: its settings.

    Raises:
        RecipeError: the reward model cannot be loaded.
    """
    name = config.get("reward_model") or RunFolder(Path(run)).reward_model
    functions = [RewardModelReward(name, name="learnt"), *measures_of(config.get("dataset_name"))]
    return {function.__name__: function for function in functions}


def score_of(
    run: str | Path | None, model: nn.Module, reward_model: str | None, label: str, **trusted: bool
) -> tuple[RewardFunc, str]:
    """Give what scores a model's texts, and what its number is.

    Args:
        run: the run that the model is of, or the model's name; None: the embedded one.
        model: the model itself.
        reward_model: sentiment classifier; None takes the run's own reward model where it trained
            one, else the embedded classifier.
        label: of the classifier.
        **trusted: `trust_remote_code`.

    Returns:
        The run's reward model; or a classifier of prompt and continuation, or, of what an
        encoder-decoder writes in place of its source, of that alone.

    Raises:
        RecipeError: as `SentimentReward`.
    """
    own = None if run is None else RunFolder(Path(run)).reward_model
    if reward_model is None and own is not None and own.is_dir():
        return RewardModelReward(own, name="learnt"), "the run's reward model"
    sentiment = SentimentReward(reward_model, label=label, **trusted)
    if not model.config.is_encoder_decoder:
        return sentiment, f"logit of {sentiment.label}"

    def of_rewrites(completions: list[str], **_: Any) -> list[float]:
        return sentiment([""] * len(completions), completions)

    return of_rewrites, f"logit of {sentiment.label}"
