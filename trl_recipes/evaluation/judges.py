"""Judges of a text's mood that training never sees, and what to measure beside them."""

import logging
from typing import Any

from trl_recipes.data.conversations import full_texts
from trl_recipes.evaluation.compare import Comparison
from trl_recipes.rewards import RewardFunc, Rewards, SentimentReward
from trl_recipes.rewards.rules import known_share, whole_words
from trl_recipes.stats import distinct_n

_log = logging.getLogger(__name__)

MOODS = ("NEGATIVE", "POSITIVE")


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
    """Give logit and probability of a classifier's label, and a judge that training never saw.

    `reward` lends its model, and its label where none is given. Without vaderSentiment the judge is
    left out, which is said.
    """
    label = label or reward.label
    measures: dict[str, RewardFunc] = {
        "score (logit)": SentimentReward(reward, label=label, score="logit"),
        f"P({label})": SentimentReward(reward, label=label, score="probability"),
    }
    judge = vader_judge()
    if judge is None:
        _log.warning(
            "No independent judge: vaderSentiment is not installed"
            " (pip install 'trl_recipes[judge]')."
        )
        return measures
    return measures | {"judge (VADER)": judge}


def trained_measures(rewards: Rewards, label: str | None = None) -> dict[str, RewardFunc]:
    """Give what a run was trained on and its metrics, by name.

    A sentiment is measured by [`sentiment_measures`], whose `label` is the reward's by default.
    """
    sentiment, *more = rewards.reward_funcs
    if more or not isinstance(sentiment, SentimentReward):
        return dict(rewards.by_name)
    metrics = {name: rewards.by_name[name] for name in rewards.metric_names}
    return sentiment_measures(sentiment, label) | metrics


def mood_judges(
    label: str,
    dataset_name: str | None = None,
    judge: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> list[RewardFunc]:
    """Collect judges for which higher means more of a label, for the trainer's `metrics`.

    They are a classifier's probability (`classifier`) and VADER's compound (`vader`); either is
    left out where it does not apply, and having none is said. The classifier is `judge`, or the
    embedded one for the embedded reviews: it learnt from 16,000 of the split "train", of which
    "prompts" and "heldout" hold none; but one grammar wrote them all. VADER learnt from no review.
    """
    judges: list[RewardFunc] = []
    if judge is not None or (dataset_name is None and label.upper() in MOODS):
        chosen = {"label": label, "score": "probability", "name": "classifier"}
        judges.append(SentimentReward(judge, trust_remote_code=trust_remote_code, **chosen))
    compound = vader_judge() if label.upper() in MOODS else None
    if compound is not None:
        sign = 1 if label.upper() == "POSITIVE" else -1

        def vader(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
            return [sign * value for value in compound(prompts, completions)]

        judges.append(vader)
    if not judges:
        _log.warning(
            "No judge: nothing here that was not trained on these reviews knows the label %s. Name "
            "a classifier with --judge, or install vaderSentiment for POSITIVE and NEGATIVE (pip "
            "install 'trl_recipes[judge]').",
            label,
        )
    return judges


def word_figures(comparison: Comparison, known_words: set[str]) -> str:
    """Tell whether responses still are text: words that are known, and distinct pairs of words."""
    lines = []
    for result in comparison.results:
        known = known_share(result.responses, known_words)
        pairs = distinct_n([whole_words(response) for response in result.responses], 2)
        lines.append(
            f"{result.name}: {known:.1%} of all words are words of the training text, {pairs:.1%} "
            "of the pairs of words are distinct."
        )
    return "\n".join(lines)
