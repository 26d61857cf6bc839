"""How close a text comes in meaning to a reference text."""

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch.nn import functional as F

from trl_recipes.data.conversations import Texts, full_texts, plain_text
from trl_recipes.errors import RecipeError
from trl_recipes.models import hub
from trl_recipes.models.forward import context_length, evaluating, pad_rows
from trl_recipes.rewards.models import batches_by_length, language_model_of
from trl_recipes.rewards.rules import text_of

_SOURCE = "SimilarityReward"
# Parts of a spaCy pipeline that have no say in Doc.similarity where there are word vectors.
_IDLE_PIPES = ("tok2vec", "tagger", "parser", "senter", "attribute_ruler", "lemmatizer", "ner")

Embed = Callable[[Sequence[str]], torch.Tensor]
Compare = Callable[[Sequence[str], Sequence[str]], list[float]]


class SimilarityReward:
    """Semantic similarity of prompt plus completion to a reference text, -1 to 1.

    The reference is a text, the .txt file that holds it, or each prompt's own in a `column` of the
    data set. The kind "hidden_states" compares the means of a language model's last hidden states
    (cosine; close to 1 for any two texts under GPT-2, where only differences mean something);
    "spacy" is `Doc.similarity`; "sentence_transformers" the cosine of embeddings. `model` None
    takes the embedded language model, en_core_web_md or all-MiniLM-L6-v2.
    """

    def __init__(
        self,
        reference_text: str | None = None,
        model: Any = None,
        tokenizer: Any = None,
        *,
        kind: Literal["hidden_states", "spacy", "sentence_transformers"] = "hidden_states",
        column: str | None = None,
        batch_size: int = 32,
    ):
        if (reference_text is None) == (column is None):
            raise RecipeError(
                f"{_SOURCE} needs a reference: give either `reference_text` or `column`, the data "
                "set's column of reference texts."
            )
        if reference_text is not None:
            reference_text = text_of(reference_text, f"{_SOURCE}, the reference text")
            _check_reference(reference_text, "`reference_text`")
        if kind == "spacy":
            self._compare = _with_spacy(model or "en_core_web_md", batch_size)
        elif kind == "sentence_transformers":
            model = model or "sentence-transformers/all-MiniLM-L6-v2"
            self._compare = partial(_cosines, _with_sentence_transformers(model, batch_size))
        elif kind == "hidden_states":
            self._compare = partial(_cosines, _with_hidden_states(model, tokenizer, batch_size))
        else:
            raise RecipeError(
                f"{_SOURCE}: unknown kind {kind!r}. Choose hidden_states, spacy or "
                "sentence_transformers."
            )
        self.reference_text, self.column = reference_text, column
        self.__name__ = "similarity"

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float]:
        """Compare each prompt plus completion with its reference; 0 without a known word."""
        texts = full_texts(prompts, completions)
        if self.column is None:
            return self._compare(texts, [self.reference_text] * len(texts))
        if self.column not in columns:
            raise RecipeError(
                f"{_SOURCE}: the data set has no column `{self.column}`. Name the one that holds "
                "the reference texts."
            )
        references = [plain_text(value or "") for value in columns[self.column]]
        for row, reference in enumerate(references):
            _check_reference(reference, f"column `{self.column}`, sample {row},")
        return self._compare(texts, references)


def _check_reference(text: str, where: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise RecipeError(
            f"{_SOURCE}: {where} is {text!r}. Give a text to compare with, of at least one word."
        )


def _with_hidden_states(model: Any, tokenizer: Any, batch_size: int) -> Embed:
    model, tokenizer = language_model_of(model, tokenizer, _SOURCE)
    trunk = model.get_decoder()  # no logits are needed

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> torch.Tensor:
        """Average the hidden states of each text, (B, H); zeros for an empty one."""
        rows = [tokenizer(text, verbose=False)["input_ids"] for text in texts]
        rows = [torch.tensor(row[: context_length(model.config)] or [0]) for row in rows]
        means = torch.zeros(len(rows), model.config.hidden_size)
        with evaluating(model):
            for batch in batches_by_length(rows, batch_size):
                ids, mask = pad_rows([rows[index] for index in batch], 0, side="right")
                ids, mask = ids.to(model.device), mask.to(model.device)
                states = trunk(input_ids=ids, attention_mask=mask, use_cache=False)[0].float()
                weights = mask[..., None]
                means[batch] = ((states * weights).sum(1) / weights.sum(1)).cpu()
        empty = torch.tensor([not text.strip() for text in texts])
        return means.masked_fill(empty[:, None], 0.0)

    return embed


def _with_sentence_transformers(model: Any, batch_size: int) -> Embed:
    library = _package("sentence_transformers")
    if isinstance(model, str) or hasattr(model, "__fspath__"):
        name = hub.resolve(str(model), "model", source=_SOURCE)
        with hub.loading(name, "model", source=_SOURCE):
            model = library.SentenceTransformer(
                name, device=str(PartialState().device), model_kwargs={"use_safetensors": True}
            )

    def embed(texts: Sequence[str]) -> torch.Tensor:
        return model.encode(
            list(texts), batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False
        ).cpu()

    return embed


def _with_spacy(pipeline: Any, batch_size: int) -> Compare:
    spacy = _package("spacy")
    if isinstance(pipeline, str) or hasattr(pipeline, "__fspath__"):
        try:
            pipeline = spacy.load(pipeline, exclude=list(_IDLE_PIPES))
        except OSError as error:
            raise RecipeError(
                f"{_SOURCE}: the spaCy pipeline `{pipeline}` could not be loaded. Get one with "
                "`python -m spacy download en_core_web_md`, or give the folder of one."
            ) from error
    if pipeline.vocab.vectors_length == 0:
        raise RecipeError(
            f"{_SOURCE}: the spaCy pipeline `{pipeline.meta.get('name')}` has no word vectors, so "
            "its similarity means nothing. Use one that has, such as en_core_web_md."
        )

    def compare(texts: Sequence[str], references: Sequence[str]) -> list[float]:
        different = list(dict.fromkeys(references))
        read = dict(zip(different, pipeline.pipe(different), strict=True))
        docs = pipeline.pipe(texts, batch_size=batch_size)
        return [
            # spaCy gives 0 without a vector on either side, with a warning each time
            float(doc.similarity(read[reference]))
            if doc.vector_norm and read[reference].vector_norm
            else 0.0
            for doc, reference in zip(docs, references, strict=True)
        ]

    return compare


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RecipeError(
            f"{_SOURCE}: kind {name} needs that package. Install it with `pip install "
            f"'trl_recipes[{name.replace('_', '-')}]'`."
        ) from error


def _cosines(embed: Embed, texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return the cosine of each text with its reference; each reference is read once."""
    different = {text: row for row, text in enumerate(dict.fromkeys(references))}
    embedded = embed(list(different))[[different[reference] for reference in references]]
    return F.cosine_similarity(embed(texts).float(), embedded.float()).tolist()
