"""SentimentReward and RewardModelReward: the numbers of transformers' own pipeline."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import MOODS, classifier
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

from trl_recipes import language_model
from trl_recipes.errors import RecipeError
from trl_recipes.models.loading import load_run
from trl_recipes.rewards import RewardModelReward, Rewards, SentimentReward

TEXTS = ["The film was wonderful.", "Bad.", "I liked it, but the ending was sad.", " rain"]
TEXTS.insert(3, "What a waste of a fine cast! " * 3)  # longer than the RoBERTa takes
PROMPTS, COMPLETIONS = [text[:3] for text in TEXTS], [text[3:] for text in TEXTS]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
SIZES = {"vocab_size": 260, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
SIZES |= {"intermediate_size": 64, "initializer_range": 0.3, "pad_token_id": 1, "bos_token_id": 0}
GPT2 = {"vocab_size": 260, "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 128}
GPT2 |= {"initializer_range": 0.3, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
GRADES = {"id2label": dict(enumerate(["bad", "so so", "good"]))}
GRADES["label2id"] = {name: number for number, name in GRADES["id2label"].items()}


def build_tokenizer(max_length, **more):
    """A tokenizer of characters with RoBERTa's special tokens at both ends."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = names | {"model_max_length": max_length} | more
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models: the first as siebert/sentiment-roberta-large-english, `scalar` gives a score."""
    torch.manual_seed(1)
    root, roberta = tmp_path_factory.mktemp("models"), SIZES | {"max_position_embeddings": 66}
    for name, model, tokenizer in (
        ("roberta", classifier("roberta", **roberta, **MOODS), build_tokenizer(64)),
        ("gpt2", classifier("gpt2", **GPT2, **MOODS), build_tokenizer(128)),
        # without token types; the model then takes zeros, as for one text
        ("bert", classifier("bert", **SIZES, **GRADES), build_tokenizer(128)),
        ("scalar", classifier("gpt2", **GPT2, num_labels=1), build_tokenizer(128)),
    ):
        tokenizer.chat_template = TEMPLATE if name == "scalar" else None
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture
def copied(folders, tmp_path):
    """Copies a folder, for a test to change, with other settings in its config."""

    def copy(name, **changes):
        folder = shutil.copytree(folders / name, tmp_path / name)
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy


def by_pipeline(folder, label, texts=TEXTS, **options):
    """One text at a time through transformers' own pipeline: slow, and obviously right."""
    scorer = pipeline("text-classification", model=str(folder), device="cpu")
    options |= {"truncation": True, "top_k": None}
    entries = [scorer(text, **options) for text in texts]
    return [next(e["score"] for e in entry if e["label"] == label) for entry in entries]


@pytest.mark.parametrize(
    ("kind", "label"),
    [(kind, label) for kind in ("roberta", "gpt2") for label in MOODS["label2id"]]
    + [("scalar", "LABEL_0")],
)
def test_logits_are_those_of_the_pipeline_in_any_order_and_batch(folders, kind, label):
    folder, order = str(folders / kind), [3, 0, 4, 2, 1]
    prompts, completions = [PROMPTS[i] for i in order], [COMPLETIONS[i] for i in order]
    expected = by_pipeline(folder, label, function_to_apply="none")
    for size in (1, 2, 3, 5):
        if kind == "scalar":
            reward = RewardModelReward(folder, batch_size=size)
        else:
            reward = SentimentReward(folder, label=label, batch_size=size)
        assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
        shuffled = reward(prompts, completions)
        assert shuffled == pytest.approx([expected[i] for i in order], abs=1e-5)
    assert max(expected) - min(expected) > 0.05  # texts differ, so an order mix-up would show


@pytest.mark.parametrize(
    ("kind", "label", "changes"),
    [
        ("roberta", "POSITIVE", {}),
        ("bert", "good", {}),
        ("roberta", "POSITIVE", {"problem_type": "multi_label_classification"}),
    ],
)
def test_probabilities_are_those_of_the_pipeline_and_log_odds_follow(copied, kind, label, changes):
    folder = copied(kind, **changes)
    expected = by_pipeline(folder, label)
    probability = SentimentReward(str(folder), label=label, score="probability")
    log_odds = SentimentReward(str(folder), label=label, score="log_odds")
    assert probability(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-6)
    assert log_odds(PROMPTS, COMPLETIONS) == pytest.approx(
        [math.log(p / (1 - p)) for p in expected], abs=1e-4
    )


@pytest.mark.parametrize("lost", ["tokenizer", "model"])
def test_a_model_that_cannot_pad_is_scored_one_by_one(copied, folders, lost):
    folder = copied("gpt2", **({"pad_token_id": None} if lost == "model" else {}))
    if lost == "tokenizer":
        build_tokenizer(128, pad_token=None).save_pretrained(folder)
    reward = SentimentReward(str(folder))
    assert reward.batch_size == 1
    expected = by_pipeline(folders / "gpt2", "POSITIVE", function_to_apply="none")
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


def test_a_ready_pipeline_is_taken_as_it_is_and_the_embedded_classifier_by_default(
    monkeypatch, folders
):
    roberta = str(folders / "roberta")
    monkeypatch.setattr("trl_recipes.embedded.sentiment_classifier", lambda: roberta)
    assert SentimentReward().model.name_or_path == roberta
    ready = pipeline("text-classification", model=roberta, device="cpu")
    reward = SentimentReward(ready)
    assert reward.model is ready.model
    assert reward(PROMPTS, COMPLETIONS) == SentimentReward(roberta)(PROMPTS, COMPLETIONS)


def test_long_texts_are_cut_to_what_the_model_takes(copied, folders):
    # 66 position embeddings of a RoBERTa hold 64 tokens, whatever its tokenizer says.
    expected = SentimentReward(str(folders / "roberta"))(["x" * 500], [""])
    folder = copied("roberta")
    build_tokenizer(10**30).save_pretrained(folder)
    reward = SentimentReward(str(folder))
    assert reward.max_length == 64
    assert reward(["x" * 500], [" good"]) == pytest.approx(expected, abs=1e-6)


def test_a_text_without_tokens_gets_none_and_the_others_what_they_get_alone():
    _, tokenizer = load_run(language_model())
    model = classifier("gpt2", **GPT2 | {"vocab_size": len(tokenizer)}, num_labels=1)
    for reward in (SentimentReward(), RewardModelReward(model, tokenizer)):
        assert reward(["", ""], ["", ""]) == [None, None]
        alone = pytest.approx(reward(["a"], ["b"])[0], abs=1e-6)
        assert reward(["", "a"], ["", "b"]) == [None, alone]
    with pytest.raises(RecipeError, match=r"funcs\[0\]`: this GPT2.* leaves no tokenizer to it"):
        Rewards(model)


def test_labels_are_found_in_any_case_and_names_follow_from_them(folders):
    reward = SentimentReward(str(folders / "roberta"), label="negative")
    assert (reward.label, reward.label_id) == ("NEGATIVE", 0)
    assert reward.__name__ == "sentiment_negative"
    assert SentimentReward(str(folders / "roberta"), name="mood").__name__ == "mood"
    assert Rewards(str(folders / "gpt2")).names == ["sentiment_positive"]


def test_conversations_go_through_the_reward_models_own_template(copied, folders):
    said = [[{"role": "user", "content": "Why"}], [{"role": "assistant", "content": "so, sadly"}]]
    rendered, bare = ["<user>Why<assistant>so, sadly"], {"add_special_tokens": False}
    options = {"function_to_apply": "none"} | bare
    expected = by_pipeline(folders / "scalar", "LABEL_0", rendered, **options)
    values = RewardModelReward(str(folders / "scalar"))([said[0]], [said[1]])
    assert values == pytest.approx(expected, abs=1e-5)
    plain = copied("scalar")
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(RecipeError, match="no chat template"):
        RewardModelReward(str(plain))([said[0]], [said[1]])


@pytest.mark.parametrize("load", [str, AutoModelForSequenceClassification.from_pretrained])
def test_rewards_takes_a_model_where_it_takes_a_function(folders, load):
    expected = RewardModelReward(str(folders / "scalar"))(PROMPTS, COMPLETIONS)
    rewards = Rewards(load(folders / "scalar"))
    assert rewards(PROMPTS, COMPLETIONS, [[1]] * 5)[0] == pytest.approx(expected, abs=1e-6)
    assert rewards.names == ["scalar"]


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
def test_a_damaged_folder_is_one_error_that_names_the_flag(copied, damage, message):
    damage(folder := copied("roberta"))
    with pytest.raises(RecipeError, match=f"^--reward_model: .*{message}"):
        SentimentReward(str(folder))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda root: SentimentReward(str(root / "bert"), label="POSITIVE"),
            r"bert` has no label 'POSITIVE'\. Its labels are: bad, so so, good",
        ),
        (lambda root: SentimentReward(str(root / "gpt2"), score="x"), "Reward: unknown score 'x'"),
        (lambda root: RewardModelReward(str(root / "x")), "Reward: there is no file or folder"),
    ],
)
def test_what_cannot_be_scored_is_refused(folders, make, message):
    with pytest.raises(RecipeError, match=message):
        make(folders)


def test_a_language_model_and_a_probability_of_a_regression_are_refused(tiny_gpt2, copied):
    with pytest.raises(RecipeError, match=r"`reward_funcs\[0\]`: .* no text classifier .*GPT2LMH"):
        Rewards(str(tiny_gpt2))
    with pytest.raises(RecipeError, match="regression"):
        SentimentReward(str(copied("roberta", problem_type="regression")), score="probability")
