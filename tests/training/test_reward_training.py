"""Reward models: what they read, what they learn, and that the rewards take them as they are."""

import dataclasses
import json
import math
import random

import pytest
import torch
from architectures import ARCHITECTURES
from datasets import Dataset
from launching import run_here
from transformers import Trainer, ViTConfig, ViTForImageClassification

from trl_recipes.errors import RecipeError
from trl_recipes.evaluation.reward_model import evaluate_reward_model, write_card
from trl_recipes.rewards import RewardModelReward, Rewards, SentimentReward
from trl_recipes.rewards.loading import load_reward_funcs
from trl_recipes.training.fit import with_learning_rate
from trl_recipes.training.reward_data import (
    Labeled,
    Pairs,
    kind_of,
    pairs_of_labels,
    read_pairs,
    read_reward_data,
)
from trl_recipes.training.reward_model import (
    ClassifierSizes,
    RewardModelConfig,
    base_model,
    start_classifier,
    train_reward_model,
)

TINY = {"num_layers": 1, "num_heads": 2, "hidden_size": 32, "vocab_size": 300, "dropout": 0.0}
SIZES = ClassifierSizes(**TINY, context_length=32, fragments_per_text=1)
MOOD = {"names": ["NEGATIVE", "POSITIVE"]}
GOOD, BAD = ("good", "fine", "great"), ("bad", "dull", "poor")


def sentences(count, seed):
    """Texts of which one word says whether they are good; labels 1 and 0 in turn."""
    draw = random.Random(seed)
    labels = [i % 2 for i in range(count)]
    texts = [
        f"The {draw.choice(['film', 'plot'])} is {draw.choice((BAD, GOOD)[i])}." for i in labels
    ]
    return texts, labels


def settings(folder, **changes):
    chosen = {"per_device_train_batch_size": 8, "learning_rate": 3e-3, "save_strategy": "no"}
    chosen |= {"output_dir": str(folder), "use_cpu": True, "disable_tqdm": True}
    return RewardModelConfig(**chosen | changes)


def data_of(kind, count=200, seed=0):
    texts, labels = sentences(count, seed)
    if kind == "classes":
        return Labeled(texts, labels, ["BAD", "GOOD"])
    if kind == "number":
        return Labeled(texts, [3.0 + 4 * label for label in labels], None)
    return Pairs(texts[1::2], texts[::2])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of each kind, trained until it knows."""
    folders = {}
    for kind in ("classes", "number", "pairs"):
        folders[kind] = folder = tmp_path_factory.mktemp(kind)
        more = {"heldout": data_of(kind, seed=1)} if kind == "classes" else {}
        done = train_reward_model(data_of(kind), folder, settings(folder), sizes=SIZES, **more)
        assert done.get("heldout_accuracy") == (1 if kind == "classes" else None)
    return folders


def test_separable_data_is_learned_to_the_end(trained):
    for kind in ("classes", "pairs"):
        figures = evaluate_reward_model(trained[kind], data_of(kind, seed=1))
        assert figures.values["accuracy"] == 1.0
        assert figures.values["margin"] > 1
        assert figures.values["confidence"] > 0.8
    numbers = evaluate_reward_model(trained["number"], data_of("number", seed=1)).values
    assert numbers["rmse"] < 0.5  # of numbers 3 and 7
    assert numbers["correlation"] > 0.95


@pytest.mark.parametrize(
    ("given", "base", "rate"),
    [(None, None, 1e-3), (None, "embedded", 1e-3), (None, "tiny", 5e-5), (2e-4, "tiny", 2e-4)],
)
def test_a_base_model_wants_a_smaller_rate_unless_one_is_given(given, base, rate, tiny_gpt2):
    config, name = RewardModelConfig(learning_rate=given), {"tiny": str(tiny_gpt2)}.get(base, base)
    model, _ = start_classifier(name, data_of("pairs", 20), SIZES)
    assert with_learning_rate(config, model).learning_rate == rate
    assert config.learning_rate == given


def test_what_rewards_say_of_a_model_is_what_was_measured(trained):
    """Round trip, both ways: sentiment from classes, one score from pairs and numbers."""
    texts, labels = sentences(40, 2)
    prompts, completions = [text[:5] for text in texts], [text[5:] for text in texts]
    probabilities = SentimentReward(trained["classes"], label="good", score="probability")
    said = probabilities(prompts, completions)
    right = [(p > 0.5) == bool(label) for p, label in zip(said, labels, strict=True)]
    figures = evaluate_reward_model(trained["classes"], Labeled(texts, labels, ["BAD", "GOOD"]))
    assert sum(right) / len(right) == figures.values["accuracy"]
    reward = RewardModelReward(trained["pairs"])
    scores = torch.tensor(reward(prompts, completions))
    pairs = evaluate_reward_model(trained["pairs"], Pairs(texts[1::2], texts[::2]))
    margins = scores[1::2] - scores[::2]
    assert pairs.values["margin"] == pytest.approx(float(margins.mean()), abs=1e-4)
    as_sentiment = SentimentReward(trained["pairs"], label="SCORE")
    assert as_sentiment(prompts, completions) == pytest.approx(scores.tolist(), abs=1e-4)
    numbers = RewardModelReward(trained["number"])(prompts, completions)
    assert numbers == pytest.approx([3.0 + 4 * label for label in labels], abs=1.5)
    for kind in ("number", "pairs"):
        with pytest.raises(RecipeError, match="no label 'POSITIVE'"):
            SentimentReward(trained[kind])
    with pytest.raises(RecipeError, match=r"has 2 labels, .*SentimentReward"):
        RewardModelReward(trained["classes"])


@pytest.mark.parametrize("kind", ["classes", "number", "pairs"])
def test_a_base_model_without_a_pad_token_is_taken(kind, tiny_gpt2, tmp_path):
    config = settings(tmp_path, max_steps=2)
    base = base_model(str(tiny_gpt2))
    train_reward_model(data_of(kind), tmp_path, config, model_name_or_path=base, sizes=SIZES)
    classes = kind == "classes"
    reward = SentimentReward(tmp_path, label="GOOD") if classes else RewardModelReward(tmp_path)
    alone = [reward(["The"], [text])[0] for text in (" film is good.", " plot")]
    assert reward(["The"] * 2, [" film is good.", " plot"]) == pytest.approx(alone, abs=1e-4)


def test_a_training_that_was_killed_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    steps, calls = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}, iter(range(100))
    steps["logging_steps"] = 2

    def train(name, **changes):
        config = settings(tmp_path / name, **steps, **changes)
        model = tmp_path / name / "model"
        return train_reward_model(data_of("pairs"), model, config, sizes=SIZES)["train_loss"]

    def killed(*args, **kwargs):
        if next(calls) == 6:
            raise MemoryError
        return step(*args, **kwargs)

    loss = train("whole")
    step = Trainer.training_step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", killed)
        with pytest.raises(MemoryError):
            train("killed")
    assert not (tmp_path / "killed" / "model").exists()
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "killed")]
    for _ in range(2):  # the second time there is no step left
        assert train("killed", resume_from_checkpoint="true") == pytest.approx(loss, rel=1e-5)
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_model_that_cannot_score_texts_is_refused(tmp_path):
    ARCHITECTURES["t5"]().save_pretrained(tmp_path / "t5")
    vit = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ViTForImageClassification(vit).save_pretrained(tmp_path / "vit")
    with pytest.raises(RecipeError, match=r"encoder-decoder \(t5\).*such as BERT"):
        base_model(str(tmp_path / "t5"))
    with pytest.raises(RecipeError, match="is a vit, to which"):
        base_model(str(tmp_path / "vit"))
    with pytest.raises(RecipeError, match="--context_length"):
        settings(tmp_path, max_length=20)
    assert RewardModelConfig(bf16=True).bf16  # transformers refuses it without use_cpu


def test_pairs_alike_up_to_the_context_are_left_out(tmp_path, caplog):
    long = "The film is so long that nobody who saw it will ever know how it ended, " * 4
    texts, _ = sentences(20, 0)
    pairs = Pairs([*texts[1::2], long + "good"], [*texts[::2], long + "bad"])
    done = train_reward_model(pairs, tmp_path, settings(tmp_path, max_steps=1), sizes=SIZES)
    assert done["rows"] == 10
    assert "1 of 11 pairs differ only behind the context of 32 tokens" in caplog.text
    assert "2 of 22 texts are longer than 32 tokens and cut there" in caplog.text
    alike = Pairs([long + "a"], [long + "b"])
    with pytest.raises(RecipeError, match="same up to 32 tokens"):
        train_reward_model(alike, tmp_path, settings(tmp_path), sizes=SIZES)


@pytest.mark.parametrize("kind", ["classes", "pairs"])
def test_the_card_holds_the_figures_and_code_that_runs(kind, trained):
    folder, reward = trained[kind], {"classes": "SentimentReward", "pairs": "RewardModelReward"}
    figures = evaluate_reward_model(folder, data_of(kind, seed=1))
    write_card(folder, figures, base="nothing", source="made up", rows=200, seconds=1.0)
    card = (folder / "README.md").read_text()
    for part in ("made up, 200 rows", f"{figures.values['ece']:.3f}", "started from: nothing"):
        assert part.lower() in card.lower()
    code = card.split("```python")[1].split("```")[0]
    assert reward[kind] in code
    found = {}
    exec(code.replace("path/to/this/folder", str(folder)), found)
    assert math.isfinite(found["scores"][0])
    kept = json.loads(json.dumps(dataclasses.asdict(figures)))
    assert kept["values"] == figures.values


def rows(**columns):
    return Dataset.from_dict(columns)


def read(train, heldout=None, **chosen):
    return read_reward_data(train, heldout or train, "data", **chosen)


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({"text": ["a"], "label": [0.5]}, "number"),
        ({"text": ["a"], "label": [1.0]}, "classes"),
        ({"text": ["a"], "label": ["x"]}, "classes"),
        ({"chosen": ["a"], "rejected": ["b"]}, "pairs"),
    ],
)
def test_the_kind_is_found_in_the_columns(columns, kind):
    assert kind_of(rows(**columns), "label") == kind


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([1, 0, 1], ["NEGATIVE", "POSITIVE"], [1, 0, 1]),
        ([True, False, True], ["NEGATIVE", "POSITIVE"], [1, 0, 1]),
        ([5, 1, 3], ["1", "3", "5"], [2, 0, 1]),
        (["pos", "neg", "Pos"], None, None),
        ([10, 9, 2], ["2", "9", "10"], [2, 1, 0]),
    ],
)
def test_class_names_are_found(labels, names, numbers):
    data, _ = read(rows(text=["a", "b", "c"], label=labels))
    if names is None:
        assert [data.names[label].lower() for label in data.labels] == ["pos", "neg", "pos"]
    else:
        assert (data.names, data.labels) == (names, numbers)


def test_pairs_of_labels_put_the_higher_label_first():
    labels = [random.Random(0).choice([1.0, 2.0, 2.5]) for _ in range(30)] + [1.0, 2.0]
    texts = [f"text {number}" for number in range(32)]
    pairs, again = (pairs_of_labels(Labeled(texts, labels, None), 3, seed=0) for _ in range(2))
    label_of = dict(zip(texts, labels, strict=True))
    assert len(pairs.chosen) == 3 * 32
    assert all(label_of[c] > label_of[r] for c, r in zip(pairs.chosen, pairs.rejected, strict=True))
    assert {*pairs.chosen, *pairs.rejected} == set(texts)
    assert pairs == again


def test_pairs_that_say_nothing_are_counted(caplog):
    answers = {"chosen": ["a", "b", " ", "c"], "rejected": ["x", "b", "y", "d"]}
    data = rows(prompt=["q", "q", "", None], **answers)
    assert read_pairs(data, "data") == Pairs(["qa", "c"], ["qx", "d"])
    assert "2 of 4 pairs of data are empty, or have chosen equal to rejected" in caplog.text
    data, _ = read(rows(text=["a", " ", "b"], label=[0, 1, 1]))
    assert (data.texts, data.labels) == (["a", "b"], [0, 1])
    assert "1 of 3 texts of data (train) are empty and left out" in caplog.text


def test_conversations_go_through_the_chat_template(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"

    def said(role, text):
        return [{"role": role, "content": text}]

    expected = Pairs(["<user>Hi<assistant>Yes"], ["<user>Hi<assistant>No"], rendered=True)
    hi, yes, no = said("user", "Hi"), said("assistant", "Yes"), said("assistant", "No")
    asked = rows(prompt=[hi], chosen=[yes], rejected=[no])
    whole = rows(chosen=[hi + yes], rejected=[hi + no])
    assert read_pairs(asked, "data", tokenizer) == read_pairs(whole, "data", tokenizer) == expected
    with pytest.raises(RecipeError, match="chat template"):
        read_pairs(asked, "data")


@pytest.mark.parametrize(
    ("columns", "chosen", "message"),
    [
        ({"text": ["a", "b"], "label": [1, 1]}, {}, "every text .* has the label POS.*both"),
        ({"text": ["a", "b"], "label": [2.5, 2.5]}, {}, "has the label 2.5"),
        ({"text": ["", " "], "label": [0, 1]}, {}, "all 2 texts of data"),
        ({"body": ["a"], "label": [0]}, {}, "no column `text`.*body, label"),
        ({"text": ["a"], "mood": [0]}, {}, "no column `label`.*text, mood.*chosen and rejected"),
        ({"text": ["a", "b"], "label": [0.5, math.nan]}, {}, "row 2 of .* nan as label.*Fix"),
        ({"text": ["a", "b"], "label": [1, None]}, {}, "row 2 of data .train. holds None"),
        ({"text": [3], "label": [0]}, {}, "--text_column: row 1 of data .train. holds 3"),
        ({"text": ["a", "b"], "label": [0, 2]}, MOOD, "--class_names: row 2 of .* holds 2 as"),
        ({"text": ["a", "b"], "label": [0.0, None]}, MOOD, "row 2 of .* holds (nan|None)"),
        ({"text": ["a", "b"], "label": ["x", "y"]}, {"kind": "number"}, "row 1 .* 'x' as label"),
        ({"text": ["a"] * 200, "label": list(range(200))}, {}, "200 different labels"),
        ({"prompt": ["a"], "chosen": ["b"]}, {"kind": "pairs"}, "no column rejected.*prompt, ch"),
        ({"chosen": ["b"], "rejected": ["b"]}, {}, "1 of 1 pairs .* no pair is left"),
        ({"chosen": [3], "rejected": [4]}, {}, "holds '3' .int."),
    ],
)
def test_data_that_teach_nothing_are_refused(columns, chosen, message):
    with pytest.raises(RecipeError, match=message):
        read(rows(**columns), **chosen)


def test_preference_pairs_become_a_reward_that_other_recipes_take_by_name(
    tmp_path, monkeypatch, caplog, capsys
):
    draw = random.Random(0)
    pairs = [
        {"prompt": "The film is", "chosen": f" {draw.choice(GOOD)}, I think, {i}."}
        | {"rejected": f" {draw.choice(BAD)}, I think, {i}."}
        | {"split": "test" if i < 40 else "train"}
        for i in range(240)
    ]
    pairs.append({"prompt": "x", "chosen": "y", "rejected": "y", "split": "train"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    words = "--num_layers 1 --hidden_size 32 --num_heads 2 --vocab_size 300 --context_length 32"
    words += " --per_device_train_batch_size 8 --learning_rate 3e-3 --disable_tqdm true --dropout 0"
    monkeypatch.chdir(tmp_path)
    run_here("train_reward_model.py", "--dataset_name", "pairs.jsonl", *words.split())
    assert "1 of 201 pairs of pairs.jsonl (train) are empty, or have chosen equal" in caplog.text
    assert "held-out accuracy 1.000" in capsys.readouterr().out
    run = tmp_path / "runs" / "reward"
    assert (run / "plots" / "reliability.png").stat().st_size > 10_000
    assert "1.000" in (run / "model" / "README.md").read_text()
    assert "kind" not in (run / "config.yaml").read_text()  # it was found, not given
    rewards = Rewards(load_reward_funcs([str(run)]))
    scores, _ = rewards(["The film is"] * 2, [" great, I think.", " poor, I think."], [[0], [0]])
    assert scores[0] > scores[1] + 1
