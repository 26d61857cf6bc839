"""What rewrites are held to beside the learnt reward, and what teaches it."""

import re
from collections.abc import Sequence
from typing import Any

from trl_recipes.evaluation.judges import vader_judge
from trl_recipes.rewards import RewardFunc, load_reward_funcs

# Words that say little of what a sentence is about.
_COMMON = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "been",
        "but",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "he",
        "her",
        "his",
        "i",
        "if",
        "in",
        "is",
        "it",
        "its",
        "just",
        "me",
        "my",
        "n't",
        "not",
        "of",
        "on",
        "or",
        "our",
        "she",
        "so",
        "than",
        "that",
        "the",
        "their",
        "them",
        "there",
        "they",
        "this",
        "to",
        "too",
        "up",
        "us",
        "very",
        "was",
        "we",
        "were",
        "what",
        "when",
        "which",
        "who",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)


def measures_of(dataset_name: str | None) -> list[RewardFunc]:
    """Give the functions that are logged and never optimised.

    Args:
        dataset_name: None for the embedded rewrites, whose true quality is known.

    Returns:
        The embedded rewrites' quality and what they kept; for others the mood's turn (where
        vaderSentiment is installed) and the overlap of content.
    """
    if dataset_name is None:
        from trl_recipes.embedded.rewrites import rewrite_quality, subjects_kept

        return [rewrite_quality, subjects_kept]
    turned = mood_turned()
    return [content_kept] if turned is None else [turned, content_kept]


def judge_of(score_function: str | None, dataset_name: str | None) -> RewardFunc | None:
    """Give the function whose scores the reward model learns.

    Args:
        score_function: `module.path:function` or `file.py:function`; None takes the embedded
            rewrites' own.
        dataset_name: None for these.

    Returns:
        None where there is none: the reward model learns preferences then.

    Raises:
        RecipeError: there is no such function.
    """
    if score_function is not None:
        return load_reward_funcs([score_function], source="--score_function")[0]
    return measures_of(None)[0] if dataset_name is None else None


def content_kept(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """Share of a source's words that its rewrite repeats, leaving out the commonest ones.

    Args:
        prompts: B sources.
        completions: B rewrites.
        **_: what else a trainer passes; not used.

    Returns:
        B numbers from 0 to 1; 1 for a source of common words alone.
    """
    shares = []
    for prompt, completion in zip(prompts, completions, strict=True):
        source, rewrite = _content(prompt), _content(completion)
        shares.append(len(source & rewrite) / len(source) if source else 1.0)
    return shares


def mood_turned() -> RewardFunc | None:
    """Make a judge of whether a rewrite's mood is the opposite of its source's, by VADER's lexicon.

    Returns:
        A reward function: the rewrite's compound (-1 to 1) in the direction away from the source's;
        None for a source without a mood. Or None where vaderSentiment is not installed.
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


def _content(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower())) - _COMMON
