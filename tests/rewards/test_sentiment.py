"""SentimentReward: the numbers of transformers' own pipeline, whatever the batch."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import MOODS, classifier
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

from trl_recipes.errors import RecipeError
from trl_recipes.rewards import SentimentReward

TEXTS = [
    "The film was wonderful.",
    "Bad.",
    "I liked the music, but the pace was slow and the ending sad.",
    "What a waste of a fine cast! " * 3,
    " rain",
]
PROMPTS = [text[:3] for text in TEXTS]
COMPLETIONS = [text[3:] for text in TEXTS]


def build_tokenizer(max_length):
    """A tokenizer of its own with RoBERTa's special tokens at both ends."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **names)


def save_classifier(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


SIZES = {"vocab_size": 260, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
SIZES |= {"intermediate_size": 64, "initializer_range": 0.3, "pad_token_id": 1}
SIZES_OF_GPT2 = {"vocab_size": 260, "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 128}
SIZES_OF_GPT2 |= {"initializer_range": 0.3, "pad_token_id": 1}


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """As siebert/sentiment-roberta-large-english, but tiny: two labels, its own tokenizer."""
    torch.manual_seed(1)
    model = classifier("roberta", **SIZES, **MOODS, max_position_embeddings=66, bos_token_id=0)
    return save_classifier(tmp_path_factory.mktemp("roberta"), model, build_tokenizer(64))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    torch.manual_seed(2)
    model = classifier("gpt2", **SIZES_OF_GPT2, **MOODS, bos_token_id=0, eos_token_id=2)
    return save_classifier(tmp_path_factory.mktemp("gpt2"), model, build_tokenizer(128))


@pytest.fixture(scope="module")
def three_labels(tmp_path_factory):
    torch.manual_seed(3)
    names = {0: "bad", 1: "so so", 2: "good"}
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    model = classifier("bert", **SIZES, **labels, max_position_embeddings=128)
    # RoBERTa's processor gives no token types; the model then takes zeros, as for one text.
    return save_classifier(tmp_path_factory.mktemp("bert"), model, build_tokenizer(128))


def by_pipeline(folder, label, **options):
    """One text at a time through transformers' own pipeline: slow, and obviously right."""
    scorer = pipeline("text-classification", model=folder, device="cpu")
    options |= {"truncation": True, "top_k": None}
    entries = [scorer(text, **options) for text in TEXTS]
    return [next(e["score"] for e in entry if e["label"] == label) for entry in entries]


@pytest.mark.parametrize("kind", ["roberta", "gpt2"])
@pytest.mark.parametrize("label", ["NEGATIVE", "POSITIVE"])
def test_logits_are_those_of_the_pipeline_in_any_order_and_batch(request, kind, label):
    folder = request.getfixturevalue(kind)
    expected = by_pipeline(folder, label, function_to_apply="none")
    order = [3, 0, 4, 2, 1]
    prompts, completions = [PROMPTS[i] for i in order], [COMPLETIONS[i] for i in order]
    for batch_size in (1, 2, 3, 5):
        reward = SentimentReward(folder, label=label, batch_size=batch_size)
        assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
        shuffled = reward(prompts, completions)
        assert shuffled == pytest.approx([expected[i] for i in order], abs=1e-5)
    assert max(expected) - min(expected) > 0.05  # texts differ, so an order mix-up would show


@pytest.mark.parametrize("kind", ["roberta", "three_labels"])
def test_probabilities_are_those_of_the_pipeline_and_log_odds_follow(request, kind):
    folder = request.getfixturevalue(kind)
    label = "POSITIVE" if kind == "roberta" else "good"
    expected = by_pipeline(folder, label)
    probability = SentimentReward(folder, label=label, score="probability")
    log_odds = SentimentReward(folder, label=label, score="log_odds")
    assert probability(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-6)
    assert log_odds(PROMPTS, COMPLETIONS) == pytest.approx(
        [math.log(p / (1 - p)) for p in expected], abs=1e-4
    )


@pytest.fixture
def own_roberta(tmp_path, roberta):
    """A copy that a test may change, and its folder."""
    shutil.copytree(roberta, tmp_path, dirs_exist_ok=True)
    return AutoModelForSequenceClassification.from_pretrained(roberta), tmp_path


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_the_pipelines_rule_for_other_problems_holds(own_roberta, problem):
    model, tmp_path = own_roberta
    model.config.problem_type = problem
    model.save_pretrained(tmp_path)
    if problem == "regression":
        with pytest.raises(RecipeError, match="regression"):
            SentimentReward(str(tmp_path), score="probability")
        return
    reward = SentimentReward(str(tmp_path), score="probability")
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(
        by_pipeline(str(tmp_path), "POSITIVE"), abs=1e-6
    )


@pytest.mark.parametrize("lost", ["tokenizer", "model"])
def test_a_model_that_cannot_pad_is_scored_one_by_one(tmp_path, gpt2, lost):
    model = AutoModelForSequenceClassification.from_pretrained(gpt2)
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    if lost == "tokenizer":
        tokenizer.pad_token = None
    else:
        model.config.pad_token_id = None
    save_classifier(tmp_path, model, tokenizer)
    reward = SentimentReward(str(tmp_path))
    assert reward.batch_size == 1
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(
        by_pipeline(gpt2, "POSITIVE", function_to_apply="none"), abs=1e-5
    )


def test_a_ready_pipeline_is_taken_as_it_is_and_the_embedded_classifier_by_default(
    monkeypatch, roberta
):
    monkeypatch.setattr("trl_recipes.embedded.sentiment_classifier", lambda: roberta)
    assert SentimentReward().model.name_or_path == roberta
    ready = pipeline("text-classification", model=roberta, device="cpu")
    reward = SentimentReward(ready)
    assert reward.model is ready.model
    assert reward(PROMPTS, COMPLETIONS) == SentimentReward(roberta)(PROMPTS, COMPLETIONS)


def test_long_texts_are_cut_to_what_the_model_takes(own_roberta, roberta):
    # 66 position embeddings of a RoBERTa hold 64 tokens, whatever its tokenizer says.
    build_tokenizer(10**30).save_pretrained(own_roberta[1])
    long = "x" * 500
    reward = SentimentReward(str(own_roberta[1]))
    assert reward.max_length == 64
    assert reward([long], [" good"]) == pytest.approx(
        SentimentReward(roberta)([long], [""]), abs=1e-6
    )


def test_labels_are_found_by_name_in_any_case_or_listed(roberta, three_labels):
    told = rf"{three_labels}` has no label 'POSITIVE'\. Its labels are: bad, so so, good"
    with pytest.raises(RecipeError, match=told):
        SentimentReward(three_labels, label="POSITIVE")
    reward = SentimentReward(roberta, label="negative")
    assert (reward.label, reward.label_id) == ("NEGATIVE", 0)
    assert reward.__name__ == "sentiment_negative"
    assert SentimentReward(roberta, name="mood").__name__ == "mood"
    with pytest.raises(RecipeError, match="SentimentReward: unknown score 'softmax'"):
        SentimentReward(roberta, score="softmax")


def lose_the_head(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "is not a model"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lose_the_head, "lacks weights of its classifier"),
    ],
)
def test_a_damaged_folder_is_one_error_that_names_the_flag(own_roberta, damage, message):
    damage(own_roberta[1])
    with pytest.raises(RecipeError, match=f"^--reward_model: .*{message}"):
        SentimentReward(str(own_roberta[1]))
