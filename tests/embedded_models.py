"""Train the two models that come with the package again: `make embedded`, a minute on one core.

python tests/embedded_models.py [FOLDER]

One thread and a fixed seed: the same versions of torch and transformers give the same weights.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from trl_recipes.embedded import MODELS, write_reviews
from trl_recipes.training.fit import PretrainConfig
from trl_recipes.training.language_model import LanguageModelSizes, train_language_model
from trl_recipes.training.reward_data import Labeled
from trl_recipes.training.reward_model import ClassifierSizes, train_reward_model

TEXTS = 16_000  # of the training split


def train_embedded_models(folder: Path, texts: int = TEXTS) -> None:
    """Train `language_model` and `sentiment_classifier` in a folder; fewer texts are quicker."""
    torch.set_num_threads(1)
    rows = write_reviews()["train"][:texts]
    reviews, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    labeled = Labeled(reviews, labels, ["NEGATIVE", "POSITIVE"])

    # few texts want many small steps; these settings were found by trial
    shared = {"adam_beta2": 0.99, "seed": 0, "use_cpu": True, "disable_tqdm": True}
    shared |= {"logging_strategy": "no", "save_strategy": "no"}
    path = folder / "language_model"
    sizes = LanguageModelSizes(n_layer=2, n_head=4, n_embd=128, vocab_size=2000)
    config = PretrainConfig(str(path), learning_rate=2e-3, per_device_train_batch_size=8, **shared)
    train_language_model(reviews, path, config, sizes=sizes)
    _shard(AutoModelForCausalLM, path)

    path = folder / "sentiment_classifier"
    sizes = ClassifierSizes(dropout=0.0, vocab_size=2000, fragments_per_text=1)
    config = PretrainConfig(str(path), learning_rate=1e-3, per_device_train_batch_size=12, **shared)
    train_reward_model(labeled, path, config, sizes=sizes)
    _shard(AutoModelForSequenceClassification, path)


def _shard(kind: type, path: Path) -> None:
    """Save the weights in files of a megabyte, which a repository takes well."""
    model = kind.from_pretrained(path)
    model.config.use_cache = True  # transformers' Trainer switches it off
    (path / "model.safetensors").unlink(missing_ok=True)
    model.save_pretrained(path, max_shard_size="1MB")


if __name__ == "__main__":
    train_embedded_models(Path(sys.argv[1]) if len(sys.argv) > 1 else MODELS)
