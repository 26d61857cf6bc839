"""PerplexityReward: the model's own loss, text by text, whatever stands beside it in a batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
)

from trl_recipes.errors import RecipeError
from trl_recipes.rewards import PerplexityReward

PROMPTS = ["The film", "I", "", "What a waste of a good camera", "A dull"]
COMPLETIONS = [" was good.", "t", "Nothing here is new; still, it charms.", "", " film" * 8]


@pytest.fixture(scope="module")
def model(tiny_gpt2):
    return AutoModelForCausalLM.from_pretrained(tiny_gpt2)


@pytest.fixture(scope="module")
def own_tokenizer(tiny_gpt2):
    return AutoTokenizer.from_pretrained(tiny_gpt2)


@torch.no_grad()
def one_by_one(model, tokenizer, texts):
    """The loss that transformers' own model computes for each text alone."""
    losses = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : model.config.n_positions]
        losses.append(model(ids, labels=ids).loss.item())
    return losses


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_it_is_the_models_own_loss_one_by_one(model, own_tokenizer, batch_size):
    texts = [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    losses = one_by_one(model, own_tokenizer, texts)
    log = PerplexityReward(model, own_tokenizer, log=True, batch_size=batch_size)
    plain = PerplexityReward(model, own_tokenizer, batch_size=batch_size)
    assert log(PROMPTS, COMPLETIONS) == pytest.approx([-loss for loss in losses], abs=1e-5)
    assert plain(PROMPTS, COMPLETIONS) == pytest.approx(
        [-math.exp(loss) for loss in losses], rel=1e-5
    )
    assert max(losses) - min(losses) > 0.05  # texts differ, so an order mix-up would show


@settings(max_examples=20, deadline=None)
@given(
    texts=st.lists(st.text("abc film.", min_size=2, max_size=40), min_size=2, max_size=6),
    seed=st.randoms(use_true_random=False),
)
def test_order_batching_and_padding_do_not_matter(model, own_tokenizer, texts, seed):
    reward = PerplexityReward(model, own_tokenizer, log=True)
    empty = [""] * len(texts)
    alone = [reward([""], [text])[0] for text in texts]
    order = list(range(len(texts)))
    seed.shuffle(order)
    shuffled = reward(empty, [texts[i] for i in order])
    assert shuffled == pytest.approx([alone[i] for i in order], abs=1e-5)


def test_a_text_of_one_token_is_read_after_the_begin_token_and_an_empty_one_is_left_out(
    model, own_tokenizer
):
    ids = own_tokenizer("I")["input_ids"]
    assert len(ids) == 1
    with torch.no_grad():
        logits = model(torch.tensor([[own_tokenizer.bos_token_id]])).logits[0, -1]
    expected = logits.log_softmax(-1)[ids[0]].item()
    values = PerplexityReward(model, own_tokenizer, log=True)(["I", ""], ["", ""])
    assert values == [pytest.approx(expected, abs=1e-5), None]


def test_what_exceeds_the_context_is_left_out(model, own_tokenizer):
    text = "film " * 100
    (loss,) = one_by_one(model, own_tokenizer, [text])
    (value,) = PerplexityReward(model, own_tokenizer, log=True)([""], [text])
    assert value == pytest.approx(-loss, abs=1e-5)


def test_a_folder_stands_for_its_model_and_a_model_in_training_stays_so(tiny_gpt2, model):
    expected = PerplexityReward(str(tiny_gpt2))(PROMPTS, COMPLETIONS)
    model.train()
    assert PerplexityReward(model)(PROMPTS, COMPLETIONS) == pytest.approx(expected, rel=1e-5)
    assert model.training
    model.eval()


def test_what_is_no_causal_language_model_is_refused(own_tokenizer, tmp_path):
    with pytest.raises(RecipeError, match="PerplexityReward: there is no file or folder"):
        PerplexityReward(str(tmp_path / "nothing"))
    config = BartConfig(
        vocab_size=300, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16,
    )  # fmt: skip
    with pytest.raises(RecipeError, match="encoder-decoder"):
        PerplexityReward(BartForConditionalGeneration(config), own_tokenizer)
