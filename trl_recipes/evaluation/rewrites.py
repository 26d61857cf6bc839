"""What rewrites are judged by beside the learnt reward, and a finished run of ppo_seq2seq.py."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn

from trl_recipes.evaluation.judges import vader_judge
from trl_recipes.rewards import (
    RewardFunc,
    RewardModelReward,
    SentimentReward,
    load_reward_funcs,
)
from trl_recipes.run_folder import RunFolder
from trl_recipes.training.seq2seq import PairArguments, load_pairs, longest_text, prompt_rows

# Words that say little of what a sentence is about.
_COMMON = frozenset(
    re.findall(
        r"[a-z']+",
        "a an and are as at be been but by can could did do does for from had has have he her his "
        "i if in is it its just me my n't not of on or our she so than that the their them there "
        "they this to too up us very was we were what when which who will with would you your",
    )
)


def rewrite_metrics(dataset_name: str | None) -> list[RewardFunc]:
    """Choose the functions that are logged and never optimized.

    Without a data set the embedded rewrites' quality and what they kept; else the mood's turn
    (where vaderSentiment is installed) and the overlap of content.
    """
    if dataset_name is None:
        from trl_recipes.embedded.rewrites import rewrite_quality, subjects_kept

        return [rewrite_quality, subjects_kept]
    turned = mood_turned()
    return [content_kept] if turned is None else [turned, content_kept]


def score_function(name: str | None, dataset_name: str | None) -> RewardFunc | None:
    """Load the function whose scores the reward model learns.

    `name`: `module.path:function` or `file.py:function`; None takes the embedded rewrites' own, and
    none for another data set: the reward model learns preferences then.
    """
    if name is not None:
        return load_reward_funcs([name], source="--score_function")[0]
    return rewrite_metrics(None)[0] if dataset_name is None else None


def content_kept(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """Compute the fraction of a source's words, but for common ones, that its rewrite repeats.

    1 for a source of common words alone.
    """
    fractions = []
    for prompt, completion in zip(prompts, completions, strict=True):
        source, rewrite = _content(prompt), _content(completion)
        fractions.append(len(source & rewrite) / len(source) if source else 1.0)
    return fractions


def mood_turned() -> RewardFunc | None:
    """Make a judge of whether a rewrite's mood is the opposite of its source's, by VADER's lexicon.

    It gives the rewrite's compound (-1 to 1) in the direction away from the source's, None for a
    source without a mood. None where vaderSentiment is not installed.
    """
    vader = vader_judge()
    if vader is None:
        return None

    def mood_turned(
        prompts: Sequence[str], completions: Sequence[str], **_: Any
    ) -> list[float | None]:
        nothing = [""] * len(prompts)
        before, after = vader(list(prompts), nothing), vader(nothing, list(completions))
        return [
            None if was == 0 else now * (1 if was < 0 else -1)
            for was, now in zip(before, after, strict=True)
        ]

    return mood_turned


def is_rewriting(config: Mapping[str, Any]) -> bool:
    """Whether a run's settings, as `read_config` gave them, are those of ppo_seq2seq.py."""
    return "source_column" in config


def start_of(run: str | Path, config: Mapping[str, Any]) -> str | None:
    """Find the model that a run's PPO started from; None for the embedded one."""
    pretrained = RunFolder(run).pretrained
    return str(pretrained) if pretrained.is_dir() else config.get("model_name_or_path")


def held_out_sources(
    config: Mapping[str, Any], model: nn.Module, tokenizer: Any, count: int
) -> Dataset:
    """Load at most `count` of the sources that a run with these settings was judged by."""
    names = ("dataset_name", "source_column", "target_column", "target_file")
    args = PairArguments(**{name: config[name] for name in names if config.get(name) is not None})
    sources = [pair["source"] for pair in load_pairs(args, "test")[:count]]
    return prompt_rows(sources, tokenizer, longest_text(model, tokenizer), "cut")


def measures_of_run(run: str | Path, config: Mapping[str, Any]) -> dict[str, RewardFunc]:
    """Load a run's learned reward and what it is judged by, by name."""
    name = config.get("reward_model") or RunFolder(run).reward_model
    learnt = RewardModelReward(name, name="learned")
    functions = [learnt, *rewrite_metrics(config.get("dataset_name"))]
    return {function.__name__: function for function in functions}


def score_of(
    run: str | Path | None, model: nn.Module, reward_model: str | None, label: str, **trusted: bool
) -> tuple[RewardFunc, str]:
    """Choose what scores a model's texts, and say what its number is.

    `run` is the run that the model is of, or the model's name; None: the embedded one. Without
    `reward_model`, a sentiment classifier, the run's own reward model scores, else the embedded
    classifier: prompt and continuation, or only the response of an encoder-decoder.
    """
    own = None if run is None else RunFolder(run).reward_model
    if reward_model is None and own is not None and own.is_dir():
        return RewardModelReward(own, name="learned"), "the run's reward model"
    sentiment = SentimentReward(reward_model, label=label, **trusted)
    if not model.config.is_encoder_decoder:
        return sentiment, f"logit of {sentiment.label}"

    def of_rewrites(completions: list[str], **_: Any) -> list[float]:
        return sentiment([""] * len(completions), completions)

    return of_rewrites, f"logit of {sentiment.label}"


def _content(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower())) - _COMMON
