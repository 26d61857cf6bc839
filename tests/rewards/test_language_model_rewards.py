"""Perplexity and similarity: the model's own loss and states, whatever stands beside a text."""

import math
import sys

import pytest
import torch
from architectures import ARCHITECTURES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, BertTokenizer

from trl_recipes.errors import RecipeError
from trl_recipes.rewards import PerplexityReward, SimilarityReward

REFERENCE = "A dull film with a terrible ending, sadly."
PROMPTS = ["The film", "I", "A dull", ""]
COMPLETIONS = [" was good.", " slept", " film with a terrible ending, sadly.", " "]
TEXTS = [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
LONG = "film " * 100  # beyond the context


@pytest.fixture(scope="module")
def model(tiny_gpt2):
    return AutoModelForCausalLM.from_pretrained(tiny_gpt2)


@pytest.fixture(scope="module")
def own_tokenizer(tiny_gpt2):
    return AutoTokenizer.from_pretrained(tiny_gpt2)


@torch.no_grad()
def alone(model, tokenizer, text):
    """The loss and the mean of the last states that transformers' own model gives one text."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : model.config.n_positions]
    output = model(ids, labels=ids, output_hidden_states=True)
    return output.loss.item(), output.hidden_states[-1][0].mean(0)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_perplexity_is_of_the_models_own_loss_one_by_one(model, own_tokenizer, batch_size):
    prompts, completions = [*PROMPTS[:3], "", LONG], [*COMPLETIONS[:3], LONG, ""]
    texts = [p + c for p, c in zip(prompts, completions, strict=True)]
    losses = [alone(model, own_tokenizer, text)[0] for text in texts]
    log = PerplexityReward(model, own_tokenizer, log=True, batch_size=batch_size)
    plain = PerplexityReward(model, own_tokenizer, batch_size=batch_size)
    assert log(prompts, completions) == pytest.approx([-loss for loss in losses], abs=1e-5)
    perplexities = [-math.exp(loss) for loss in losses]
    assert plain(prompts, completions) == pytest.approx(perplexities, rel=1e-5)
    assert max(losses) - min(losses) > 0.05  # texts differ, so an order mix-up would show


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_hidden_states_are_averaged_one_by_one(model, own_tokenizer, batch_size):
    reference = alone(model, own_tokenizer, REFERENCE)[1]
    expected = [
        F.cosine_similarity(alone(model, own_tokenizer, text)[1], reference, dim=0).item()
        for text in TEXTS[:3]
    ]
    reward = SimilarityReward(REFERENCE, model, own_tokenizer, batch_size=batch_size)
    values = reward(PROMPTS, COMPLETIONS)
    assert values[:3] == pytest.approx(expected, abs=1e-5)
    assert values[2] == pytest.approx(1.0, abs=1e-5)  # the reference text itself
    assert values[3] == 0.0  # nothing said


@settings(max_examples=20, deadline=None)
@given(
    texts=st.lists(st.text("abc film.", min_size=2, max_size=40), min_size=2, max_size=6),
    seed=st.randoms(use_true_random=False),
)
def test_order_batching_and_padding_do_not_matter(model, own_tokenizer, texts, seed):
    order = list(range(len(texts)))
    seed.shuffle(order)
    for reward in (
        PerplexityReward(model, own_tokenizer, log=True),
        SimilarityReward(REFERENCE, model, own_tokenizer),
    ):
        single = [reward([""], [text])[0] for text in texts]
        shuffled = reward([""] * len(texts), [texts[i] for i in order])
        assert shuffled == pytest.approx([single[i] for i in order], abs=1e-5)


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


def test_a_folder_stands_for_its_model_and_a_model_in_training_stays_so(tiny_gpt2, model):
    expected = PerplexityReward(str(tiny_gpt2))(PROMPTS, COMPLETIONS)
    model.train()
    assert PerplexityReward(model)(PROMPTS, COMPLETIONS) == pytest.approx(expected, rel=1e-5)
    assert model.training
    model.eval()


def test_what_is_no_causal_language_model_is_refused(own_tokenizer, tmp_path):
    with pytest.raises(RecipeError, match="PerplexityReward: there is no file or folder"):
        PerplexityReward(str(tmp_path / "nothing"))
    with pytest.raises(RecipeError, match="encoder-decoder"):
        PerplexityReward(ARCHITECTURES["bart"](), own_tokenizer)


def test_a_column_holds_a_reference_for_each_prompt(model, own_tokenizer):
    reward = SimilarityReward(None, model, own_tokenizer, column="wanted")
    wanted = [REFERENCE, "I slept", REFERENCE, "I slept"]
    expected = [
        SimilarityReward(reference, model, own_tokenizer)([p], [c])[0]
        for reference, p, c in zip(wanted, PROMPTS, COMPLETIONS, strict=True)
    ]
    assert reward(PROMPTS, COMPLETIONS, wanted=wanted) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(RecipeError, match="no column `wanted`"):
        reward(PROMPTS, COMPLETIONS)
    with pytest.raises(RecipeError, match="column `wanted`, sample 1, is ''"):
        reward(PROMPTS, COMPLETIONS, wanted=[REFERENCE, "", "a", "b"])


@pytest.fixture(scope="module")
def pipeline():
    """A blank English spaCy pipeline with a few word vectors of its own."""
    spacy = pytest.importorskip("spacy", reason="the extra spacy is not installed")
    nlp = spacy.blank("en")
    generator = torch.Generator().manual_seed(0)
    for word in ["A", "dull", "film", "terrible", "ending", "The", "was", "good", "slept", "I"]:
        nlp.vocab.set_vector(word, torch.randn(8, generator=generator).numpy())
    return nlp


@pytest.mark.filterwarnings("ignore:.*W008")
def test_spacy_is_doc_similarity(pipeline):
    reward = SimilarityReward(REFERENCE, pipeline, kind="spacy", batch_size=2)
    expected = [pipeline(text).similarity(pipeline(REFERENCE)) for text in TEXTS]
    values = reward(PROMPTS, COMPLETIONS)
    assert values == pytest.approx(expected, abs=1e-6)
    assert values[2] == pytest.approx(1.0)
    assert values[3] == 0.0
    assert len({round(value, 3) for value in values}) == 4


def test_spacy_gives_0_for_unknown_words_and_loads_a_saved_pipeline(pipeline, tmp_path, recwarn):
    pipeline.to_disk(tmp_path / "pipeline")
    reward = SimilarityReward(REFERENCE, str(tmp_path / "pipeline"), kind="spacy")
    assert reward([""], ["zebra"]) == [0.0]
    assert not recwarn
    ready = SimilarityReward(REFERENCE, pipeline, kind="spacy")
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(ready(PROMPTS, COMPLETIONS))


def test_a_spacy_pipeline_without_vectors_is_refused():
    spacy = pytest.importorskip("spacy", reason="the extra spacy is not installed")
    with pytest.raises(RecipeError, match="no word vectors"):
        SimilarityReward(REFERENCE, spacy.blank("en"), kind="spacy")
    with pytest.raises(RecipeError, match="`no_such_pipeline` could not be loaded"):
        SimilarityReward(REFERENCE, "no_such_pipeline", kind="spacy")


def test_sentence_transformers_give_the_cosine_of_their_embeddings(tmp_path):
    library = pytest.importorskip(
        "sentence_transformers", reason="the extra sentence-transformers is not installed"
    )
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dull", "film", "ending", "good", "slept"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, initializer_range=0.5,
    )  # fmt: skip
    folder = tmp_path / "bert"
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab=str(tmp_path / "vocab.txt")).save_pretrained(folder)
    model = library.SentenceTransformer(str(folder), device="cpu")
    model.save(str(tmp_path / "sentences"))
    embeddings = [model.encode(text, convert_to_tensor=True) for text in [REFERENCE, *TEXTS]]
    expected = [F.cosine_similarity(embeddings[0], e, dim=0).item() for e in embeddings[1:]]
    for given_model in (model, str(tmp_path / "sentences")):
        reward = SimilarityReward(REFERENCE, given_model, kind="sentence_transformers")
        assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01


@pytest.mark.parametrize("package", ["spacy", "sentence_transformers"])
def test_a_package_that_is_not_installed_is_named_with_its_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    extra = package.replace("_", "-")
    with pytest.raises(RecipeError, match=rf"pip.*install 'trl_recipes\[{extra}\]'"):
        SimilarityReward(REFERENCE, kind=package)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"reference_text": ""}, "`reference_text` is ''"),
        ({"reference_text": " \n"}, "of at least one word"),
        ({}, "either `reference_text` or `column`"),
        ({"reference_text": "a", "column": "b"}, "either `reference_text` or `column`"),
        ({"reference_text": "a", "kind": "guess"}, "unknown kind 'guess'"),
    ],
)
def test_wrong_settings_are_refused_before_any_model_is_loaded(settings, told):
    with pytest.raises(RecipeError, match=told):
        SimilarityReward(**settings)
