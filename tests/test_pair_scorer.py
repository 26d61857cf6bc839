"""The reward model of rewrites: its losses by hand, and the pair that it reads."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trl_recipes.rewards import RewardModelReward
from trl_recipes.training import seq2seq_pair_scorer as pair_scorer
from trl_recipes.training.seq2seq_comparisons import load_comparisons, preferred, scored
from trl_recipes.training.seq2seq_pair_scorer import train_pair_scorer
from trl_recipes.training.seq2seq_pretraining import (
    Seq2SeqSizes,
    start_model,
    training_arguments,
)

TEXTS = ["the film was dull", "the film was fine", "a plot of gold", "a plot of lead"]


@pytest.fixture(scope="module", params=["t5", "bart"])
def start(request, tmp_path_factory):
    """Folder of a tiny encoder-decoder."""
    folder = tmp_path_factory.mktemp(request.param)
    sizes = Seq2SeqSizes(request.param, 1, 2, 16, vocab_size=280)
    for part in start_model(None, TEXTS, sizes, seed=0):
        part.save_pretrained(folder)
    return folder


def arguments(folder, steps=60):
    return training_arguments(
        folder, steps=steps, batch_size=8, learning_rate=5e-3, seed=0, quiet=True
    )


def loss_of(monkeypatch, logits, rows):
    monkeypatch.setattr(pair_scorer, "row_logits", lambda *_: torch.tensor(logits))
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(unwrap_model=lambda model: model), processing_class=None
    )
    return float(pair_scorer.ComparisonTrainer.compute_loss(trainer, None, {"rows": rows}))


def test_the_loss_of_scores_is_their_squared_error(monkeypatch):
    rows = [{"score": 0}, {"score": 4}]
    assert loss_of(monkeypatch, [1.0, 2.0], rows) == pytest.approx((1 + 4) / 2)


def test_the_loss_of_preferences_is_that_of_bradley_and_terry(monkeypatch):
    # chosen 2 and 0, rejected 1 and 3: -log sigmoid(1), -log sigmoid(-3)
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))) / 2
    assert loss_of(monkeypatch, [2.0, 0.0, 1.0, 3.0], [{}, {}]) == pytest.approx(expected)


def test_scores_are_learnt_and_given_back_by_the_saved_model(start, tmp_path):
    rows = [
        {"source": source, "output": output, "score": float(output.endswith("fine"))}
        for source in TEXTS
        for output in TEXTS
    ] * 4
    figures = train_pair_scorer(rows, start, tmp_path / "model", arguments(tmp_path))
    assert figures["correlation"] > 0.9
    reward = RewardModelReward(tmp_path / "model", batch_size=3)
    sources, outputs = zip(*[(a, b) for a in TEXTS for b in TEXTS], strict=True)
    scores = reward(sources, outputs)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    for source, output, score in zip(sources, outputs, scores, strict=True):
        ids = [tokenizer(text)["input_ids"] for text in (source, output)]
        assert [row[-1] for row in ids] == [tokenizer.eos_token_id] * 2
        with torch.no_grad():  # one at a time, without padding
            own = model(torch.tensor([ids[0] + ids[1]])).logits
        assert score == pytest.approx(float(own), abs=1e-4)
    # an empty output and a spelt end token: neither changes how many texts there are
    assert len(reward(["the film </s> was dull", "the film"], ["", "a </s> plot"])) == 2


def test_preferences_are_learnt(start, tmp_path):
    rows = [
        {"source": source, "chosen": "the film was fine", "rejected": other}
        for source in TEXTS
        for other in TEXTS
        if other != "the film was fine"
    ] * 4
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


def test_equal_preferences_are_left_out_and_counted(tmp_path, caplog):
    line = '{{"source": "a", "chosen": "b", "rejected": "{}"}}\n'
    (tmp_path / "c.jsonl").write_text(
        "".join(line.format((i % 4 and "c") or "b") for i in range(20))
    )
    assert all(row["rejected"] == "c" for row in load_comparisons(str(tmp_path / "c.jsonl")))
    assert "of 18 preferences have two equal texts" in caplog.text
