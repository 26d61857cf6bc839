"""Alarms: what goes wrong in PPO without any error, each said once, with its usual cause.

An alarm rings on a row of statistics and the few before it. It stops nothing: the run's owner
decides. What it rests on is plain data, so that a resumed run neither forgets nor repeats itself.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

# Steps running before an alarm rings: one odd batch is chance, three alike are a state.
RUNNING = 3
# Nats a sequence. The estimate of a KL near 0 is noisy on both sides, but not by a whole nat; TRL
# 0.11 warned from here on too.
NEGATIVE_KL = -1.0
# Spread of the scores, over their size, that is rounding in float32 and nothing to learn from.
SPREAD = 1e-6
# Steps in the windows at the start and now: long enough to average out the batches' noise.
WINDOW = 5
# Share of the variety at the start that must be left. A healthy run narrows too: towards one
# sentiment, the embedded recipe keeps four fifths of its distinct pairs of tokens.
VARIETY = 0.5
# Standard errors by which a mean of lengths must lie off to be no chance.
ERRORS = 4.0

_KEYS = (
    "step",
    "objective/kl",
    "ppo/skipped_minibatches",
    "env/reward_mean",
    "env/reward_std",
    "tokens/responses_len_mean",
    "samples/unique",
    "samples/distinct_2",
)


class Alarms:
    """Watches the statistics of a run; each alarm is given once.

    Args:
        batch_size: responses of one process in a step.
        response_length: longest response, in tokens.
        min_response_length: shortest limit drawn for a response; None where it is always
            `response_length`.
        ends: whether a token ends a response before its limit.
        ratio_threshold: mean probability ratio above which an optimizer step is skipped.

    Attributes:
        said: the sentences so far, by the alarm's name.
    """

    def __init__(
        self,
        batch_size: int,
        response_length: int,
        min_response_length: int | None = None,
        ends: bool = True,
        ratio_threshold: float = 10.0,
    ):
        self.batch_size = batch_size
        self.limits = (min_response_length or response_length, response_length)
        self.ends = ends
        self.ratio_threshold = ratio_threshold
        self.said: dict[str, str] = {}
        self._first: list[dict[str, float]] = []  # the first WINDOW rows
        self._last: list[dict[str, float]] = []  # the last WINDOW rows

    def look(self, stats: Mapping[str, Any]) -> list[str]:
        """Look at one step's statistics.

        Args:
            stats: numbers under the keys of `trl_recipes.stats.STAT_KEYS`; an alarm whose keys are
                missing or not finite keeps silent.

        Returns:
            A sentence for each alarm that rings for the first time: what was seen, at which step,
            the usual causes, and what to do.
        """
        row = {key: float(stats[key]) for key in _KEYS if _is_number(stats.get(key))}
        if len(self._first) < WINDOW:
            self._first.append(row)
        self._last = [*self._last, row][-WINDOW:]
        alarms: dict[str, Callable[[], str | None]] = {
            "negative KL": self._negative_kl,
            "skipped minibatches": self._skipped_minibatches,
            "equal scores": self._equal_scores,
            "equal responses": self._equal_responses,
            "full length": self._full_length,
            "falling diversity": self._falling_diversity,
        }
        rung = []
        for name, alarm in alarms.items():
            sentence = None if name in self.said else alarm()
            if sentence is not None:
                self.said[name] = f"Step {row.get('step', 0):.0f}: {sentence}"
                rung.append(self.said[name])
        return rung

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs: plain dicts, lists, texts and numbers."""
        return {
            "said": dict(self.said),
            "first": [dict(row) for row in self._first],
            "last": [dict(row) for row in self._last],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Args:
            state: plain data.
        """
        self.said = dict(state["said"])
        self._first = [dict(row) for row in state["first"]]
        self._last = [dict(row) for row in state["last"]]

    def _negative_kl(self) -> str | None:
        kls = self._running("objective/kl")
        if not kls or max(kls) >= NEGATIVE_KL or kls != sorted(kls, reverse=True):
            return None
        return (
            f"the KL to the reference is {kls[-1]:.2f} nats a response and has been falling below "
            f"{NEGATIVE_KL:g} for {RUNNING} steps. A KL is not negative: the responses were not "
            "sampled from the distribution whose log-probabilities are trained on. Usual causes: "
            "top_k, top_p, min_length or another temperature in generate (leave them out), or a "
            "learning rate that is too high."
        )

    def _skipped_minibatches(self) -> str | None:
        skipped = self._last[-1].get("ppo/skipped_minibatches", 0)
        if not skipped > 0:
            return None
        return (
            f"{skipped:.0f} minibatch(es) skipped, because the mean probability ratio exceeded "
            f"ratio_threshold ({self.ratio_threshold:g}) or the loss was not finite. The policy "
            "moves too far on one batch. Usual cause: a learning rate that is too high; lower "
            "learning_rate or ppo_epochs, or set max_grad_norm to 1."
        )

    def _equal_scores(self) -> str | None:
        spreads, means = self._running("env/reward_std"), self._running("env/reward_mean")
        if self.batch_size == 1 or not spreads or not means:
            return None
        if any(s > SPREAD * max(1.0, abs(m)) for s, m in zip(spreads, means, strict=True)):
            return None
        return (
            f"all scores of a batch have been equal ({means[-1]:.4g}) for {RUNNING} steps, so "
            "there is nothing to learn from. Usual causes: a reward function that ignores the "
            "completion or has reached its ceiling, or all responses being the same; look at "
            "samples.jsonl and call the function on two texts that it should tell apart."
        )

    def _equal_responses(self) -> str | None:
        shares = self._running("samples/unique")
        if self.batch_size == 1 or not shares or max(shares) * self.batch_size > 1.5:
            return None
        return (
            f"all {self.batch_size} responses of a batch have been the same text for {RUNNING} "
            "steps: the policy has collapsed. Usual causes: a learning rate that is too high, or a "
            "KL coefficient (init_kl_coef) that is too low for the reward; begin again with less "
            "of the one or more of the other."
        )

    def _full_length(self) -> str | None:
        """Where limits are drawn for each response, cutting it is what was asked for.

        There only a change counts: responses that ended by themselves and no longer do. Lengths
        that are never cut short are uniform between the limits.
        """
        lengths = self._running("tokens/responses_len_mean")
        shortest, longest = self.limits
        if not self.ends or not lengths:
            return None
        if shortest == longest:
            if min(lengths) < longest or longest == 1:
                return None
            seen = f"every response has been {longest} tokens long for {RUNNING} steps"
        else:
            then, now = (self._mean(r, "tokens/responses_len_mean") for r in self._windows())
            uncut = (shortest + longest) / 2
            deviation = math.sqrt(((longest - shortest + 1) ** 2 - 1) / 12)
            error = deviation / math.sqrt(WINDOW * self.batch_size)
            if then is None or then > uncut - ERRORS * error or now < uncut - error:
                return None
            seen = (
                f"responses have grown from {then:.1f} to {now:.1f} tokens, the mean of the "
                f"limits drawn for them ({shortest} to {longest})"
            )
        return (
            f"{seen}: none ends by itself. Usual causes: a model that does not know its end token "
            "(compare eos_token of the tokenizer with what the model learnt), a reward that "
            "grows with length, or a response_length too short for a whole answer; where openings "
            "are all that is wanted, nothing is wrong (stop_token: null says so)."
        )

    def _falling_diversity(self) -> str | None:
        first, last = self._windows()
        scores = [self._mean(rows, "env/reward_mean") for rows in (first, last)]
        if None in scores or scores[1] <= scores[0]:
            return None
        for key, what in (
            ("samples/distinct_2", "distinct pairs of tokens"),
            ("samples/unique", "distinct responses"),
        ):
            then, now = self._mean(first, key), self._mean(last, key)
            if then is not None and now is not None and now < VARIETY * then:
                return (
                    f"the share of {what} has fallen from {then:.2f} to {now:.2f} while the score "
                    f"rose from {scores[0]:.3g} to {scores[1]:.3g} (means of {WINDOW} steps): the "
                    "policy repeats what the reward likes best. Usual causes: a KL coefficient "
                    "(init_kl_coef) that is too low, a learning rate or ppo_epochs too high, or a "
                    "reward that one phrase satisfies (score_clip takes the prize off extremes)."
                )
        return None

    def _running(self, key: str) -> list[float]:
        """The values of the last steps; none where one of them is missing."""
        values = [row[key] for row in self._last[-RUNNING:] if key in row]
        return values if len(values) == RUNNING else []

    def _windows(self) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
        """The first rows and the last; none as long as they overlap."""
        apart = self._last[0].get("step", 0) > self._first[-1].get("step", 0)
        return (self._first, self._last) if apart else ([], [])

    @staticmethod
    def _mean(rows: list[dict[str, float]], key: str) -> float | None:
        values = [row[key] for row in rows if key in row]
        return math.fsum(values) / len(values) if len(values) == len(rows) > 0 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
