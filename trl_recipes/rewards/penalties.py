"""What a text is not to be: too long, or the same again. Penalties are positive; weigh them -1.

`Rewards`, and with it PPOTrainer, gives them that weight where none is named. TRL's own trainers
weigh everything 1 unless told: give them `reward_weights`.
"""

from collections.abc import Sequence
from typing import Any, Literal

from trl_recipes.errors import RecipeError
from trl_recipes.rewards.text import completion_texts


class LengthPenalty:
    """1 where a completion is longer than `max_length`, else 0.

    Args:
        max_length: the longest length that costs nothing.
        unit: "tokens" (an end token counts), "words" (at white space) or "characters".
        soft: lengths over which the penalty rises evenly from 0, at `max_length`, to 1; 0 is the
            hard form. A soft one tells a policy which way is shorter.
        name: the name in logs; `length` when None.

    Raises:
        RecipeError: a length below 0, or an unknown unit.

    >>> LengthPenalty(2, unit="words", soft=4)(["a b", "a b c"], [[], []])
    [0.0, 0.25]
    """

    default_weight = -1.0

    def __init__(
        self,
        max_length: int,
        *,
        unit: Literal["tokens", "words", "characters"] = "tokens",
        soft: int = 0,
        name: str | None = None,
    ):
        if unit not in ("tokens", "words", "characters"):
            raise RecipeError(
                f"LengthPenalty: unknown unit {unit!r}. Choose tokens, words or characters."
            )
        for option, value in (("max_length", max_length), ("soft", soft)):
            if not isinstance(value, int) or value < 0:
                raise RecipeError(
                    f"LengthPenalty: {option} is {value!r}. Use a whole number, 0 or more."
                )
        self.max_length, self.unit, self.soft = max_length, unit, soft
        self.__name__ = name or "length"

    def __call__(
        self, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **kwargs: Any
    ) -> list[float]:
        """Measure each completion.

        Args:
            completions: B texts or conversations.
            completion_ids: B lists of token ids.
            **kwargs: what else a trainer passes; not used.

        Returns:
            B penalties, 0 to 1.
        """
        excess = [length - self.max_length for length in self._lengths(completions, completion_ids)]
        if self.soft == 0:
            return [float(over > 0) for over in excess]
        return [min(max(over / self.soft, 0.0), 1.0) for over in excess]

    def _lengths(
        self, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]]
    ) -> list[int]:
        if self.unit == "tokens":
            return [len(ids) for ids in completion_ids]
        texts = completion_texts(completions)
        return [len(text.split() if self.unit == "words" else text) for text in texts]


class RepetitionPenalty:
    """Share of a completion's n-grams that it has used before: 0 where none comes twice.

    The measure of `trl.rewards.get_repetition_penalty_reward`, positive (Yeo et al. 2025,
    "Demystifying Long Chain-of-Thought Reasoning", appendix C.2).

    Args:
        n: tokens of an n-gram.
        name: the name in logs; `repetition` when None.

    Raises:
        RecipeError: n is below 1.

    >>> RepetitionPenalty(2)([[1, 2, 1, 2, 1], [1, 2, 3]])  # of four pairs two are new
    [0.5, 0.0]
    """

    default_weight = -1.0

    def __init__(self, n: int = 3, *, name: str | None = None):
        if not isinstance(n, int) or n < 1:
            raise RecipeError(f"RepetitionPenalty: n is {n!r}. Use a whole number, 1 or more.")
        self.n = n
        self.__name__ = name or "repetition"

    def __call__(self, completion_ids: Sequence[Sequence[int]], **kwargs: Any) -> list[float]:
        """Measure each completion.

        Args:
            completion_ids: B lists of token ids.
            **kwargs: what else a trainer passes; not used.

        Returns:
            B penalties, 0 up to less than 1; 0 for what is shorter than n.
        """
        return [self._share(list(ids)) for ids in completion_ids]

    def _share(self, ids: list[int]) -> float:
        ngrams = [tuple(ids[i : i + self.n]) for i in range(len(ids) - self.n + 1)]
        return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
