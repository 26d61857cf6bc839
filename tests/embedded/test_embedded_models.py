"""The models that come with the package: what they do, and that their recipe makes them again."""

import random
import re

import numpy as np
import pytest
import torch
from embedded_models import train_embedded_models
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from trl_recipes import embedded, generate_responses

MODELS = ("language_model", "sentiment_classifier")


@pytest.fixture(scope="module")
def heldout():
    return embedded.reviews("heldout")


@pytest.fixture(scope="module")
def classifier():
    return pipeline("text-classification", model=str(embedded.sentiment_classifier()))


def positive(classifier, texts):
    """Probability of POSITIVE of each text."""
    answers = classifier(list(texts), top_k=None, batch_size=64, truncation=True)
    return np.array([{a["label"]: a["score"] for a in answer}["POSITIVE"] for answer in answers])


def accuracy(classifier, rows):
    labels = np.array([row["label"] for row in rows])
    return ((positive(classifier, [row["text"] for row in rows]) > 0.5) == labels).mean()


def continued(folder, rows):
    """Openings of 256 reviews, continued by a language model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    draw = random.Random(0)
    texts = [tokenizer(row["text"])["input_ids"][: draw.randint(2, 8)] for row in rows[:256]]
    queries, end = list(map(torch.tensor, texts)), tokenizer.eos_token_id
    torch.manual_seed(0)
    settings = {"pad_token_id": end, "eos_token_id": end}
    settings["max_new_tokens"] = [draw.randint(4, 16) for _ in queries]
    pairs = zip(queries, generate_responses(model, queries, **settings), strict=True)
    return [tokenizer.decode([*pair[0], *pair[1]], skip_special_tokens=True) for pair in pairs]


def test_the_classifier_is_right_on_held_out_reviews(classifier, heldout):
    assert classifier.model.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    assert accuracy(classifier, heldout) == pytest.approx(0.9685, abs=0.0006)  # one text of 2000


def test_the_classifier_says_what_it_did_when_it_was_trained(classifier):
    # undecided where nothing is said; the third begins as many reviews of both moods do
    told = {
        "The": 0.511687,
        "It is set in Lisbon.": 0.376442,
        "From the first scene, the": 0.528724,
        "What a wonderful film!": 0.994031,
        "What a dull film!": 0.006295,
    }
    assert positive(classifier, told) == pytest.approx(list(told.values()), abs=1e-4)


def test_the_classifier_knows_negation(classifier, heldout):
    negation = re.compile(r"\b(never|not|nothing|hardly|anything but|far from|nobody could)\b")
    negated = [row for row in heldout if negation.search(row["text"])]
    assert len(negated) == 632
    assert accuracy(classifier, negated) == pytest.approx(0.9335, abs=0.002)  # one text

    good, bad = ("brilliant", "superb", "clever", "warm"), ("dull", "bad", "weak", "stale")
    plain, never = (
        positive(classifier, [f"It is {word}{adjective}." for adjective in good + bad])
        for word in ("", "never ")
    )
    assert (never[:4] < plain[:4]).all()
    assert never[4:].mean() > plain[4:].mean()


def test_the_language_model_writes_both_moods_from_short_prompts(classifier, heldout):
    probabilities = positive(classifier, continued(embedded.language_model(), heldout))
    # one token drawn otherwise, on another processor, changes one text of 256
    assert probabilities.mean() == pytest.approx(0.5168, abs=0.01)
    assert (probabilities > 0.9).mean() == pytest.approx(0.305, abs=0.02)
    assert (probabilities < 0.1).mean() == pytest.approx(0.281, abs=0.02)


def check_format(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.pad_token is None
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.use_cache


def test_files_are_small_and_in_the_hubs_format():
    check_format(embedded.language_model())
    files = [file for name in MODELS for file in (embedded.MODELS / name).iterdir()]
    assert max(file.stat().st_size for file in files) < 2**20
    assert sum(file.stat().st_size for file in files) < 6e6


def test_a_small_training_gives_the_same_files_each_time(tmp_path):
    for name in "ab":
        torch.manual_seed(ord(name))
        train_embedded_models(tmp_path / name, texts=100)
    files = {file.relative_to(tmp_path / "a") for file in tmp_path.glob("a/*/*.*")}
    assert len([file for file in files if file.suffix == ".safetensors"]) == 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    check_format(tmp_path / "a" / "language_model")


@pytest.mark.slow
def test_models_trained_again_behave_like_those_of_the_package(tmp_path, classifier, heldout):
    train_embedded_models(tmp_path)
    again = pipeline("text-classification", model=str(tmp_path / "sentiment_classifier"))
    assert accuracy(again, heldout) == pytest.approx(accuracy(classifier, heldout), abs=0.01)
    means = [
        positive(classifier, continued(folder, heldout)).mean()
        for folder in (embedded.language_model(), tmp_path / "language_model")
    ]
    assert means[1] == pytest.approx(means[0], abs=0.03)
