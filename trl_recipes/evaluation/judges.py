"""Judges of answers: lexicons and classifiers that training never sees, and a run's own rewards."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn

from trl_recipes.data.conversations import full_texts
from trl_recipes.embedded.rewrites import rewrite_quality, subjects_kept
from trl_recipes.evaluation.compare import Comparison
from trl_recipes.rewards import (
    RewardFunc,
    RewardModelReward,
    Rewards,
    SentimentReward,
    load_reward_funcs,
)
from trl_recipes.rewards.base import needs_columns
from trl_recipes.rewards.rules import known_share, whole_words
from trl_recipes.run_folder import RunFolder, read_config
from trl_recipes.stats import distinct_n
from trl_recipes.training.seq2seq import PairArguments, load_pairs, longest_text, prompt_rows

_log = logging.getLogger(__name__)

# Words that say little of what a sentence is about.
_COMMON = """
    a an and are as at be been but by can could did do does for from had has have he her his i if
    in is it its just me my n't not of on or our she so than that the their them there they this
    to too up us very was we were what when which who will with would you your
"""
_INSTALL = "(pip install 'trl_recipes[judge]')"


def vader_judge() -> RewardFunc | None:
    """Make a judge from VADER's lexicon: the compound of query plus response, -1 to 1 (positive).

    None where the package vaderSentiment is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        return None
    analyzer = SentimentIntensityAnalyzer()

    def vader(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        texts = full_texts(prompts, completions)
        return [analyzer.polarity_scores(text)["compound"] for text in texts]

    return vader


def sentiment_measures(reward: SentimentReward, label: str | None = None) -> dict[str, RewardFunc]:
    """Give logit and probability of a classifier's label, and a judge that training never saw."""
    label = label or reward.label
    judge = vader_judge()
    if judge is None:
        _log.warning("No independent judge: vaderSentiment is not installed %s.", _INSTALL)
    return {
        "score (logit)": SentimentReward(reward, label=label, score="logit"),
        f"P({label})": SentimentReward(reward, label=label, score="probability"),
    } | ({"judge (VADER)": judge} if judge else {})


def trained_measures(rewards: Rewards, label: str | None = None) -> dict[str, RewardFunc]:
    """Give what a run was trained on and its metrics, by name; see `sentiment_measures`."""
    sentiment, *more = rewards.reward_funcs
    if more or not isinstance(sentiment, SentimentReward):
        return dict(rewards.by_name)
    metrics = {name: rewards.by_name[name] for name in rewards.metric_names}
    return sentiment_measures(sentiment, label) | metrics


def rewards_of_run(config: Mapping[str, Any], **trusted: bool) -> Rewards:
    """Load the reward functions and metrics that a run's settings name; else its sentiment."""
    metrics = load_reward_funcs(config.get("metrics") or [], source="metrics in config.yaml")
    if not config.get("reward_funcs"):
        label = config.get("label") or "POSITIVE"
        sentiment = SentimentReward(config.get("reward_model"), label=label, **trusted)
        return Rewards(sentiment, metrics=metrics)
    functions = load_reward_funcs(config["reward_funcs"], source="reward_funcs in config.yaml")
    return Rewards(functions, config.get("reward_weights"), metrics)


def mood_judges(
    label: str,
    dataset_name: str | None = None,
    judge: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> list[RewardFunc]:
    """Collect judges for which higher means more of a label, for the trainer's `metrics`.

    A classifier's probability (`judge`, or for the embedded reviews the embedded one) and VADER's
    compound; one that does not apply is left out.
    """
    sign = {"POSITIVE": 1, "NEGATIVE": -1}.get(label.upper())
    judges: list[RewardFunc] = []
    if judge is not None or (dataset_name is None and sign):
        chosen = {"label": label, "score": "probability", "name": "classifier"}
        judges.append(SentimentReward(judge, trust_remote_code=trust_remote_code, **chosen))
    compound = vader_judge()
    if sign and compound is not None:

        def vader(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
            return [sign * value for value in compound(prompts, completions)]

        judges.append(vader)
    if not judges:
        _log.warning(
            "No judge: nothing here that was not trained on these reviews knows the label %s. Name "
            "a classifier with --judge, or install vaderSentiment for POSITIVE and NEGATIVE %s.",
            label,
            _INSTALL,
        )
    return judges


def word_figures(comparison: Comparison, known_words: set[str]) -> str:
    """Say whether responses are still text: known words, and distinct pairs of words."""
    lines = []
    for result in comparison.results:
        known = known_share(result.responses, known_words)
        pairs = distinct_n([whole_words(response) for response in result.responses], 2)
        lines.append(
            f"{result.name}: {known:.1%} of all words are words of the training text, {pairs:.1%} "
            "of the pairs of words are distinct."
        )
    return "\n".join(lines)


# Of rewrites, in ppo_seq2seq.py


def rewrite_metrics(dataset_name: str | None) -> list[RewardFunc]:
    """Choose the functions that are logged and never optimized; the embedded task has its own."""
    if dataset_name is None:
        return [rewrite_quality, subjects_kept]
    turned = mood_turned()
    return [content_kept] if turned is None else [turned, content_kept]


def score_function(name: str | None, dataset_name: str | None) -> RewardFunc | None:
    """Load the function whose scores the reward model learns; None where it learns preferences."""
    if name is not None:
        return load_reward_funcs([name], source="--score_function")[0]
    return rewrite_metrics(None)[0] if dataset_name is None else None


def content_kept(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """Compute the fraction of a source's words, but for common ones, that its rewrite repeats."""
    pairs = zip(map(_content, prompts), map(_content, completions), strict=True)
    return [len(source & rewrite) / len(source) if source else 1.0 for source, rewrite in pairs]


def _content(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower())) - set(_COMMON.split())


def mood_turned() -> RewardFunc | None:
    """Make a judge of rewrites: VADER's compound (-1 to 1), away from the source's mood."""
    vader = vader_judge()
    if vader is None:
        return None

    def mood_turned(prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
        nothing = [""] * len(prompts)
        moods = zip(vader(prompts, nothing), vader(nothing, completions), strict=True)
        return [None if was == 0 else -now if was > 0 else now for was, now in moods]

    return mood_turned


# What a run is measured by, when it is looked at again


def start_of(run: str | Path, config: Mapping[str, Any]) -> str | None:
    """Find the model that a run's PPO started from; None for the embedded one."""
    pretrained = RunFolder(run).pretrained
    return str(pretrained) if pretrained.is_dir() else config.get("model_name_or_path")


def held_out_sources(
    config: Mapping[str, Any], model: nn.Module, tokenizer: Any, count: int
) -> Dataset:
    """Load at most `count` of the sources that a run with these settings was judged by."""
    names = ("dataset_name", "source_column", "target_column")
    args = PairArguments(**{name: config[name] for name in names if config.get(name) is not None})
    sources = [pair["source"] for pair in load_pairs(args, "test")[:count]]
    return prompt_rows(sources, tokenizer, longest_text(model, tokenizer))


def measures_of_run(run: str | Path, config: Mapping[str, Any]) -> dict[str, RewardFunc]:
    """Load a run's learned reward and what it is judged by, by name."""
    name = config.get("reward_model") or RunFolder(run).reward_model
    learned = RewardModelReward(name, name="learned")
    functions = [learned, *rewrite_metrics(config.get("dataset_name"))]
    return {function.__name__: function for function in functions}


def score_of(
    run: str | Path | None, model: nn.Module, reward_model: str | None, label: str, **trusted: bool
) -> tuple[RewardFunc, str]:
    """Choose what scores a model's texts, and name the score.

    Without `reward_model`, a sentiment classifier, the reward model of `run` scores, or the
    functions that it names and that need no column of a data set, else the embedded classifier: of
    an encoder-decoder the response alone.
    """
    own = None if run is None else RunFolder(run)
    if reward_model is None and own is not None and own.reward_model.is_dir():
        return RewardModelReward(own.reward_model, name="learned"), "the run's reward model"
    config = read_config(own) if own is not None and own.config.is_file() else {}
    if reward_model is None and config.get("reward_funcs"):
        rewards = rewards_of_run(config)
        weighed = zip(rewards.reward_funcs, rewards.weights, strict=True)
        alone = [(func, weight) for func, weight in weighed if not needs_columns(func)]
        if len(alone) < len(rewards.names):
            _log.warning("Rewards that need a column of the data set do not score this prompt.")
        if alone:
            rewards = Rewards(*map(list, zip(*alone, strict=True)))
            return lambda *args, **kw: rewards(*args, **kw)[0], " + ".join(rewards.names)
    sentiment = SentimentReward(reward_model, label=label, **trusted)
    if not model.config.is_encoder_decoder:
        return sentiment, f"logit of {sentiment.label}"

    def of_rewrites(completions: list[str], **_: Any) -> list[float]:
        return sentiment([""] * len(completions), completions)

    return of_rewrites, f"logit of {sentiment.label}"
