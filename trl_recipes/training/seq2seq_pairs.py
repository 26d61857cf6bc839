"""Sources and targets: from the embedded rewrites, one data set, or two files line by line."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trl_recipes.data.files import load_rows
from trl_recipes.data.prompts import TEXT_COLUMNS
from trl_recipes.errors import RecipeError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

Pair = dict[str, str]


@dataclass
class PairArguments:
    """Where the pairs are."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Source-target pairs: file, folder or hub name; embedded when left out."},
    )
    source_column: str = field(default="source", metadata={"help": "Column of the sources."})
    target_column: str = field(default="target", metadata={"help": "Column of the targets."})
    target_file: str | None = field(
        default=None,
        metadata={"help": "Text file of one target a line; dataset_name is one of sources then."},
    )

    prompts_name: str | None = field(
        default=None,
        metadata={"help": "Further sources, for the outputs of PPO; the pairs' own if left out."},
    )
    eval_prompts: int = field(default=256, metadata={"help": "Held-out sources to judge by."})

    def __post_init__(self):
        if self.target_file is not None and self.dataset_name is None:
            raise RecipeError(
                "--target_file needs --dataset_name: the text file of the sources, line by line."
            )


def load_pairs(args: PairArguments, split: str) -> list[Pair]:
    """Load source-target pairs.

    Args:
        args: where they are; as in `load_rows`, or two text files.
        split: "train" or "test".

    Returns:
        Rows {"source": text, "target": text}; neither is empty.

    Raises:
        RecipeError: as `load_rows`; a column that is not there, a source or target that is empty or
            no text, or files of different length.
    """
    if args.dataset_name is None:
        from trl_recipes.embedded.rewrites import rewrites

        return rewrites("heldout" if split == "test" else split)
    if args.target_file is not None:
        return _split_lines(_two_files(args.dataset_name, args.target_file), split)
    rows = load_rows(args.dataset_name, split=split)
    where = f"{args.dataset_name} ({split})"
    sources = _texts(rows, args.source_column, "--source_column", where)
    targets = _texts(rows, args.target_column, "--target_column", where)
    return [{"source": s, "target": t} for s, t in zip(sources, targets, strict=True)]


def load_sources(args: PairArguments, pairs: Sequence[Pair]) -> list[str]:
    """Load the sources that outputs are sampled for, in the reward model's stage and in PPO.

    Args:
        args: where they are; without `prompts_name` the pairs' own, or, of the embedded rewrites,
            those set aside for it.
        pairs: to pretrain on.

    Raises:
        RecipeError: as `load_pairs`.
    """
    if args.prompts_name is None:
        rows = load_pairs(args, "prompts") if args.dataset_name is None else pairs
        return [row["source"] for row in rows]
    found = load_rows(args.prompts_name, split="train")
    names = [name for name in (args.source_column, *TEXT_COLUMNS) if name in found.column_names]
    column = names[0] if names else args.source_column
    return _texts(found, column, "--source_column", f"{args.prompts_name} (--prompts_name)")


def tokenize(
    texts: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    limit: int | None,
    too_long: Literal["cut", "error"],
    what: str,
) -> list[list[int]]:
    """Turn texts into token ids with the tokenizer's own special tokens.

    Args:
        texts: sources or targets.
        tokenizer: the model's.
        limit: most tokens of one, special ones included; None: any number.
        too_long: cut what is longer and say how many were, or refuse it.
        what: what the texts are, for messages: "source" or "target".

    Returns:
        A list of ids a text; a cut one keeps the tokenizer's end token.

    Raises:
        RecipeError: a text is longer than `limit` and `too_long` is "error".
    """
    ids = tokenizer(list(texts), verbose=False)["input_ids"]
    if limit is None:
        return ids
    long = [row for row, tokens in enumerate(ids) if len(tokens) > limit]
    if long and too_long == "error":
        raise RecipeError(
            f"--too_long error: {what} {long[0] + 1} has {len(ids[long[0]])} tokens, as have "
            f"{len(long) - 1} more than the {limit} that the model takes. Shorten them, raise "
            "--context_length where the model is from scratch, or use --too_long cut."
        )
    if long:
        _log.warning("%d of %d %ss are cut to %d tokens.", len(long), len(ids), what, limit)
        cut = tokenizer([texts[row] for row in long], truncation=True, max_length=limit)
        for row, tokens in zip(long, cut["input_ids"], strict=True):
            ids[row] = tokens
    return ids


def prompt_rows(
    sources: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    limit: int | None,
    too_long: Literal["cut", "error"],
) -> "Dataset":
    """Make PPO's data set of sources: columns `query` and `input_ids`.

    Args:
        sources: texts.
        tokenizer: as for `tokenize`.
        limit: as for `tokenize`.
        too_long: as for `tokenize`.
    """
    from datasets import Dataset

    ids = tokenize(sources, tokenizer, limit, too_long, "source")
    return Dataset.from_dict({"query": list(sources), "input_ids": ids})


def _texts(rows: "Dataset", column: str, flag: str, where: str) -> list[str]:
    if column not in rows.column_names:
        raise RecipeError(
            f"{flag}: {where} has no column `{column}`. Its columns are: "
            f"{', '.join(rows.column_names)}. Name the one that holds the {flag[2:-7]}s."
        )
    texts: list[Any] = list(rows[column])
    for row, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            kind = "an empty text" if isinstance(text, str) else f"{text!r}, which is no text,"
            raise RecipeError(
                f"{flag}: row {row} of {where} holds {kind} in `{column}`. Mend or delete the row."
            )
    return texts


def _two_files(sources: str, targets: str) -> list[Pair]:
    """The lines of two files, side by side; an empty one in the middle is a mistake."""
    lines = {
        flag: _lines(name, flag)
        for flag, name in (("--dataset_name", sources), ("--target_file", targets))
    }
    counts = [len(found) for found in lines.values()]
    if counts[0] != counts[1]:
        raise RecipeError(
            f"--target_file: `{sources}` has {counts[0]} lines and `{targets}` has {counts[1]}. "
            "Each source needs the target of the same line: give files of equal length."
        )
    for (flag, found), name in zip(lines.items(), (sources, targets), strict=True):
        empty = next((row for row, line in enumerate(found, 1) if not line.strip()), None)
        if empty is not None:
            raise RecipeError(
                f"{flag}: line {empty} of `{name}` is empty. Mend it, or delete it in both files."
            )
    sources, targets = lines.values()
    return [{"source": s, "target": t} for s, t in zip(sources, targets, strict=True)]


def _lines(name: str, flag: str) -> list[str]:
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RecipeError(
            f"{flag}: `{name}` could not be read ({reason}). Give a text file of one text a line."
        ) from error
    return text.removesuffix("\n").split("\n") if text.strip() else []


def _split_lines(pairs: list[Pair], split: str) -> list[Pair]:
    """Every tenth pair is for the test."""
    if len(pairs) < 2:
        raise RecipeError(
            f"--dataset_name: {len(pairs)} pair(s) are too few: every tenth is held out. Give more."
        )
    return [pair for row, pair in enumerate(pairs) if (row % 10 == 1) == (split == "test")]
