"""Prompts for training: from the hub, a folder, a file or the embedded reviews."""

import functools
import logging
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trl_recipes.data.conversations import (
    are_conversations,
    encode_conversations,
)
from trl_recipes.data.files import SOURCE, columns_of, make_dataset, read_file
from trl_recipes.data.tokenizers import check_characters
from trl_recipes.errors import RecipeError
from trl_recipes.models import hub
from trl_recipes.models.forward import context_length
from trl_recipes.settings import setting

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedTokenizerBase

TEXT_COLUMNS = ("text", "prompt", "review", "sentence", "query")
_TEST_SPLITS = ("test", "heldout", "validation", "valid", "dev")
_HELD_OUT_SHARE = 0.1
_HELD_OUT_SEED = 0

_log = logging.getLogger(__name__)
_said: set[str] = set()


class LengthSampler:
    """Draws lengths uniformly from [min_value, max_value), like the class of this name in TRL.

    Args:
        min_value: the smallest length, in tokens.
        max_value: one more than the largest length, in tokens.
        seed: seed of a generator of its own; None draws from numpy's global one, as TRL did.

    Raises:
        RecipeError: no length lies in the interval, or min_value is negative.

    >>> lengths = LengthSampler(2, 9, seed=0)
    >>> all(2 <= lengths() <= 8 for _ in range(100))
    True
    """

    def __init__(self, min_value: int, max_value: int, seed: int | None = None):
        if not 0 <= min_value < max_value:
            raise RecipeError(
                f"LengthSampler: no length lies in [{min_value}, {max_value}), where the upper "
                f"end is left out. Use 0 <= min_value < max_value; for the one length {min_value} "
                f"use LengthSampler({min_value}, {min_value + 1}). In a recipe the two are "
                "--min_prompt_length and one more than --max_prompt_length."
            )
        self.values = list(range(min_value, max_value))
        self._draw = (
            np.random.choice  # a run seeds the global generator, as in TRL
            if seed is None
            else np.random.default_rng(seed).choice
        )

    def __call__(self) -> int:
        """Draw one length, in tokens."""
        return int(self._draw(self.values))


def collator(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Turn a list of rows into a dict of lists, without padding.

    Args:
        rows: B rows with the same keys.

    Returns:
        A list of B values for each key; `input_ids` are one-dimensional LongTensors.

    >>> collator([{"query": "a"}, {"query": "b"}])
    {'query': ['a', 'b']}
    """
    batch = {key: [row[key] for row in rows] for key in rows[0]}
    if "input_ids" in batch:
        batch["input_ids"] = [torch.as_tensor(ids, dtype=torch.long) for ids in batch["input_ids"]]
    return batch


def stream_rows(first: int, count: int, size: int, seed: int) -> list[int]:
    """Rows of a data set that is gone through again and again, in a new order each time.

    Which rows a batch holds follows from its place alone, so a run that resumes, or that has
    another number of processes, sees the same ones; and no row comes twice before all came once.

    Args:
        first: how many rows came before.
        count: rows wanted.
        size: rows of the data set.
        seed: of the orders.

    Returns:
        `count` row numbers.
    """
    places = (divmod(place, size) for place in range(first, first + count))
    return [_epoch_order(size, epoch, seed)[place] for epoch, place in places]


@functools.lru_cache(maxsize=2)  # a batch may end one round and begin the next
def _epoch_order(size: int, epoch: int, seed: int) -> list[int]:
    return np.random.default_rng([seed, epoch]).permutation(size).tolist()


def load_rows(
    dataset_name: str | None, *, split: str = "train", config_name: str | None = None
) -> "Dataset":
    """Load one split of a data set, with all its columns.

    Args:
        dataset_name: None for the embedded reviews (columns text and label; splits train, prompts
            and heldout, also called test); a csv, tsv, json, jsonl, parquet or txt file; a folder
            of such files as on the hub, or written by save_to_disk; or a name on the hub. A column
            `split` divides a data set that has no splits of its own.
        split: for "test" any of test, heldout, validation, valid and dev serves. Where there is
            none, a tenth of the rows (drawn with a fixed seed) is kept out of train for it.
        config_name: the configuration of a data set on the hub.

    Returns:
        The rows, at least one.

    Raises:
        RecipeError: no such data set or split, no rows, or a damaged row (with file and row).
    """
    if dataset_name is None:
        return _embedded_rows(split)
    location = hub.resolve(dataset_name, "dataset")
    parts = (
        {"train": read_file(Path(location))}
        if Path(location).is_file()
        else _load_splits(location, config_name)
    )
    if len(parts) == 1:
        (only,) = parts.values()
        if "split" in only.column_names:
            parts = _divide(only)
    rows = _choose_split(parts, split, dataset_name)
    if len(rows) == 0:
        raise RecipeError(
            f"{SOURCE}: the split `{split}` of `{dataset_name}` holds no rows. Give a data set "
            "with at least one."
        )
    return rows


def load_prompts(
    dataset_name: str | None,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    split: str = "train",
    length_sampler: Callable[[], int],
    text_column: str | None = None,
    config_name: str | None = None,
    max_prompts: int | None = None,
    seed: int = 0,
    model: "nn.Module | None" = None,
    response_length: int = 1,
) -> "Dataset":
    """Make prompts from the beginnings of texts, or from whole conversations.

    A column of conversations, in TRL's format, goes through the tokenizer's chat template and is
    never cut: one that leaves no room in the model's context is left out, and counted.

    Args:
        dataset_name: as in `load_rows`. Of the embedded reviews, "train" means the part that is
            set aside for prompts.
        tokenizer: the policy's tokenizer.
        split: as in `load_rows`.
        length_sampler: called once a text; gives the length of its prompt, in tokens.
        text_column: the column to cut; when None, `prompt` where that holds conversations, else
            the first of `TEXT_COLUMNS` that is there.
        config_name: the configuration of a data set on the hub.
        max_prompts: keep this many rows, drawn with `seed`; all when None.
        seed: seed of that draw.
        model: whose context conversations must fit into; None lets any length pass.
        response_length: tokens that must have room behind a conversation.

    Returns:
        Columns `query` (the prompt as text), `input_ids` (its tokens) and those of the rows;
        conversations stand in `prompt`, where trainers and reward functions look for them.

    Raises:
        RecipeError: as `load_rows`; no such column, a text that is none, no chat template, or no
            prompt left.
    """
    if max_prompts is not None and max_prompts < 1:
        raise RecipeError(f"max_prompts is {max_prompts}. Use 1 or more, or leave it out.")
    if dataset_name is None and split == "train":
        split = "prompts"
    rows = load_rows(dataset_name, split=split, config_name=config_name)
    shown = dataset_name or "the embedded reviews"
    if text_column is None and holds_conversations(rows):
        text_column = "prompt"
    column = _text_column(rows.column_names, text_column, shown)
    order = list(range(len(rows)))
    if max_prompts is not None and max_prompts < len(rows):
        random.Random(seed).shuffle(order)

    texts = rows[column][:]  # a list, far quicker to index than the column itself
    where, chat = f"{shown} ({split}), column `{column}`", are_conversations(texts)
    made = (
        encode_conversations(texts, order, tokenizer, f"{SOURCE}: {where}")
        if chat
        else _beginnings(texts, order, tokenizer, where, length_sampler)
    )
    context = context_length(model.config) if chat and model is not None else None
    room = math.inf if context is None else context - response_length
    kept: list[int] = []
    token_lists: list[list[int]] = []
    queries: list[str] = []
    empty = too_long = 0
    for row, ids, query in made:
        if not query.strip():
            empty += 1
        elif chat and len(ids) > room:
            too_long += 1
        else:
            kept.append(row)
            token_lists.append(ids)
            queries.append(query)
        if len(kept) == max_prompts:
            break
    if not kept and not too_long:
        how = " in" if chat else " after cutting"
        raise RecipeError(
            f"{SOURCE}: all {empty} prompts of {shown} are empty{how} column `{column}`. "
            "Give texts that are not empty, or longer prompts (the shortest and longest length are "
            "flags of the recipe)."
        )
    total = empty + too_long + len(kept)
    if empty:
        _say(f"{empty} of {total} prompts of {shown} are empty and left out.")
    if too_long:
        long = (
            f"{too_long} of {total} conversations of {shown} are longer than the {room} tokens "
            f"that a response of {response_length} leaves of the model's context"
        )
        if not kept:
            raise RecipeError(
                f"{SOURCE}: {long}, and none is left. Give shorter ones, lower `response_length`, "
                "or use a model of longer context."
            )
        _say(f"{long}; they are left out.")
    columns = rows.select(kept).to_dict()
    if chat:
        columns["prompt"] = columns[column]
    elif are_conversations(columns.get("prompt", [])):
        del columns["prompt"]  # the texts of another column were asked for
    return make_dataset({**columns, "query": queries, "input_ids": token_lists}, shown)


@dataclass
class PromptArguments:
    """Where a recipe's prompts come from, and how long they are."""

    dataset_name: str | None = setting(None, "Texts to take prompts of; embedded when left out.")
    text_column: str | None = setting(None, "Column that holds the text.")
    min_prompt_length: int = setting(2, "Shortest prompt, in tokens.")
    max_prompt_length: int = setting(8, "Longest prompt, in tokens.")
    eval_prompts: int = setting(256, "Held-out prompts to judge by.")

    def load(
        self, split: str, tokenizer: "PreTrainedTokenizerBase", seed: int, **chosen: Any
    ) -> "Dataset":
        """Load all prompts of `train`, or `eval_prompts` of `test`; `chosen` as `load_prompts`."""
        return load_prompts(
            self.dataset_name,
            tokenizer,
            split=split,
            length_sampler=LengthSampler(self.min_prompt_length, self.max_prompt_length + 1, seed),
            text_column=self.text_column,
            max_prompts=None if split == "train" else self.eval_prompts,
            seed=seed,
            **chosen,
        )


def holds_conversations(prompts: "Dataset") -> bool:
    """Whether the prompts of a data set are conversations rather than texts.

    Args:
        prompts: what `load_prompts` gave, or a data set with a column `prompt`.
    """
    return "prompt" in prompts.column_names and are_conversations(prompts["prompt"][:])


def one_prompt(
    text: str, tokenizer: "PreTrainedTokenizerBase", copies: int = 1, chat: bool = False
) -> list[dict[str, Any]]:
    """Make rows, as those of `load_prompts`, of one prompt to look at.

    Args:
        text: the prompt.
        tokenizer: the policy's tokenizer.
        copies: how many rows; sampling continues each in its own way.
        chat: whether the text is a user's message to answer, rather than a text to continue.

    Raises:
        RecipeError: the prompt is empty or has characters that the tokenizer never saw, or the
            tokenizer has no chat template for a message.
    """
    if not text.strip():
        raise RecipeError("--prompt is empty. Give at least one word to continue.")
    check_characters(text, tokenizer, "--prompt")
    if chat:
        messages = [{"role": "user", "content": text}]
        ((_, ids, query),) = encode_conversations([messages], [0], tokenizer, "--prompt")
        return [{"prompt": messages, "query": query, "input_ids": ids}] * copies
    return [{"query": text, "input_ids": tokenizer(text)["input_ids"]}] * copies


def _beginnings(
    texts: Sequence[Any],
    order: list[int],
    tokenizer: "PreTrainedTokenizerBase",
    where: str,
    length_sampler: Callable[[], int],
) -> Iterator[tuple[int, list[int], str]]:
    """Row number, token ids and text of the beginning of each text, in the given order."""
    for row, ids in _tokenize(texts, order, tokenizer, where):
        ids = ids[: length_sampler()]
        yield row, ids, tokenizer.decode(ids, skip_special_tokens=True)


def _tokenize(
    texts: Sequence[Any], order: list[int], tokenizer: "PreTrainedTokenizerBase", where: str
) -> Iterator[tuple[int, list[int]]]:
    """Row number and token ids of each text, in the given order."""
    for start in range(0, len(order), 1000):
        rows = order[start : start + 1000]
        batch = [texts[row] for row in rows]
        for row, text in zip(rows, batch, strict=True):
            if text is not None and not isinstance(text, str):
                raise RecipeError(
                    f"{SOURCE}: row {row + 1} of {where} holds {text!r} "
                    f"({type(text).__name__}), which is no text. Choose a column of texts with "
                    "--text_column."
                )
        check_characters([text or "" for text in batch], tokenizer, f"{SOURCE}: {where}")
        # verbose=False: whole reviews are longer than the model's context, prompts are not.
        ids = tokenizer([text or "" for text in batch], verbose=False)["input_ids"]
        yield from zip(rows, ids, strict=True)


def _text_column(columns: Sequence[str], wanted: str | None, shown: str) -> str:
    for name in (wanted,) if wanted is not None else TEXT_COLUMNS:
        if name in columns:
            return name
    missing = f"`{wanted}`" if wanted is not None else "that is called " + " or ".join(TEXT_COLUMNS)
    raise RecipeError(
        f"--text_column: {shown} has no column {missing}. Its columns are: {', '.join(columns)}. "
        "Name the one that holds the texts."
    )


def _embedded_rows(split: str) -> "Dataset":
    from trl_recipes import embedded

    part = "heldout" if split in _TEST_SPLITS else split
    if part not in ("train", "prompts", "heldout"):
        raise RecipeError(
            f"The embedded reviews have no split `{split}`. "
            "Choose train, prompts or heldout (also called test)."
        )
    return make_dataset(columns_of(embedded.reviews(part)), "the embedded reviews")


def _load_splits(location: str, config_name: str | None) -> dict[str, "Dataset"]:
    """The splits of a folder, or of a data set on the hub."""
    import datasets

    folder = Path(location)
    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with hub.loading(location, "dataset"):
            if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
                loaded = datasets.load_from_disk(location)
            else:
                loaded = datasets.load_dataset(location, config_name)
    except datasets.exceptions.DatasetGenerationError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise RecipeError(
            f"{SOURCE}: the files of `{location}` could not be read ({reason[:300]}). Mend the "
            "file, or give the one file that you mean."
        ) from error
    finally:
        if bars:
            datasets.enable_progress_bars()
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _divide(rows: "Dataset") -> dict[str, "Dataset"]:
    """Divide rows by their column `split`."""
    labels = [str(label) for label in rows["split"]]
    return {
        name: rows.select([row for row, label in enumerate(labels) if label == name])
        for name in dict.fromkeys(labels)
    }


def _choose_split(parts: dict[str, "Dataset"], split: str, name: str) -> "Dataset":
    if split in parts and split != "train":
        return parts[split]
    test = next((part for part in _TEST_SPLITS if part in parts), None)
    if split in _TEST_SPLITS and test is not None:
        return parts[test]
    train = "train" if "train" in parts else next(iter(parts)) if len(parts) == 1 else None
    if train is None or split not in ("train", *_TEST_SPLITS):
        raise RecipeError(
            f"{SOURCE}: `{name}` has no split `{split}`. Its splits are: {', '.join(parts)}."
        )
    if test is not None:
        return parts[train]
    return _hold_out(parts[train], split == "train", name)


def _hold_out(rows: "Dataset", train: bool, name: str) -> "Dataset":
    """Nine tenths of the rows for training, or the other tenth; always the same ones."""
    count = max(1, round(len(rows) * _HELD_OUT_SHARE))
    if len(rows) <= count:
        if train:
            return rows
        raise RecipeError(
            f"{SOURCE}: `{name}` has no test split and only {len(rows)} row(s), too few to hold "
            "some out. Give a data set with a test split or with more rows."
        )
    _say(f"{name} has no test split: {count} of its {len(rows)} rows are held out of train for it.")
    held_out = np.random.default_rng(_HELD_OUT_SEED).permutation(len(rows))[:count]
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[held_out] = True
    return rows.select(np.flatnonzero(chosen != train))


def _say(message: str) -> None:
    """Log a message once, in the main process only."""
    if message not in _said and os.environ.get("RANK", "0") == "0":
        _said.add(message)
        _log.warning(message)
