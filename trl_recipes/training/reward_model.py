"""Reward models and classifiers: from labeled texts, from numbers, or from preference pairs.

From scratch it is a small ModernBERT; else a base model is trained further. Classes are learned by
cross-entropy, numbers by least squares, pairs by TRL's RewardTrainer with the loss of Bradley and
Terry (1952), minus log sigmoid of the margin. All learn from whole texts and from fragments cut out
of them, because in PPO they score a prompt and a few sampled tokens, ended in mid-sentence. Texts
are tokenized as `SentimentReward` and `RewardModelReward` do it; TRL alone would put an end token
behind each.
"""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
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
from trl import RewardConfig, RewardTrainer

from trl_recipes.data.conversations import Texts
from trl_recipes.data.files import load_rows
from trl_recipes.data.prompts import PromptArguments, column_of_text
from trl_recipes.data.tokenizers import train_tokenizer
from trl_recipes.embedded import language_model
from trl_recipes.errors import RecipeError
from trl_recipes.models.hub import resolve
from trl_recipes.models.loading import load_classifier, load_config, load_tokenizer
from trl_recipes.rewards import RewardModelReward, SentimentReward
from trl_recipes.rewards.models import longest_input
from trl_recipes.settings import setting
from trl_recipes.training.fit import PretrainConfig, fit, stage_settings
from trl_recipes.training.language_model import check_width, windows
from trl_recipes.training.reward_data import Labeled, Pairs, read_reward_data
from trl_recipes.training.stage import digest, settings_of

_log = logging.getLogger(__name__)

FRAGMENT_TOKENS = (4, 24)  # shortest and longest fragment
Row = dict[str, Any]


@dataclass
class ClassifierConfig(PretrainConfig):
    """PretrainConfig with the defaults that a classifier of few texts wants."""

    output_dir: str = setting("runs/classifier", "Folder of the run; the model is in it.")
    per_device_train_batch_size: int = setting(32, "Rows per process and step.")
    adam_beta2: float = setting(0.999, "How long AdamW remembers squared gradients.")
    num_train_epochs: float = setting(3.0, "Passes over the texts.")


@dataclass
class RewardModelConfig(ClassifierConfig, RewardConfig):
    """TRL's RewardConfig with the defaults that small models want."""

    output_dir: str = setting("runs/reward", "Folder that the run writes to; the model is in it.")
    disable_dropout: bool = setting(False, "Train without dropout.")
    gradient_checkpointing: bool | None = setting(None, "Old name of activation_checkpointing.")
    bf16: bool | None = setting(None, "bfloat16 autocast (default: on a GPU that has it).")
    max_length: int | None = setting(None, "Refused: see context_length.")

    def __post_init__(self):
        if self.max_length is not None:
            raise RecipeError(
                "`max_length` would drop longer pairs. Use --context_length, which cuts them."
            )
        super().__post_init__()


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


class _PairTrainer(RewardTrainer):
    """TRL's RewardTrainer that reports to nobody; the recipe writes the card, with figures."""

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, "length"]  # rows are grouped by it


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
        f"--model_name_or_path: `{name}` is {kind}. Give an encoder such as BERT, or a decoder."
    )


def start_classifier(
    name: str | None, data: Labeled | Pairs, sizes: ClassifierSizes
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make a classifier for the labels of `data`; its tokenizer knows where to cut.

    From scratch it reads the mean over all tokens: one summary token does not learn from so little.
    """
    names = dict(enumerate(data.names or ["SCORE"]))
    labels = {"id2label": names, "label2id": {label: i for i, label in names.items()}}
    numbers = isinstance(data, Labeled) and data.names is None
    labels["problem_type"] = "regression" if numbers else None
    base = base_model(name)
    if base is None:
        tokenizer = train_tokenizer(data.texts, sizes.vocab_size, "classifier")
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


def train_reward_model(
    data: Labeled | Pairs,
    output_dir: str | Path,
    config: TrainingArguments,
    *,
    heldout: Labeled | None = None,
    model_name_or_path: str | None = None,
    sizes: ClassifierSizes | None = None,
    before_training: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Train a reward model or classifier from scratch, or a base model further, and save it.

    Pairs want a `RewardModelConfig`. Returns what `fit` does; of `heldout` texts of classes also
    "heldout_accuracy": of whole texts, where the sum over a text's windows decides.
    """
    sizes = sizes or ClassifierSizes()
    set_seed(config.seed)
    model, tokenizer = start_classifier(model_name_or_path, data, sizes)
    draw = random.Random(config.seed)
    run = {"before_training": before_training}
    if data.names is not None:
        rows = [row for _, row in class_rows(data, tokenizer, sizes.fragments_per_text, draw)]
        whole = class_rows(heldout, tokenizer) if heldout else []
        run["heldout"] = [row for _, row in whole]

        def accuracy(found: EvalPrediction) -> dict[str, float]:
            sums = torch.zeros(len(heldout.labels), len(heldout.names))
            owners = torch.tensor([index for index, _ in whole])
            sums.index_add_(0, owners, torch.tensor(found.predictions, dtype=sums.dtype))
            right = sums.argmax(1) == torch.tensor(list(heldout.labels))
            return {"accuracy": float(right.float().mean())}

        trainer = score_trainer(model, tokenizer, rows, config, compute_metrics=accuracy)
        return fit(trainer, tokenizer, output_dir, **run)
    longest = tokenizer.model_max_length
    cut = sum(len(ids) > longest for ids in tokenizer(data.texts, verbose=False)["input_ids"])
    if cut:
        said = "%d of %d texts are longer than %d tokens and cut there (--context_length)."
        _log.warning(said, cut, len(data.texts), longest)
    if isinstance(data, Pairs):
        rows = _pair_rows(data, tokenizer, sizes, draw)
    else:
        std = float(torch.tensor(data.labels).std())
        rows = [
            {"input_ids": ids, "labels": label / std}
            for text, label in zip(data.texts, data.labels, strict=True)
            for ids in _with_fragments(text, tokenizer, sizes, draw)
        ]
        head = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1][-1]

        def to_the_labels_unit() -> None:
            for parameter in head.parameters():
                parameter.data *= std

        run["before_saving"] = to_the_labels_unit
    return fit(score_trainer(model, tokenizer, rows, config), tokenizer, output_dir, **run)


def score_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    config: TrainingArguments,
    **options: Any,
) -> Trainer:
    """Make the trainer of a model that scores texts.

    `rows`: tokenized: `chosen_ids` and `rejected_ids` (Bradley-Terry), or `input_ids` and `labels`
    (cross-entropy, squared error).
    """
    if "chosen_ids" not in rows[0]:
        collate = DataCollatorWithPadding(tokenizer)
        return Trainer(model, config, collate, train_dataset=rows, **options)
    rows = [row | {"length": max(len(row["chosen_ids"]), len(row["rejected_ids"]))} for row in rows]
    return _PairTrainer(
        model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def class_rows(
    data: Labeled,
    tokenizer: PreTrainedTokenizerBase,
    fragments: int = 0,
    draw: random.Random | None = None,
) -> list[tuple[int, Row]]:
    """Cut texts into windows, and fragments out of each; with each row the number of its text."""
    before, after = special_frame(tokenizer)
    room = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    return [
        (index, {"input_ids": [*before, *ids, *after], "labels": data.labels[index]})
        for index, window in windows(data.texts, tokenizer, room)
        for ids in (window, *cut_fragments(window, fragments, draw))
    ]


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


def _pair_rows(
    data: Pairs, tokenizer: PreTrainedTokenizerBase, sizes: ClassifierSizes, draw: random.Random
) -> list[Row]:
    """Tokenize pairs and pairs of fragments; those alike once they are cut are left out."""
    special = not data.rendered
    sides = (_encode(tokenizer, texts, special) for texts in (data.chosen, data.rejected))
    rows = [pair for pair in zip(*sides, strict=True) if pair[0] != pair[1]]
    if not rows:
        raise RecipeError(
            f"--context_length: both texts of every pair are the same up to {sizes.context_length} "
            "tokens. Give more."
        )
    count, longest = len(data.chosen), tokenizer.model_max_length
    if len(rows) < count:
        said = "%d of %d pairs differ only behind the context of %d tokens and are left out."
        _log.warning(said, count - len(rows), count, longest)
    if data.fragments:  # one of the better text beside one of the worse
        for texts in zip(data.chosen, data.rejected, strict=True):
            cuts = [_with_fragments(text, tokenizer, sizes, draw)[1:] for text in texts]
            rows += [pair for pair in zip(*cuts, strict=False) if pair[0] != pair[1]]
    return [{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in rows]


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = True
) -> list[list[int]]:
    """Tokenize as the rewards do: the tokenizer's own special tokens, cut at its longest input."""
    settings = {"truncation": True, "max_length": tokenizer.model_max_length}
    return tokenizer(list(texts), add_special_tokens=special, **settings)["input_ids"]


def _with_fragments(
    text: str, tokenizer: PreTrainedTokenizerBase, sizes: ClassifierSizes, draw: random.Random
) -> list[list[int]]:
    """Tokenize a text, and fragments of it, special tokens included."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    cuts = cut_fragments(ids[: tokenizer.model_max_length], sizes.fragments_per_text, draw)
    return _encode(tokenizer, [text, *(tokenizer.decode(cut) for cut in cuts)])


# A reward whose model is trained in the same run, on texts that are not prompts


@dataclass
class RewardArguments:
    """What the reward model learns from, and how it is trained."""

    label_column: str = setting("label", "Column that holds the label.")
    reward_share: float = setting(0.5, "Fraction of the reviews that teach it, not prompts.")
    reward_base: str | None = setting(None, "Base model, or `embedded`; none when left out.")
    reward_epochs: float = setting(3.0, "Its passes over the rows.")
    reward_batch_size: int = setting(16, "Its rows in a step.")
    reward_learning_rate: float | None = setting(
        None, "Its peak learning rate (default: 5e-5 from a base model of yours, else 1e-3)."
    )
    reward_context_length: int = setting(128, "Its longest row, in tokens; longer texts are cut.")

    def __post_init__(self):
        if not 0 < self.reward_share < 1:
            raise RecipeError(
                f"--reward_share is {self.reward_share}. Give a fraction between 0 and 1: the "
                "reward model learns from it, the rest are prompts."
            )


def divide(rows: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split rows at random into two parts, each in the original order."""
    order = np.random.default_rng(seed).permutation(len(rows))
    count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
    return rows.select(np.sort(order[:count])), rows.select(np.sort(order[count:]))


class LearnedReward:
    """A reward function whose model is trained later; `ready` is false until `load`.

    Of the embedded reviews it learns from the split "prompts", which no other embedded model saw.
    `train`, `config` and `settings` are for its `Stage`; `heldout` measures it; `base` and
    `source` say in words what it starts and learns from.
    """

    __name__ = "reward_model"

    def __init__(self, args: RewardArguments, prompts: PromptArguments, config: Any, *, label: str):
        if config.reward_funcs:
            raise RecipeError(
                f"--reward_funcs {' '.join(map(str, config.reward_funcs))}: this recipe trains its "
                "own reward. Leave them out, or use recipes/ppo_sentiment.py."
            )
        name, base = prompts.dataset_name, base_model(args.reward_base)
        self.label, self.seed, self.text_column = label, config.seed, prompts.text_column
        self.source = name or "the embedded reviews"
        self.base = args.reward_base or "a small ModernBERT from scratch"
        rows = load_rows(name, split="train" if name else "prompts")
        self._seen, _ = divide(rows, args.reward_share, config.seed)
        columns = {"text_column": prompts.text_column, "label_column": args.label_column}
        self._data, self.heldout = read_reward_data(
            *(self._seen, load_rows(name, split="test"), self.source),
            tokenizer=load_tokenizer(base) if base else None,
            seed=config.seed,
            **columns,
        )
        self._names = self._data.names
        _check_label(label, self._names, self.source)
        content = (*asdict(self._data).values(), *asdict(self.heldout).values())
        self.settings = settings_of(args) | {"seed": config.seed, "data": digest(content)}
        self.config = RewardModelConfig(save_steps=200, **stage_settings(args, "reward", config))
        sizes = ClassifierSizes(vocab_size=4000, context_length=args.reward_context_length)
        start = {"model_name_or_path": base, "sizes": sizes}
        self.train = partial(train_reward_model, self._data, **start)
        self.learns = f"The reward model learns first: {self.base} on {self._data}."
        self.ready, self._function = False, None

    def unseen(self, prompts: Dataset) -> Dataset:
        """Keep the prompts, of the same data and split, from texts that the model never sees."""
        column = column_of_text(prompts.column_names, self.text_column, self.source)
        seen = set(self._seen[column][:])
        kept = [row for row, text in enumerate(prompts[column][:]) if text not in seen]
        if not kept:
            raise RecipeError(
                "--reward_share: every prompt is among the texts that the reward model learns "
                "from. Lower it, or give a data set whose texts differ."
            )
        return prompts.select(kept)

    def load(self, folder: Any) -> None:
        """Score with a trained model from now on: the log odds of the label, or its one logit."""
        sentiment = partial(SentimentReward, label=self.label, score="log_odds")
        self._function = (RewardModelReward if self._names is None else sentiment)(folder)
        self.ready = True
        set_seed(self.seed)  # random states are the same, whether it was trained now or before

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float]:
        """Score each prompt plus completion; an error until the model is trained."""
        if not self.ready:
            raise RecipeError("The reward model is not trained yet: train it, then `load` it.")
        return self._function(prompts=prompts, completions=completions)


def _check_label(label: str, names: Sequence[str] | None, source: str) -> None:
    if names is not None and label.lower() not in [name.lower() for name in names]:
        raise RecipeError(
            f"--label: {source} has no label {label!r}. Its labels are: {', '.join(names)}."
        )
    if names is None and label.upper() != "POSITIVE":
        raise RecipeError(
            f"--label {label}: a model of pairs or numbers has one score, which is higher for "
            "the better text. Leave --label out."
        )
