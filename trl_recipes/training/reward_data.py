"""What a reward model learns from: labeled texts, or pairs of a better and a worse one.

Pairs are TRL's: columns `chosen` and `rejected`, and `prompt` where the two do not begin with it;
texts, or conversations (lists of messages). Labeled texts can be made into pairs.
"""

import bisect
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_recipes.data.conversations import is_conversation
from trl_recipes.errors import RecipeError
from trl_recipes.stats import is_number
from trl_recipes.training.language_model import check_values, read_column, read_texts

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labeled:
    """N texts with a label each: the number of a class, or where `names` is None any number."""

    texts: list[str]
    labels: list[int] | list[float]
    names: list[str] | None

    def __str__(self) -> str:
        if self.names is None:
            return f"{len(self.texts)} texts with a number each"
        counts = (f"{self.labels.count(i)} {name}" for i, name in enumerate(self.names))
        return f"{len(self.texts)} texts ({', '.join(counts)})"


@dataclass(frozen=True)
class Pairs:
    """N pairs of whole texts, prompt included.

    `fragments`: whether their fragments teach something too, as of texts of two classes, and not
    of two answers to one prompt. `rendered`: whether a chat template wrote the special tokens.
    """

    chosen: list[str]
    rejected: list[str]
    fragments: bool = False
    rendered: bool = False
    names = None  # as where labels are numbers: the model gives one score

    @property
    def texts(self) -> list[str]:
        """All texts, the better ones first."""
        return [*self.chosen, *self.rejected]

    def __str__(self) -> str:
        return f"{len(self.chosen)} pairs"


def kind_of(rows: Dataset, label_column: str) -> str:
    """Guess what a data set teaches: pairs, classes or number."""
    if {"chosen", "rejected"} <= set(rows.column_names):
        return "pairs"
    values = rows[label_column][:] if label_column in rows.column_names else []
    fractions = any(isinstance(value, float) and value % 1 for value in values)
    return "number" if fractions else "classes"


def read_reward_data(
    train: Dataset,
    heldout: Dataset,
    source: str,
    *,
    kind: str | None = None,
    text_column: str | None = None,
    label_column: str = "label",
    names: Sequence[str] | None = None,
    pairs_per_text: int = 1,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
) -> tuple[Labeled | Pairs, Labeled | Pairs]:
    """Read what a reward model learns from, and what it is measured by; both of one kind.

    `kind`: classes, number or pairs, else found; pairs are made of labeled texts where the columns
    chosen and rejected are missing. `names`: those of the labels, worst first; else found.
    `tokenizer`: that of the base model, whose chat template conversations need.
    """
    found = kind_of(train, label_column)
    kind = kind or found
    parts = [(train, f"{source} (train)"), (heldout, f"{source} (test)")]
    if kind == "pairs" and (found == "pairs" or label_column not in train.column_names):
        learned, measured = (read_pairs(rows, where, tokenizer) for rows, where in parts)
        return learned, measured
    numbers = "number" in (kind, found)
    columns = {"text_column": text_column, "label_column": label_column, "numbers": numbers}
    learned = read_labeled(*parts[0], names=names, **columns)
    measured = read_labeled(*parts[1], names=learned.names, **columns)
    check_labels_differ(learned, parts[0][1])
    if kind != "pairs":
        return learned, measured
    check_labels_differ(measured, parts[1][1])
    return pairs_of_labels(learned, pairs_per_text, seed), pairs_of_labels(measured, 1, 0)


def read_labeled(
    rows: Dataset,
    source: str,
    *,
    text_column: str | None,
    label_column: str,
    names: Sequence[str] | None = None,
    numbers: bool = False,
) -> Labeled:
    """Read labeled texts, or with `numbers` texts with a number; empty ones are left out."""
    texts = read_texts(rows, text_column, source)
    advice = "Name one of them; preference pairs need the columns chosen and rejected."
    values = read_column(rows, label_column, "--label_column", source, advice)
    if numbers:
        fault = "as label, which is no finite number. Fix the row, or use --kind classes for names."
        check_values(values, is_number, "--label_column", source, fault)
        names, labels = None, [float(value) for value in values]
    else:
        names = list(names or _class_names(values, source))
        labels = _class_numbers(values, names, source)
    kept = [index for index, text in enumerate(texts) if text.strip()]
    if not kept:
        raise RecipeError(f"--text_column: all {len(texts)} texts of {source} are empty.")
    if len(kept) < len(texts):
        empty = len(texts) - len(kept)
        _log.warning("%d of %d texts of %s are empty and left out.", empty, len(texts), source)
    return Labeled([texts[index] for index in kept], [labels[index] for index in kept], names)


def check_labels_differ(data: Labeled, source: str) -> None:
    """Refuse texts that all have the same label, from which nothing can be learned."""
    if len(set(data.labels)) < 2:
        only = data.labels[0] if data.names is None else data.names[data.labels[0]]
        raise RecipeError(
            f"--label_column: every text of {source} has the label {only}. Give a data set with "
            "texts of both or more labels."
        )


def read_pairs(
    rows: Dataset, source: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> Pairs:
    """Read preference pairs; those of an empty text or of two equal ones are left out."""
    missing = [name for name in ("chosen", "rejected") if name not in rows.column_names]
    if missing:
        raise RecipeError(
            f"--kind pairs: {source} has no column {' and no column '.join(missing)}. Its columns "
            f"are: {', '.join(rows.column_names)}. Give preference pairs (chosen, rejected, and "
            "prompt if they do not begin with it), or labeled texts (text, label)."
        )
    count = len(rows)
    prompts = rows["prompt"][:] if "prompt" in rows.column_names else [None] * count
    answers = {column: rows[column][:] for column in ("chosen", "rejected")}
    sides = (
        [
            _whole_text(prompt, answer, f"row {row} of {source}, column `{column}`", tokenizer)
            for row, (prompt, answer) in enumerate(zip(prompts, given, strict=True), 1)
        ]
        for column, given in answers.items()
    )
    pairs = zip(*sides, strict=True)
    kept = [pair for pair in pairs if pair[0] != pair[1] and all(text.strip() for text in pair)]
    useless = f"of {count} pairs of {source} are empty, or have chosen equal to rejected"
    if not kept:
        raise RecipeError(f"--dataset_name: {count} {useless}: no pair is left to learn.")
    if len(kept) < count:
        _log.warning("%d %s: left out.", count - len(kept), useless)
    chosen, rejected = map(list, zip(*kept, strict=True))
    rendered = any(is_conversation(answer) for given in answers.values() for answer in given)
    return Pairs(chosen, rejected, rendered=rendered)


def pairs_of_labels(data: Labeled, per_text: int, seed: int) -> Pairs:
    """Pair each text with `per_text` others of another label; the higher label is chosen."""
    order = sorted(range(len(data.texts)), key=lambda index: data.labels[index])
    ascending = [data.labels[index] for index in order]
    draw = random.Random(seed)
    pairs = []
    for _ in range(per_text):
        for text, label in zip(data.texts, data.labels, strict=True):
            first, end = bisect.bisect_left(ascending, label), bisect.bisect_right(ascending, label)
            place = draw.randrange(len(order) - (end - first))  # among those of another label
            other = order[place if place < first else place + end - first]
            pair = (text, data.texts[other])
            pairs.append(pair if label > data.labels[other] else pair[::-1])
    pairs = [pair for pair in pairs if pair[0] != pair[1]]  # a text may have two labels
    return Pairs([better for better, _ in pairs], [worse for _, worse in pairs], fragments=True)


def _class_names(values: list[Any], source: str) -> list[str]:
    """Name the labels that are there: the mood for 0 and 1, else the values themselves."""
    found = set(values)
    if found <= {0, 1, "0", "1"}:
        return ["NEGATIVE", "POSITIVE"]
    fault = "as label, which names no class. Fix the row, or use --kind number for numbers."
    check_values(values, lambda v: isinstance(v, str | int), "--label_column", source, fault)
    spelled = pd.Series(sorted({str(value).strip() for value in found}))
    if len(spelled) > 100:
        raise RecipeError(
            f"--label_column: {source} has {len(spelled)} different labels (such as {spelled[0]}), "
            "too many for classes. Use --kind number for numbers, or name another column."
        )
    numbers = pd.to_numeric(spelled, errors="coerce")  # names, which are none, come last
    return spelled[numbers.sort_values(kind="stable").index].tolist()


def _class_numbers(values: list[Any], names: list[str], source: str) -> list[int]:
    """Turn labels into numbers of `names`: they are names, in any case, or else numbers."""

    def spelled(value: Any) -> str:
        value = int(value) if isinstance(value, bool) else value
        return (f"{value:g}" if isinstance(value, float) else str(value)).strip().lower()

    numbers = {name.lower(): number for number, name in enumerate(names)}
    if not numbers.keys() >= {spelled(value) for value in values}:
        numbers = {str(number): number for number in range(len(names))} | numbers
    fault = (
        f"as label, which is neither a name ({', '.join(names)}) nor a number from 0 to "
        f"{len(names) - 1}. Name all labels in the order of their numbers."
    )
    check_values(values, lambda value: spelled(value) in numbers, "--class_names", source, fault)
    return [numbers[spelled(value)] for value in values]


def _whole_text(
    prompt: Any, answer: Any, where: str, tokenizer: PreTrainedTokenizerBase | None
) -> str:
    """Join prompt and answer to one text; conversations through the chat template."""
    if isinstance(answer, str) and isinstance(prompt, str | None):
        return (prompt or "") + answer
    if not (is_conversation(answer) and (prompt is None or is_conversation(prompt))):
        raise RecipeError(
            f"--dataset_name: {where} holds {str(answer)[:60]!r} ({type(answer).__name__}) after a "
            f"prompt of type {type(prompt).__name__}. Both must be texts, or both lists of "
            "messages with role and content."
        )
    if tokenizer is None or tokenizer.chat_template is None:
        raise RecipeError(
            f"--dataset_name: {where} holds a conversation, and there is no chat template to write "
            "it with. Give a base model that has one (--model_name_or_path), or plain texts."
        )
    return tokenizer.apply_chat_template([*(prompt or []), *answer], tokenize=False)
