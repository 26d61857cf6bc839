"""RewardModelReward: the model's one logit, text by text, and with its own chat template."""

import pytest
import torch
from tiny_models import classifier
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trl_recipes.errors import RecipeError
from trl_recipes.rewards import RewardModelReward, Rewards

PROMPTS = ["The film", "I", "What a waste"]
COMPLETIONS = [" was good.", " slept", " of a fine cast! " * 3]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def build(tiny_gpt2, folder, labels, names=None, template=None):
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64, "initializer_range": 0.5}
    model = classifier("gpt2", **sizes, vocab_size=len(tokenizer), num_labels=labels)
    if names:
        model.config.id2label, model.config.label2id = names, {v: k for k, v in names.items()}
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def reward_model(tiny_gpt2, tmp_path_factory):
    return build(tiny_gpt2, tmp_path_factory.mktemp("rm") / "scalar", 1, template=TEMPLATE)


@torch.no_grad()
def one_by_one(folder, texts):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.config.pad_token_id = 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_padding_batching_and_order_do_not_change_a_score(reward_model, batch_size):
    expected = one_by_one(reward_model, [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    reward = RewardModelReward(reward_model, batch_size=batch_size)
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    assert reward(PROMPTS[::-1], COMPLETIONS[::-1]) == pytest.approx(expected[::-1], abs=1e-5)
    assert max(expected) - min(expected) > 0.05
    assert reward.__name__ == "scalar"


def test_conversations_go_through_the_models_own_template(reward_model):
    prompts = [[{"role": "user", "content": "Why"}], [{"role": "user", "content": "Now"}]]
    completions = [[{"role": "assistant", "content": c}] for c in ("so", "never, sadly")]
    expected = one_by_one(
        reward_model, ["<user>Why<assistant>so", "<user>Now<assistant>never, sadly"]
    )
    values = RewardModelReward(reward_model)(prompts, completions)
    assert values == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("given", ["folder", "model"])
def test_rewards_takes_a_model_where_it_takes_a_function(reward_model, given):
    expected = RewardModelReward(reward_model)(PROMPTS, COMPLETIONS)
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    rewards = Rewards(reward_model if given == "folder" else model)
    totals, _ = rewards(PROMPTS, COMPLETIONS, [[1]] * 3)
    assert totals == pytest.approx(expected, abs=1e-6)
    assert rewards.names == ["scalar"]


def test_a_classifier_stands_for_its_positive_label(tiny_gpt2, tmp_path):
    names = {0: "NEGATIVE", 1: "POSITIVE"}
    rewards = Rewards(build(tiny_gpt2, tmp_path / "two", 2, names))
    assert rewards.names == ["sentiment_positive"]


def test_a_language_model_or_nothing_is_refused(tiny_gpt2, tmp_path):
    with pytest.raises(
        RecipeError, match=r"`reward_funcs\[0\]`: .* no text classifier .*GPT2LMHead"
    ):
        Rewards(str(tiny_gpt2))
    with pytest.raises(RecipeError, match="RewardModelReward: there is no file or folder"):
        RewardModelReward(str(tmp_path / "nothing"))


def test_conversations_without_a_template_are_refused(tiny_gpt2, tmp_path):
    reward = RewardModelReward(build(tiny_gpt2, tmp_path / "plain", 1))
    message = [[{"role": "user", "content": "Why"}]]
    with pytest.raises(RecipeError, match="no chat template"):
        reward(message, message)
