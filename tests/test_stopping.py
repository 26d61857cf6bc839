"""Resuming and stopping recipes on transformers' Trainer, and trying them out."""

import re
import signal

import pytest
import torch
from launching import Recipe
from safetensors.torch import load_file

WORDS = ["--num_train_epochs", "6", "--save_steps", "20", "--disable_tqdm", "true"]
WORDS += ["--per_device_train_batch_size", "4", "--use_cpu", "true"]
SIZES = {
    "pretrain_lm.py": ["--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--vocab_size", "300"],
    "train_classifier.py": ["--num_layers", "1", "--hidden_size", "16", "--num_heads", "2"],
}


@pytest.fixture
def reviews(sentiment_models):
    return sentiment_models["dataset_name"]


def start(recipe, reviews, folder, *more):
    data = ["--dataset_name", reviews, "--output_dir", folder]
    return Recipe(recipe, *data, *WORDS, *SIZES[recipe], *more)


def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not_stopped(reviews, tmp_path):
    name = "train_classifier.py"
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    start(name, reviews, whole).ends_with(0)
    recipe = start(name, reviews, stopped)
    recipe.wait_until(lambda: list(stopped.glob("checkpoints/checkpoint-*")))
    recipe.send_signal(signal.SIGTERM)
    output = recipe.ends_with(128 + signal.SIGTERM)
    assert "--resume_from_checkpoint true" in output
    assert "Traceback" not in output
    start(name, reviews, stopped, "--resume_from_checkpoint", "true").ends_with(0)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (stopped, whole))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize("name", SIZES)
def test_a_check_says_what_the_training_takes_and_writes_nothing(name, reviews, tmp_path):
    output = start(name, reviews, tmp_path / "run", "--check", "true").ends_with(0)
    assert not (tmp_path / "run").exists()
    assert re.search(r"about \d+ seconds \(\d+ steps of [\d.e-]+ s\) and \d\.\d GB", output)
