"""The reward model of rewrites: its losses by hand, and the pair that it reads."""

import math

import pytest
import torch
from architectures import made
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trl_recipes.rewards import RewardModelReward
from trl_recipes.training.reward_model import RewardModelConfig, score_trainer
from trl_recipes.training.seq2seq import (
    Seq2SeqSizes,
    preferred,
    scored,
    start_seq2seq,
    train_pair_scorer,
)

TEXTS = ["the film was dull", "the film was fine", "a plot of gold", "a plot of lead"]


@pytest.fixture(scope="module", params=["t5", "bart"])
def start(request, tmp_path_factory):
    """Folder of a tiny encoder-decoder."""
    folder = tmp_path_factory.mktemp(request.param)
    model, tokenizer = start_seq2seq(None, TEXTS, Seq2SeqSizes(1, 2, 16, vocab_size=280), seed=0)
    if request.param == "bart":
        sizes = {"encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 128}
        sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0}
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        sizes |= {"vocab_size": len(tokenizer), "d_model": 16, "bos_token_id": None}
        model = made("bart", **sizes, **ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def arguments(folder, steps=60):
    settings = {"max_steps": steps, "per_device_train_batch_size": 8, "learning_rate": 5e-3}
    settings |= {"adam_beta2": 0.99, "train_sampling_strategy": "random", "disable_tqdm": True}
    return RewardModelConfig(output_dir=str(folder), **settings)


@pytest.mark.parametrize("kind", ["scores", "preferences"])
def test_the_loss_is_that_of_its_definition(kind, tiny_gpt2, tmp_path):
    """Squared error of scores; of preferences minus log sigmoid of the margin."""
    labels = {"num_labels": 1, "problem_type": "regression", "pad_token_id": 0}
    model = AutoModelForSequenceClassification.from_pretrained(tiny_gpt2, **labels).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2, pad_token="<|endoftext|>")
    texts = [[5, 6, 7], [8, 9], [10, 11], [12, 13, 14]]
    with torch.no_grad():
        a, b, c, d = (float(model(torch.tensor([ids])).logits) for ids in texts)
    if kind == "scores":
        rows = [{"input_ids": ids, "labels": 2.0 * i} for i, ids in enumerate(texts)]
        expected = (a**2 + (b - 2) ** 2 + (c - 4) ** 2 + (d - 6) ** 2) / 4
    else:
        rows = [{"chosen_ids": texts[i], "rejected_ids": texts[i + 1]} for i in (0, 2)]
        expected = (math.log(1 + math.exp(b - a)) + math.log(1 + math.exp(d - c))) / 2
    trainer = score_trainer(model, tokenizer, rows, arguments(tmp_path, 1))
    model.config.pad_token_id = tokenizer.pad_token_id
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    assert float(trainer.compute_loss(model, batch)) == pytest.approx(expected, abs=1e-4)


def test_scores_are_learned_and_given_back_by_the_saved_model(start, tmp_path):
    pairs = [(source, output) for source in TEXTS for output in TEXTS]
    rows = [{"source": s, "output": o, "score": float(o.endswith("fine"))} for s, o in pairs] * 4
    figures = train_pair_scorer(rows, start, tmp_path / "model", arguments(tmp_path))
    assert figures["correlation"] > 0.9
    reward = RewardModelReward(tmp_path / "model", batch_size=3)
    sources, outputs = zip(*pairs, strict=True)
    scores = reward(sources, outputs)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    for source, output, score in zip(sources, outputs, scores, strict=True):
        ids = [tokenizer(text)["input_ids"] for text in (source, output)]
        assert [row[-1] for row in ids] == [tokenizer.eos_token_id] * 2
        with torch.no_grad():  # one at a time, without padding
            own = model(torch.tensor([ids[0] + ids[1]])).logits
        assert score == pytest.approx(float(own), abs=1e-4)
    # an empty output and a spelled end token: neither changes how many texts there are
    assert len(reward(["the film </s> was dull", "the film"], ["", "a </s> plot"])) == 2


def test_preferences_are_learned(start, tmp_path):
    best = "the film was fine"
    others = [text for text in TEXTS if text != best]
    rows = [{"source": s, "chosen": best, "rejected": text} for s in TEXTS for text in others] * 4
    figures = train_pair_scorer(rows, start, tmp_path / "model", arguments(tmp_path))
    assert figures["accuracy"] == 1


def test_scores_get_errors_of_the_spread_that_was_asked_for():
    rows = scored(["a"] * 4000, ["b"] * 4000, lambda prompts, completions: [0.5] * 4000, 0.2, 1)
    errors = torch.tensor([row["score"] - 0.5 for row in rows])
    assert float(errors.std()) == pytest.approx(0.2, rel=0.05)
    none = scored(["a", "b"], ["c", "d"], lambda prompts, completions: [None, 1.0], 0.0, 0)
    assert none == [{"source": "b", "output": "d", "score": 1.0}]


def test_the_given_target_is_preferred_to_what_is_not_it():
    pairs = [{"source": "s1", "target": "t1"}, {"source": "s2", "target": "t2"}]
    rows = preferred(pairs, ["t1", "o2"], seed=0)
    assert all(row["chosen"] == "t" + row["source"][1] != row["rejected"] for row in rows)
    assert {"source": "s2", "chosen": "t2", "rejected": "o2"} in rows
