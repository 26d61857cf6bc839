"""A text as characters: divided, cut into windows and prompts."""

import random

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trl_recipes.data.tokenizers import starts_character
from trl_recipes.errors import RecipeError

HELD_OUT_FRACTION = 0.1  # of the text: its end


def divide_text(text: str, shortest: int, source: str | None) -> tuple[str, str]:
    """Divide a text: its beginning to train on, its last tenth to measure on.

    Each part has at least `shortest` characters, one context; the second starts at a line where
    there is one near. `source` names the text in messages.
    """
    cut = len(text) - max(round(len(text) * HELD_OUT_FRACTION), shortest)
    line = text.rfind("\n", 0, max(cut, 0)) + 1
    cut = line if cut - line < 1000 and line >= shortest else cut
    if cut < shortest:
        raise RecipeError(
            f"--text_file: `{source}` has {len(text)} characters. One context to train on and one "
            f"held out to measure on need {2 * shortest}. Give a longer text, or lower "
            f"--context_length ({shortest})."
        )
    return text[:cut], text[cut:]


def encode(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Token ids of a long text, (characters,): a look-up, much quicker than the tokenizer."""
    tokens = tokenizer.get_vocab()
    return torch.tensor([tokens[character] for character in text])


class RandomWindows(torch.utils.data.Dataset):
    """Windows that start anywhere in a text, the same ones for the same seed."""

    def __init__(self, ids: Tensor, length: int, count: int, seed: int):
        draw = torch.Generator().manual_seed(seed)
        self.starts = torch.randint(len(ids) - length + 1, (count,), generator=draw).tolist()
        self.ids, self.length = ids, length

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        start = self.starts[index]
        return {"input_ids": self.ids[start : start + self.length].tolist()}


def cut_prompts(
    text: str, tokenizer: PreTrainedTokenizerBase, length: int, count: int, seed: int
) -> Dataset:
    """Cut prompts out of a text: whole words, from anywhere, up to the start of a word.

    The columns are `query` (text, of at most `length` characters) and `input_ids`.
    """
    draw, queries = random.Random(seed), []
    while len(queries) < count:
        start = draw.randrange(len(text) - length + 1)
        window = text[start : start + length]
        spaces = [place + 1 for place, character in enumerate(window) if character.isspace()]
        cut = window[spaces[0] : spaces[-1]] if len(spaces) > 1 else ""
        if not cut.strip():  # a script without spaces, or only spaces
            places = [p for p in range(start, start + length + 1) if starts_character(text, p)]
            cut = text[places[0] : places[-1]] if len(places) > 1 else window
        queries.append(cut)
    return Dataset.from_dict(
        {"query": queries, "input_ids": [encode(query, tokenizer).tolist() for query in queries]}
    )
