"""Prompts for training: the beginnings of texts, or whole conversations."""

import functools
import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, IterableDataset, concatenate_datasets
from torch import nn
from torch.utils.data import default_collate
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from trl_recipes.data.conversations import (
    are_conversations,
    check_chat_template,
    encode_conversations,
    is_conversation,
    shown,
)
from trl_recipes.data.files import SOURCE, load_rows
from trl_recipes.data.tokenizers import appended_tokens, check_characters, cut_length
from trl_recipes.errors import RecipeError
from trl_recipes.models.forward import context_length
from trl_recipes.settings import setting

logger = logging.get_logger(__name__)

# Before the name of a column whose place a column of the prompt takes; see `own_names`.
OWN = "own "
TEXT_COLUMNS = ("text", "prompt", "review", "sentence", "query")
PROMPT = ("query", "prompt", "input_ids", "attention_mask")  # a prompt, in one form or another


class LengthSampler:
    """Draws lengths uniformly from [min_value, max_value), as TRL's class of this name.

    `seed` is of a generator of its own; None draws from numpy's global one, as TRL did.

    >>> lengths = LengthSampler(2, 9, seed=0)
    >>> all(2 <= lengths() <= 8 for _ in range(100))
    True
    """

    def __init__(self, min_value: int, max_value: int, seed: int | None = None):
        if not 0 <= min_value < max_value:
            raise RecipeError(
                f"LengthSampler: no length lies in [{min_value}, {max_value}). Use 0 <= min_value "
                "< max_value; in a recipe they are --min_prompt_length and one more than "
                "--max_prompt_length."
            )
        self.values = list(range(min_value, max_value))
        self._draw = (np.random if seed is None else np.random.default_rng(seed)).choice

    def __call__(self) -> int:
        """Draw one length, in tokens."""
        return int(self._draw(self.values))


def collator(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Turn a list of rows into a dict of lists, without padding; `input_ids` become LongTensors.

    >>> collator([{"query": "a"}, {"query": "b"}])
    {'query': ['a', 'b']}
    """
    if not isinstance(rows[0], Mapping):  # such as tuples of tensors
        return default_collate(rows)
    batch = {key: [row[key] for row in rows] for key in rows[0]}
    if "input_ids" in batch:
        batch["input_ids"] = [torch.as_tensor(ids, dtype=torch.long) for ids in batch["input_ids"]]
    return batch


def collated(data_collator: Callable, rows: list[dict[str, Any]]) -> Mapping[str, Any]:
    """Collate prompts to train on; where there is an `attention_mask` it cuts padding away."""
    try:
        batch = data_collator(rows)
        if "attention_mask" in batch:
            pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
            tensors = ((torch.as_tensor(ids), torch.as_tensor(mask).bool()) for ids, mask in pairs)
            batch["input_ids"] = [ids[mask] for ids, mask in tensors]
        batch["input_ids"][0]
    except Exception as error:  # a user's function may raise anything
        name = getattr(data_collator, "__name__", type(data_collator).__name__)
        raise RecipeError(
            f"`data_collator` ({name}) made no `input_ids` of rows with the columns "
            f"{', '.join(rows[0])}: {type(error).__name__}: {error!s:.120}. Leave it out: `train` "
            "takes prompts of any length."
        ) from error
    return batch


def stream_rows(first: int, count: int, size: int, seed: int) -> list[int]:
    """Give `count` row numbers of a data set that is gone through in a new order each time."""
    # They follow from the number of rows before alone: a resumed run, and any number of processes,
    # sees the same ones. No row comes twice before all came once.
    places = (divmod(place, size) for place in range(first, first + count))
    return [_epoch_order(size, epoch, seed)[place] for epoch, place in places]


@functools.lru_cache(maxsize=2)  # a batch may end one round and begin the next
def _epoch_order(size: int, epoch: int, seed: int) -> list[int]:
    return np.random.default_rng([seed, epoch]).permutation(size).tolist()


def load_prompts(
    dataset_name: str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str = "train",
    length_sampler: Callable[[], int],
    text_column: str | None = None,
    max_prompts: int | None = None,
    seed: int = 0,
    model: nn.Module | None = None,
    response_length: int = 1,
) -> Dataset:
    """Make prompts from the beginnings of texts, or from whole conversations.

    The rows are those of [`load_rows`] (of the embedded reviews, "train" means those set aside for
    prompts), at most `max_prompts` of them, drawn with `seed`. `text_column` holds the texts; None
    takes `prompt` where it holds conversations, else the first of `TEXT_COLUMNS` that is there. A
    text is cut to `length_sampler()` tokens, at a whole character. Conversations, in TRL's format,
    go through the chat template and are never cut: one that leaves no room for `response_length`
    tokens in the model's context is left out, and counted.

    Adds the columns `query` (the prompt as text) and `input_ids`; conversations move to `prompt`.
    Other columns of these names become `own query` and so on: reward functions get them by the
    names they had.
    """
    if dataset_name is None and split == "train":
        split = "prompts"
    rows = load_rows(dataset_name, split=split)
    name = dataset_name or "the embedded reviews"
    if text_column is None and holds_conversations(rows):
        text_column = "prompt"
    column = column_of_text(rows.column_names, text_column, name)
    order = list(range(len(rows)))
    if max_prompts is not None and max_prompts < len(rows):
        random.Random(seed).shuffle(order)

    texts = rows[column][:]  # a list, far quicker to index than the column itself
    where, chat = f"{name} ({split}), column `{column}`", are_conversations(texts)
    if chat:
        made = encode_conversations(texts, order, tokenizer, f"{SOURCE}: {where}")
    else:
        whole = _tokenize(texts, order, tokenizer, where)
        cut = ((row, ids[: cut_length(ids, length_sampler(), tokenizer)]) for row, ids in whole)
        made = ((row, ids, tokenizer.decode(ids, skip_special_tokens=True)) for row, ids in cut)
    context = context_length(model.config) if chat and model is not None else None
    room = math.inf if context is None else context - response_length
    kept = _first_fitting(made, max_prompts, f"{name} in `{column}`", room, response_length)
    numbers, ids, queries = map(list, zip(*kept, strict=True))
    prompts = [texts[row] for row in numbers] if chat else None
    return _with_prompts(rows.select(numbers), {column}, queries, ids, prompts)


def _first_fitting(
    made: Iterator[tuple[int, list[int], str]],
    count: int | None,
    of: str,
    room: float,
    response_length: int,
) -> list[tuple[int, list[int], str]]:
    """The first prompts that are neither empty nor longer than `room`, at least one."""
    kept: list[tuple[int, list[int], str]] = []
    empty = too_long = 0
    for row, ids, query in made:
        if not query.strip():
            empty += 1
        elif len(ids) > room:
            too_long += 1
        else:
            kept.append((row, ids, query))
        if len(kept) == count:
            break
    total = empty + too_long + len(kept)
    long = (
        f"{too_long} of {total} conversations of {of} are longer than the {room} tokens that a "
        f"response of {response_length} leaves of the model's context"
    )
    if not kept and too_long:
        raise RecipeError(
            f"{SOURCE}: {long}, and none is left. Give shorter ones, lower `response_length`, or "
            "use a model of longer context."
        )
    if not kept:
        raise RecipeError(
            f"{SOURCE}: all {empty} prompts of {of} are empty after cutting. Give texts that are "
            "not empty, or longer prompts (--min_prompt_length)."
        )
    if empty:
        logger.warning_once(f"{empty} of {total} prompts of {of} are empty and left out.")
    if too_long:
        logger.warning_once(f"{long}; they are left out.")
    return kept


def own_names(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Give columns of the data set's that were renamed the names that they had."""
    own = {n.removeprefix(OWN): values for n, values in columns.items() if n.startswith(OWN)}
    return {n: values for n, values in columns.items() if not n.startswith(OWN)} | own


def check_form(given: Any, argument: str, stream: bool = False) -> None:
    """Refuse as a trainer's data set what gives no rows by number; a `stream` need not."""
    wrong = None
    if isinstance(given, str | Path):
        wrong = f"the name {str(given)!r}. Load it with load_prompts({str(given)!r}, ...)"
    elif isinstance(given, dict | pd.DataFrame):
        wrong = f"a {type(given).__name__} of {', '.join(map(str, given))}. Pass one split, or "
        wrong += "Dataset.from_dict(...) or Dataset.from_pandas(...)"
    elif not (given is None or hasattr(given, "__len__")):
        wrong = f"a {type(given).__name__}, which has no length. Pass Dataset.from_list(list(rows))"
    elif given is not None and len(given) == 0:
        wrong = "empty: it holds no rows. Give at least one prompt"
    if wrong and not (stream and isinstance(given, IterableDataset)):
        raise RecipeError(f"`{argument}` is {wrong}.")


def dataset_of(given: Any, argument: str, stream: bool = False) -> Any:
    """Make a `Dataset` of what a trainer is given: of a list of dicts, or a data set of torch."""
    check_form(given, argument, stream)
    if given is None or isinstance(given, Dataset | IterableDataset):
        return given.with_format(None) if isinstance(given, Dataset) else given
    rows = [given[row] for row in range(len(given))]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise RecipeError(
                f"`{argument}` is a {type(given).__name__} whose row {number} is no dict. Give a "
                "datasets.Dataset, or a list of dicts, with a column `prompt`."
            )
    plain = [{n: v.tolist() if hasattr(v, "tolist") else v for n, v in r.items()} for r in rows]
    columns = []
    for name in dict.fromkeys(name for row in plain for name in row):
        try:
            columns.append(Dataset.from_dict({name: [row.get(name) for row in plain]}))
        except (ValueError, TypeError, OverflowError) as error:
            raise RecipeError(
                f"`{argument}`, column `{name}`: {error}. Give all values of a column one type."
            ) from error
    return concatenate_datasets(columns, axis=1)


def prompt_column(names: Sequence[str], argument: str) -> str:
    """Name the column that holds the prompts, where there are no token ids."""
    for name in ("prompt", "query"):
        if name in names:
            return name
    raise RecipeError(
        f"`{argument}` has no prompts: its columns are {', '.join(names) or 'none'}. Make it with "
        "load_prompts, or name the column of prompts `prompt`."
    )


def check_prompts(values: Sequence[Any], where: str) -> None:
    """Hold prompts to texts or conversations that are not empty, or name the row."""
    for row, value in enumerate(values, 1):
        text = isinstance(value, str)
        if not value or (text and not value.strip()) or not (text or is_conversation(value)):
            raise RecipeError(
                f"{where}, row {row}: {value!r:.60} ({type(value).__name__}) is no prompt. "
                "Give a text or a conversation, or leave the row out."
            )


def as_prompts(given: Any, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> Dataset:
    """Give a data set for PPO the columns that [`load_prompts`] makes, `query` and `input_ids`.

    Its `input_ids` are trained on, where it has them; else its column `prompt`, or `query`.
    """
    rows = dataset_of(given, "train_dataset")
    names, size = rows.column_names, model.get_input_embeddings().weight.shape[0]
    if "input_ids" in names:
        ids = rows["input_ids"][:]
        _check_ids(ids, size, "`train_dataset`, column `input_ids`")
        column = column_of_ids(rows[:8], tokenizer)
        texts = rows[column][:] if column else tokenizer.batch_decode(ids, skip_special_tokens=True)
    else:
        column = prompt_column(names, "train_dataset")
        where, texts = f"`train_dataset`, column `{column}`", rows[column][:]
        check_prompts(texts, where)
        order = range(len(texts))
        if are_conversations(texts):
            ids = [row for _, row, _ in encode_conversations(texts, order, tokenizer, where)]
        elif model.config.is_encoder_decoder:  # which reads an end token behind each text
            ids = tokenizer(texts, verbose=False)["input_ids"]
        else:
            ids = [row for _, row in _tokenize(texts, list(order), tokenizer, where)]
        _check_ids(ids, size, where)
    chat = are_conversations(texts)
    queries = [shown(messages) for messages in texts] if chat else texts
    of_prompt = {n for n in ("query", "prompt") if n in names and rows[:8][n] == queries[:8]}
    return _with_prompts(rows, {column, *of_prompt}, queries, ids, texts if chat else None)


def _check_ids(rows: Sequence[Any], size: int, where: str) -> None:
    """Hold prompts to token ids of the model's vocabulary of `size`, or name the row."""
    for number, ids in enumerate(rows, 1):
        if not ids or not all(isinstance(token, int) and 0 <= token < size for token in ids):
            raise RecipeError(
                f"{where}, row {number} holds {ids!r:.60}. Give one or more token ids below "
                f"{size}, the size of the model's vocabulary."
            )


def column_of_ids(rows: Mapping[str, list], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Name the column of conversations, or of texts, whose tokens are in `input_ids`, if any."""
    ids = rows.get("input_ids")
    if not ids or not all(row and isinstance(row[0], int) and min(row) >= 0 for row in ids):
        return None
    if are_conversations(rows.get("prompt", [])):
        return "prompt"
    decoded = tokenizer.batch_decode(ids, skip_special_tokens=True)
    for name in ("query", "prompt"):
        texts = rows.get(name, [None])
        known = all(isinstance(text, str) for text in texts)
        if known and (texts == decoded or tokenizer(texts, verbose=False)["input_ids"] == ids):
            return name
    return None


def _with_prompts(
    rows: Dataset,
    of_prompt: Collection[str | None],
    queries: list[str],
    ids: list[list[int]],
    conversations: list[Any] | None,
) -> Dataset:
    """Give rows the columns of a prompt; `of_prompt` are those that hold it already."""
    names = rows.column_names
    aside = {n: OWN + n for n in ("query", "prompt") if n in names and n not in of_prompt}
    dropped = [n for n in names if (n in PROMPT and n not in aside) or n in aside.values()]
    made = {} if conversations is None else {"prompt": conversations}
    columns = Dataset.from_dict(made | {"query": queries, "input_ids": ids})
    rest = rows.remove_columns(dropped).rename_columns(aside)
    return concatenate_datasets([rest, columns], axis=1) if rest.column_names else columns


@dataclass
class PromptArguments:
    """Where a recipe's prompts come from, and how long they are."""

    dataset_name: str | None = setting(None, "Texts to take prompts of; embedded when left out.")
    text_column: str | None = setting(None, "Column that holds the text.")
    min_prompt_length: int = setting(2, "Shortest prompt, in tokens.")
    max_prompt_length: int = setting(8, "Longest prompt, in tokens.")
    eval_prompts: int = setting(256, "Held-out prompts to judge by.")

    def load(
        self, split: str, tokenizer: PreTrainedTokenizerBase, seed: int, **chosen: Any
    ) -> Dataset:
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


def holds_conversations(prompts: Dataset) -> bool:
    """Whether the prompts of a data set are conversations rather than texts."""
    return "prompt" in prompts.column_names and are_conversations(prompts["prompt"][:])


def one_prompt(
    text: str, tokenizer: PreTrainedTokenizerBase, copies: int = 1, chat: bool = False
) -> list[dict[str, Any]]:
    """Make rows, as [`load_prompts`] does, of one text to continue, or with `chat` to answer."""
    if not text.strip():
        raise RecipeError("--prompt is empty. Give at least one word to continue.")
    check_characters(text, tokenizer, "--prompt")
    if chat:
        check_chat_template(tokenizer, "--chat makes the prompt a conversation")
        messages = [{"role": "user", "content": text}]
        ((_, ids, query),) = encode_conversations([messages], [0], tokenizer, "--prompt")
        return [{"prompt": messages, "query": query, "input_ids": ids}] * copies
    return [{"query": text, "input_ids": tokenizer(text)["input_ids"]}] * copies


def _tokenize(
    texts: Sequence[Any], order: list[int], tokenizer: PreTrainedTokenizerBase, where: str
) -> Iterator[tuple[int, list[int]]]:
    """Row number and token ids of each text, in the given order, without an appended end."""
    for start in range(0, len(order), 1000):
        rows = order[start : start + 1000]
        batch = [texts[row] for row in rows]
        for row, text in zip(rows, batch, strict=True):
            if text is not None and not isinstance(text, str):
                raise RecipeError(
                    f"{SOURCE}: row {row + 1} of {where} holds {text!r} "
                    f"({type(text).__name__}), which is no text. Choose another --text_column."
                )
        check_characters([text or "" for text in batch], tokenizer, f"{SOURCE}: {where}")
        # verbose=False: whole reviews are longer than the model's context, prompts are not.
        ids = tokenizer([text or "" for text in batch], verbose=False)["input_ids"]
        end = appended_tokens(tokenizer, "".join(filter(None, batch))[:1000])
        yield from zip(rows, (row[: len(row) - end] for row in ids), strict=True)


def column_of_text(columns: Sequence[str], wanted: str | None, shown: str) -> str:
    """Name the column of a data set that holds the texts: as told, or one of `TEXT_COLUMNS`."""
    for name in (wanted,) if wanted is not None else TEXT_COLUMNS:
        if name in columns:
            return name
    missing = " or ".join(f"`{name}`" for name in ((wanted,) if wanted else TEXT_COLUMNS))
    raise RecipeError(
        f"--text_column: {shown} has no column {missing}. Its columns are: {', '.join(columns)}. "
        "Name the one that holds the texts."
    )
