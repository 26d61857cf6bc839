"""Judges of a review's mood that learnt nothing from the reviews in use."""

import logging
from typing import Any

from trl_recipes.evaluation.compare import vader_judge
from trl_recipes.rewards import RewardFunc, SentimentReward

_log = logging.getLogger(__name__)

MOODS = ("NEGATIVE", "POSITIVE")


def mood_judges(
    label: str,
    dataset_name: str | None = None,
    judge: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> list[RewardFunc]:
    """Collect judges for which higher means more of a label, for the trainer's `metrics`.

    The embedded classifier learnt from 16,000 reviews of the embedded split "train", of which the
    splits "prompts" and "heldout" hold none; but one grammar wrote them all. VADER is a lexicon
    and learnt from no review.

    Args:
        label: what the reward asks for.
        dataset_name: the reviews in use; None for the embedded ones, which the embedded classifier
            can judge.
        judge: a classifier to judge by in its place: a folder or hub name.
        trust_remote_code: run the code that it brings along.

    Returns:
        A classifier's probability (`classifier`) and VADER's compound (`vader`); either is left out
        where it does not apply, and having none is said.

    Raises:
        RecipeError: no such classifier, or it has no such label.
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
