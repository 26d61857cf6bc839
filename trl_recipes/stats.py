"""all_stats: what a row holds, on disk as JSON lines, and as a data frame.

A training run leaves one row (a dict of numbers) a step. `STAT_KEYS` explains every key once; the
README's table is made from it. "Per sequence" means summed over the tokens of one response and then
averaged over the batch, "per token" means averaged over all response tokens of the batch.
"""

import fnmatch
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trl_recipes.errors import RecipeError

if TYPE_CHECKING:
    import pandas as pd

STATS_FILE = "all_stats.jsonl"


class StatKey(NamedTuple):
    """Unit and meaning of one key of a stats row.

    Attributes:
        unit: such as "nats per token".
        meaning: in a sentence or two, with what is healthy where that can be said.
    """

    unit: str
    meaning: str


STAT_KEYS: dict[str, StatKey] = {
    # where we are
    "step": StatKey("steps", "Number of this step, counted from 1."),
    "episode": StatKey("responses", "Responses sampled since the start, over all processes."),
    # what was asked for
    "env/reward_mean": StatKey(
        "score", "Mean of the raw scores, before scaling and clipping. Healthy: rises, then levels."
    ),
    "env/reward_std": StatKey("score", "Spread of the raw scores over the batch."),
    "env/reward_dist": StatKey("score, array", "The raw score of each response."),
    "rewards/<name>/mean": StatKey(
        "score", "Mean of one reward function, unweighted, over the samples that it scored."
    ),
    "rewards/<name>/std": StatKey("score", "Spread of one reward function over the batch."),
    "rewards/<name>/shift": StatKey(
        "score", "With `reward_norm: reference`: its mean on the reference model's samples."
    ),
    "rewards/<name>/scale": StatKey(
        "score", "With `reward_norm: reference`: its spread there, by which it is divided."
    ),
    "metrics/<name>/mean": StatKey("score", "Mean of a function that is logged and not optimised."),
    "metrics/<name>/std": StatKey("score", "Spread of such a function over the batch."),
    "ppo/mean_scores": StatKey(
        "score", "Mean of the scores that PPO optimises, after scaling and clipping where asked."
    ),
    "ppo/std_scores": StatKey(
        "score", "Spread of those scores. Near 0 there is nothing left to learn from."
    ),
    "ppo/mean_non_score_reward": StatKey(
        "score per token", "Mean of the KL penalty, minus coefficient times KL."
    ),
    # distance from the reference model
    "objective/kl": StatKey(
        "nats per sequence",
        "KL from the reference model, estimated on the samples with the chosen `kl_penalty`."
        " Healthy: 0 at the first step, then near the target; clearly below 0 means that sampling"
        " and training disagree. For GRPO and RLOO the log-ratio over a response's tokens, where"
        " `beta` is not 0; for a batch that is gone over several times, at its first use.",
    ),
    "objective/kl_coef": StatKey(
        "score per nat", "Weight of the KL penalty, as used for this step's rewards."
    ),
    "objective/kl_dist": StatKey("nats per sequence, array", "KL of each response."),
    "objective/entropy": StatKey(
        "nats per sequence",
        "Minus the log-probability of the sampled responses. Healthy: falls slowly; a sudden drop"
        " is a collapse onto few texts.",
    ),
    "objective/logprobs": StatKey("nats, array", "Log-probability of each token at sampling time."),
    "objective/ref_logprobs": StatKey("nats, array", "The same under the reference model."),
    # the losses and what is inside them
    "ppo/loss/total": StatKey(
        "loss",
        "Policy loss plus `vf_coef` times value loss, the number that is minimised. It need not"
        " fall: read the score instead.",
    ),
    "ppo/loss/policy": StatKey("loss", "Clipped policy loss; near 0 by construction."),
    "ppo/loss/value": StatKey(
        "loss", "Half the squared error of the clipped values. Healthy: falls, then stays low."
    ),
    "ppo/policy/entropy": StatKey(
        "nats per token", "Entropy of the policy's next-token distribution."
    ),
    "ppo/policy/approxkl": StatKey(
        "nats per token",
        "Half the mean squared log-ratio between the policy now and at sampling time. Healthy:"
        " below about 0.1.",
    ),
    "ppo/policy/policykl": StatKey(
        "nats per token", "Mean log-probability at sampling time minus that of the policy now."
    ),
    "ppo/policy/clipfrac": StatKey(
        "share of tokens",
        "Tokens whose ratio was clipped. Healthy: below about 0.3; more means that the learning"
        " rate is too high.",
    ),
    "ppo/policy/advantages_mean": StatKey(
        "score", "Mean advantage; 0 within rounding, because advantages are whitened."
    ),
    "ppo/policy/advantages": StatKey("score, array", "Whitened advantage of each token."),
    "ppo/policy/ratio": StatKey("ratio, array", "New over old probability of each token."),
    "ppo/returns/mean": StatKey("score", "Mean return: what the value head should predict."),
    "ppo/returns/var": StatKey("score squared", "Variance of the returns."),
    "ppo/val/vpred": StatKey("score", "Mean prediction of the value head during the update."),
    "ppo/val/error": StatKey("score squared", "Mean squared error of those predictions."),
    "ppo/val/clipfrac": StatKey("share of tokens", "Tokens whose value was clipped."),
    "ppo/val/mean": StatKey("score", "Mean value at sampling time."),
    "ppo/val/var": StatKey("score squared", "Variance of the values at sampling time."),
    "ppo/val/var_explained": StatKey(
        "share",
        "1 minus value error over variance of the returns. Healthy: rises towards 1; below 0 the"
        " value head is worse than a constant.",
    ),
    "ppo/learning_rate": StatKey("learning rate", "Learning rate of this step."),
    "ppo/skipped_minibatches": StatKey(
        "minibatches",
        "Minibatches left out of this step: ratio above `ratio_threshold` or a loss that is not"
        " finite. Healthy: 0.",
    ),
    # of GRPO and RLOO: what tells whether groups have anything to learn from
    "groups/reward_std": StatKey(
        "score", "Spread of the scores in a group, the responses to one prompt; mean over groups."
    ),
    "groups/equal": StatKey(
        "share of groups",
        "Groups whose scores are all equal, which teach nothing. Healthy: near 0; 1 means that"
        " nothing is learnt at all.",
    ),
    "skipped_steps": StatKey(
        "steps", "1 where this step was left out, because its gradient was not finite. Healthy: 0."
    ),
    # of GRPO and RLOO: what TRL logs, under its own names
    "loss": StatKey(
        "loss",
        "The loss that TRL minimises; near 0 whatever is learnt, because the advantages in a group"
        " add up to 0 and the ratio is 1 at a batch's first use. Read the score instead. GRPO adds"
        " `beta` times `kl`.",
    ),
    "grad_norm": StatKey("norm", "Norm of the gradient before it is clipped."),
    "learning_rate": StatKey("learning rate", "Learning rate of this step."),
    "loss/train": StatKey(
        "loss", "Of models trained on texts: their loss, mean over the steps since the last row."
    ),
    "loss/heldout": StatKey("loss", "The same on held-out texts, where they are looked at."),
    "accuracy": StatKey(
        "share", "Of reward models from pairs: pairs whose winner has the higher score."
    ),
    "margin": StatKey("logits", "Of such models: by how much it is higher, in the mean."),
    "epoch": StatKey("passes", "Passes over the prompts so far."),
    "num_tokens": StatKey("tokens", "Tokens of prompts and responses so far, over all processes."),
    "reward": StatKey("score", "TRL's name of `env/reward_mean`."),
    "reward_std": StatKey(
        "score", "TRL's name of `env/reward_std`, divided by one less than the number of responses."
    ),
    "frac_reward_zero_std": StatKey(
        "share of groups",
        "TRL's `groups/equal`, of what advantages are made of: RLOO takes the KL off first, and"
        " with `scale_rewards: batch` it is 0 or 1 for the whole batch.",
    ),
    "kl": StatKey(
        "nats per token",
        "KL from the reference as the algorithm uses it. GRPO: an estimate that is never negative,"
        " ratio less 1 less log-ratio of reference over policy, whose mean a few odd tokens can"
        " raise far. RLOO: the log-ratio. `objective/kl` is comparable across algorithms.",
    ),
    "entropy": StatKey("nats per token", "Entropy of the policy's next-token distribution."),
    "completions/<which>_terminated_length": StatKey(
        "tokens",
        "Mean, least or greatest length of the responses that ended by themselves; 0 where there"
        " are none.",
    ),
    "completions/<which>_length": StatKey(
        "tokens", "Mean, least or greatest length of all responses, EOS counted."
    ),
    "completions/clipped_ratio": StatKey("share", "Responses that were cut at `response_length`."),
    "clip_ratio/<which>_mean": StatKey(
        "share",
        "Ratios that were clipped from below (low), from above (high), or either (region): of"
        " tokens in GRPO, of responses in RLOO. 0 where each batch is used once.",
    ),
    "clip_ratio/low_min": StatKey("share", "The least of any one response clipped from below."),
    "clip_ratio/high_max": StatKey("share", "The most of any one response clipped from above."),
    "clip_ratio": StatKey("share of tokens", "With `use_liger_kernel: true`: ratios clipped."),
    "cispo_clip_ratio": StatKey("share of tokens", "With `loss_type: cispo`: ratios clipped."),
    "vespo/phi_seq_mean": StatKey("weight", "With `loss_type: vespo`: mean weight of a response."),
    "policy_loss": StatKey("loss", "With an entropy bonus: the loss without it."),
    "entropy_coef": StatKey("loss per nat", "With an entropy bonus: its weight."),
    "aux_loss": StatKey("loss", "Of mixture-of-experts models: TRL's load-balancing loss."),
    "tools/<name>": StatKey("share", "With tools: calls a response, or calls that failed."),
    "sampling/<name>": StatKey(
        "nats or ratio", "With vLLM: how far its probabilities are from the policy's."
    ),
    "step_time": StatKey("seconds", "The whole step, as TRL measures it."),
    # the text
    "tokens/generated": StatKey("tokens", "GRPO and RLOO: tokens of all responses so far."),
    "tokens/masked_share": StatKey(
        "share", "With `mask_truncated_completions`: responses that were cut, and so left out."
    ),
    "tokens/queries_len_mean": StatKey("tokens", "Mean length of the queries."),
    "tokens/queries_len_std": StatKey("tokens", "Spread of the query lengths."),
    "tokens/queries_dist": StatKey("tokens, array", "Length of each query."),
    "tokens/responses_len_mean": StatKey("tokens", "Mean length of the responses, EOS counted."),
    "tokens/responses_len_std": StatKey("tokens", "Spread of the response lengths."),
    "tokens/responses_dist": StatKey("tokens, array", "Length of each response."),
    "samples/distinct_2": StatKey(
        "share",
        "Distinct pairs of neighbouring tokens over all such pairs in the batch's responses."
        " Healthy: falls little while the score rises; a steep fall is repetition.",
    ),
    "samples/unique": StatKey("share", "Distinct responses over all responses of the batch."),
    # time
    "time/generation": StatKey("seconds", "Sampling the responses."),
    "time/generation_share": StatKey(
        "share of a step", "Sampling, as part of sampling, scoring and `step` together."
    ),
    "time/scoring": StatKey("seconds", "Calling the reward functions."),
    "time/ppo/forward_pass": StatKey(
        "seconds",
        "Log-probabilities and values that sampling did not give, and those of the reference.",
    ),
    "time/ppo/compute_rewards": StatKey("seconds", "Token rewards from scores and KL."),
    "time/ppo/compute_advantages": StatKey("seconds", "Advantages and returns."),
    "time/ppo/optimize_step": StatKey("seconds", "All epochs of minibatch updates."),
    "time/ppo/calc_stats": StatKey("seconds", "Collecting this row."),
    "time/ppo/total": StatKey("seconds", "The whole of `step`."),
}


def stat_key(key: str) -> StatKey | None:
    """Look one key up in `STAT_KEYS`, where `<name>` stands for any name; None if unknown.

    Args:
        key: of a row.

    >>> stat_key("rewards/length/mean").unit
    'score'
    """
    if key in STAT_KEYS:
        return STAT_KEYS[key]
    for pattern, explained in STAT_KEYS.items():
        if "<" in pattern and fnmatch.fnmatchcase(key, re.sub(r"<\w+>", "*", pattern)):
            return explained
    return None


def stat_table() -> str:
    """Make the README's table of keys: Markdown, one line a key."""
    rows = [f"| `{key}` | {unit} | {meaning} |" for key, (unit, meaning) in STAT_KEYS.items()]
    return "\n".join(["| Key | Unit | Meaning |", "| --- | --- | --- |", *rows])


def append_stats(path: str | Path, stats: dict[str, Any]) -> None:
    """Append one row to a JSON-lines file and flush it to disk.

    Args:
        path: the file, made (with its folder) when it does not exist.
        stats: numbers of Python, numpy or torch (0-d). Anything else, such as an array, is left
            out. A number that is not finite is written as null.
    """
    row = {key: _finite(_number(value)) for key, value in stats.items() if _is_scalar(value)}
    _append_lines(path, [row])


def append_samples(
    path: str | Path,
    step: int,
    queries: Sequence[str],
    responses: Sequence[str],
    scores: Sequence[float],
) -> None:
    """Append one row (step, query, response, score) for each sample to a JSON-lines file.

    Args:
        path: the file, made when it does not exist.
        step: number of the step.
        queries: texts.
        responses: a text for each query.
        scores: a number for each query; one that is not finite is written as null.
    """
    rows = [
        {"step": step, "query": query, "response": response, "score": _finite(_number(score))}
        for query, response, score in zip(queries, responses, scores, strict=True)
    ]
    _append_lines(path, rows)


def append_alarms(path: str | Path, step: int, sentences: Sequence[str]) -> None:
    """Append one row (step, alarm) for each alarm of a step to a JSON-lines file.

    Args:
        path: the file, made when it does not exist.
        step: number of the step.
        sentences: the alarms; none writes nothing.
    """
    if sentences:
        _append_lines(path, [{"step": step, "alarm": sentence} for sentence in sentences])


def load_stats(run_or_file: str | Path) -> list[dict[str, float]]:
    """Read all_stats back from a run folder or from the file itself.

    A last line that was cut short (the run was killed while writing) is left out. Numbers that were
    not finite come back as nan.

    Args:
        run_or_file: the folder of a run, or its all_stats.jsonl.

    Returns:
        One row a step.

    Raises:
        RecipeError: no file, no rows, or a line that is no JSON object.
    """
    path = Path(run_or_file)
    path = path / STATS_FILE if path.is_dir() else path
    if not path.is_file():
        raise RecipeError(
            f"No statistics at {path}. Give the folder of a run (it holds {STATS_FILE}) or the"
            " file itself; a run writes its first row after its first step."
        )
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        for key, value in row.items():
            if not isinstance(value, int | float | None) or (key == "step" and value is None):
                raise RecipeError(
                    f"{path}, row {number}: `{key}` is {value!r}, which is no number. Mend the row."
                )
    if not rows:
        raise RecipeError(f"{path} holds no rows yet. A run writes one after each step.")
    return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file of a run: all_stats, samples or alarms.

    Args:
        path: the file; it need not be there.

    Returns:
        Its rows, without a last line that was cut short.

    Raises:
        RecipeError: a line is no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    *lines, cut = text.split("\n")  # a whole row ends with a newline
    rows = [_parse_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if cut.endswith("}"):  # a file edited by hand may lack the last newline
        rows.append(_parse_row(path, len(lines) + 1, cut))
    return rows


def keep_steps(path: str | Path, last: int) -> list[dict[str, Any]]:
    """Drop the rows of later steps from a JSON-lines file, as a run does that goes on from one.

    Args:
        path: all_stats, samples or alarms; it need not be there.
        last: the last step to keep.

    Returns:
        The rows that are left.

    Raises:
        RecipeError: a line is no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        return []
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = [_parse_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    rows = [row for row in rows if row["step"] <= last]
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(_json_lines(rows))
    unfinished.replace(path)
    return rows


def to_frame(all_stats: Sequence[dict[str, Any]]) -> "pd.DataFrame":
    """Turn all_stats into a data frame: one row a step, indexed by step, one column a key.

    Args:
        all_stats: one row a step.
    """
    import pandas as pd

    scalars = [{k: _number(v) for k, v in row.items() if _is_scalar(v)} for row in all_stats]
    index = pd.Index(steps_of(all_stats), name="step")
    return pd.DataFrame(scalars, index=index).drop(columns="step", errors="ignore")


def steps_of(all_stats: Sequence[dict[str, Any]]) -> list[int]:
    """Give the step of each row; rows of a hand-written loop that name none are counted from 1.

    Args:
        all_stats: one row a step.
    """
    return [int(row.get("step", number)) for number, row in enumerate(all_stats, 1)]


def run_names(runs: Sequence[str | Path], taken: Sequence[str] = ()) -> list[str]:
    """Name runs for tables and legends: by folder, or by the whole path where that is unclear.

    Args:
        runs: run folders.
        taken: names that mean something else.

    Raises:
        RecipeError: one run is given twice.
    """
    paths = [Path(run).resolve() for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if paths.count(path) > 1:
            raise RecipeError(f"The run {run} is given {paths.count(path)} times. Give it once.")
    names = [path.name for path in paths]
    clear = len({*names, *taken}) == len(names) + len(taken)
    return names if clear else [str(path) for path in paths]


def distinct_n(sequences: Sequence[str | Sequence[Any]], n: int = 2) -> float:
    """Share of distinct n-grams among all n-grams of the sequences (Li et al. 2016, distinct-n).

    Depends on the number of sequences and on their lengths: compare only like with like.

    Args:
        sequences: texts (cut into words at white space) or lists of tokens. No n-gram crosses from
            one sequence to the next.
        n: length of the n-grams.

    Returns:
        Between 0 and 1; nan where no sequence is n long.

    >>> distinct_n(["a b a b"])  # of three pairs "a b" is there twice
    0.6666666666666666
    """
    ngrams = []
    for sequence in sequences:
        tokens = sequence.split() if isinstance(sequence, str) else list(sequence)
        ngrams += [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else math.nan


def _is_scalar(value: Any) -> bool:
    if isinstance(value, int | float):
        return True
    return getattr(value, "ndim", None) == 0 and isinstance(value.item(), int | float)


def _number(value: Any) -> int | float:
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, bool) else value


def _finite(value: int | float) -> int | float | None:
    return value if math.isfinite(value) else None


def _parse_row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{path}, line {number}: not JSON ({error}). Mend the line.") from None
    if not isinstance(row, dict):
        raise RecipeError(f"{path}, line {number}: expected an object with keys, got {line[:60]}.")
    return row


def _append_lines(path: str | Path, rows: list[dict[str, Any]]) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        _drop_cut_line(file)
        file.write(_json_lines(rows))


def _json_lines(rows: list[dict[str, Any]]) -> bytes:
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return lines.encode("utf-8", errors="replace")


def _drop_cut_line(file: Any) -> None:
    """Remove a last line without its newline (a killed run left it), so rows never run together."""
    size = file.seek(0, 2)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
