"""Text classifiers: a small ModernBERT from scratch, or a base model trained further.

A classifier learns from texts and from fragments cut out of them, because in PPO it scores a prompt
and a few sampled tokens, ended in mid-sentence.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    ModernBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from trl_recipes.data.tokenizers import train_tokenizer
from trl_recipes.embedded import language_model
from trl_recipes.errors import RecipeError
from trl_recipes.models.hub import resolve
from trl_recipes.models.loading import load_classifier, load_config
from trl_recipes.rewards.models import longest_input
from trl_recipes.settings import setting
from trl_recipes.training.fit import PretrainConfig, fit
from trl_recipes.training.language_model import check_width, windows

FRAGMENT_TOKENS = (4, 24)  # shortest and longest fragment


@dataclass
class ClassifierConfig(PretrainConfig):
    """PretrainConfig with the defaults that a classifier of few texts wants."""

    output_dir: str = setting("runs/classifier", "Folder of the run; the model is in it.")
    per_device_train_batch_size: int = setting(32, "Rows per process and step.")
    adam_beta2: float = setting(0.999, "How long AdamW remembers squared gradients.")
    num_train_epochs: float = setting(3.0, "Passes over the texts.")


@dataclass
class ClassifierSizes:
    """Sizes of a classifier from scratch, and of the fragments that it learns from."""

    num_layers: int = setting(2, "Transformer layers.")
    num_heads: int = setting(4, "Attention heads per layer.")
    hidden_size: int = setting(128, "Width; a multiple of twice num_heads.")
    dropout: float = setting(0.3, "Fraction of activations dropped.")
    vocab_size: int = setting(8000, "Entries of the tokenizer.")
    context_length: int = setting(128, "Longest row in tokens; longer texts are cut.")
    fragments_per_text: int = setting(2, "Fragments to learn from, per text or window.")

    def __post_init__(self):
        heads = self.num_heads
        check_width("hidden_size", self.hidden_size, "twice --num_heads", heads, 2 * heads)


def base_model(name: str | None) -> str | None:
    """Resolve a base model's name, and refuse a model that cannot score texts.

    `name`: folder or hub name; `embedded` for this project's language model; None for none.
    """
    if name is None:
        return None
    if name == "embedded":
        return str(language_model())
    path = resolve(name, "model")
    config = load_config(path)
    if not config.is_encoder_decoder and type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return path
    kind = f"an encoder-decoder ({config.model_type})"
    if not config.is_encoder_decoder:
        kind = f"a {config.model_type}, to which transformers can put no head that scores texts"
    raise RecipeError(
        f"--model_name_or_path: `{name}` is {kind}. Give an encoder such as BERT, or a decoder "
        "such as GPT-2."
    )


def start_classifier(
    name: str | None,
    texts: Sequence[str],
    sizes: ClassifierSizes,
    label_names: Sequence[str],
    problem_type: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make a classifier from scratch or on a base model; its tokenizer knows where to cut.

    From scratch the classifier reads the mean over all tokens, which learns from little text what
    one summary token does not.
    """
    names = dict(enumerate(label_names))
    labels = {"id2label": names, "label2id": {label: i for i, label in names.items()}}
    labels["problem_type"] = problem_type
    base = base_model(name)
    if base is None:
        tokenizer = train_tokenizer(texts, sizes.vocab_size, "classifier")
        dropouts = ("embedding_dropout", "mlp_dropout", "classifier_dropout")
        no_tokens = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
        model = AutoModelForSequenceClassification.from_config(
            ModernBertConfig(
                vocab_size=len(tokenizer),
                hidden_size=sizes.hidden_size,
                intermediate_size=2 * sizes.hidden_size,
                num_hidden_layers=sizes.num_layers,
                num_attention_heads=sizes.num_heads,
                layer_types=["full_attention"] * sizes.num_layers,
                max_position_embeddings=sizes.context_length,
                classifier_pooling="mean",
                pad_token_id=tokenizer.pad_token_id,
                **dict.fromkeys(no_tokens),
                **dict.fromkeys(dropouts, sizes.dropout),
                **labels,
            )
        )
    else:
        model, tokenizer = load_classifier(base, new_head=True, **labels)
        if tokenizer.pad_token_id is None:  # GPT-2 and its like
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        model.config.pad_token_id = tokenizer.pad_token_id
    fits = longest_input(model, tokenizer) or sizes.context_length
    tokenizer.model_max_length = min(sizes.context_length, fits)
    return model, tokenizer


def train_classifier(
    texts: Sequence[str],
    labels: Sequence[int],
    output_dir: str | Path,
    config: TrainingArguments,
    *,
    heldout_texts: Sequence[str] = (),
    heldout_labels: Sequence[int] = (),
    label_names: Sequence[str] = ("NEGATIVE", "POSITIVE"),
    model_name_or_path: str | None = None,
    sizes: ClassifierSizes | None = None,
    before_training: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Train a text classifier from scratch, or a base model further, and save it.

    `labels` are numbers of `label_names`. Returns what `fit` does; "heldout_accuracy" is of whole
    texts, where the sum over a text's windows decides.
    """
    sizes = sizes or ClassifierSizes()
    set_seed(config.seed)
    model, tokenizer = start_classifier(model_name_or_path, texts, sizes, label_names)
    before, after = special_frame(tokenizer)
    draw = random.Random(config.seed)

    def row(ids: list[int], label: int) -> dict[str, Any]:
        return {"input_ids": [*before, *ids, *after], "labels": label}

    rows = [
        row(ids, labels[index])
        for index, window in classifier_windows(texts, tokenizer)
        for ids in (window, *cut_fragments(window, sizes.fragments_per_text, draw))
    ]
    whole = classifier_windows(heldout_texts, tokenizer)
    heldout = [row(ids, heldout_labels[index]) for index, ids in whole]

    def accuracy(found: EvalPrediction) -> dict[str, float]:
        sums = torch.zeros(len(heldout_labels), len(label_names))
        owners = torch.tensor([index for index, _ in whole])
        sums.index_add_(0, owners, torch.tensor(found.predictions, dtype=sums.dtype))
        right = sums.argmax(1) == torch.tensor(list(heldout_labels))
        return {"accuracy": float(right.float().mean())}

    collate = DataCollatorWithPadding(tokenizer)
    trainer = Trainer(model, config, collate, train_dataset=rows, compute_metrics=accuracy)
    return fit(trainer, tokenizer, output_dir, heldout=heldout, before_training=before_training)


def classifier_windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, list[int]]]:
    """Cut texts into windows that leave room for special tokens."""
    room = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    return windows(texts, tokenizer, room)


def special_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Find the special tokens that a tokenizer puts before and after a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
    return ids[: mask.index(0)], ids[len(mask) - mask[::-1].index(0) :]


def cut_fragments(ids: list[int], count: int, draw: random.Random) -> list[list[int]]:
    """Cut fragments out of a text, shorter than the text itself; none where it is too short.

    The first, third and so on are beginnings, the others start anywhere.
    """
    shortest, longest = FRAGMENT_TOKENS[0], min(FRAGMENT_TOKENS[1], len(ids) - 1)
    if longest < shortest:
        return []
    fragments = []
    for number in range(count):
        length = draw.randint(shortest, longest)
        start = draw.randint(0, len(ids) - length) if number % 2 else 0
        fragments.append(ids[start : start + length])
    return fragments
