"""Perplexity and similarity: the model's own loss and states, whatever stands beside a text."""

import math
import sys

import pytest
import torch
from architectures import ARCHITECTURES
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
def loaded(tiny_gpt2):
    """A language model and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    return model, AutoTokenizer.from_pretrained(tiny_gpt2)


@torch.no_grad()
def alone(loaded, text):
    """The loss and the mean of the last states that transformers' own model gives one text."""
    model, tokenizer = loaded
    ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : model.config.n_positions]
    output = model(ids, labels=ids, output_hidden_states=True)
    return output.loss.item(), output.hidden_states[-1][0].mean(0)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_losses_and_mean_states_are_the_models_own_one_by_one(loaded, batch_size):
    prompts, completions = [*PROMPTS[:3], "", LONG], [*COMPLETIONS[:3], LONG, ""]
    found = [alone(loaded, p + c) for p, c in zip(prompts, completions, strict=True)]
    losses = [loss for loss, _ in found]
    log = PerplexityReward(*loaded, log=True, batch_size=batch_size)
    assert log(prompts, completions) == pytest.approx([-loss for loss in losses], abs=1e-5)
    plain = PerplexityReward(*loaded, batch_size=batch_size)(prompts, completions)
    assert plain == pytest.approx([-math.exp(loss) for loss in losses], rel=1e-5)
    assert max(losses) - min(losses) > 0.05  # texts differ, so an order mix-up would show

    reference = alone(loaded, REFERENCE)[1]
    expected = [F.cosine_similarity(mean, reference, dim=0).item() for _, mean in found[:3]]
    values = SimilarityReward(REFERENCE, *loaded, batch_size=batch_size)(PROMPTS, COMPLETIONS)
    assert values[2] == pytest.approx(1.0, abs=1e-5)  # the reference text itself
    assert values == pytest.approx([*expected, 0.0], abs=1e-5)  # 0: nothing said


def test_a_text_of_one_token_is_read_after_the_begin_token_and_an_empty_one_is_left_out(loaded):
    model, tokenizer = loaded
    (token,) = tokenizer("I")["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([[tokenizer.bos_token_id]])).logits[0, -1]
    expected = logits.log_softmax(-1)[token].item()
    values = PerplexityReward(*loaded, log=True)(["I", ""], ["", ""])
    assert values == [pytest.approx(expected, abs=1e-5), None]


def test_a_folder_stands_for_its_model_and_a_model_in_training_stays_so(tiny_gpt2, loaded):
    expected = PerplexityReward(str(tiny_gpt2))(PROMPTS, COMPLETIONS)
    model = loaded[0].train()
    assert PerplexityReward(model)(PROMPTS, COMPLETIONS) == pytest.approx(expected, rel=1e-5)
    assert model.training
    model.eval()


def test_a_column_holds_a_reference_for_each_prompt(loaded):
    reward = SimilarityReward(None, *loaded, column="wanted")
    wanted = [REFERENCE, "I slept", REFERENCE, "I slept"]
    expected = [
        SimilarityReward(reference, *loaded)([p], [c])[0]
        for reference, p, c in zip(wanted, PROMPTS, COMPLETIONS, strict=True)
    ]
    assert reward(PROMPTS, COMPLETIONS, wanted=wanted) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(RecipeError, match="no column `wanted`"):
        reward(PROMPTS, COMPLETIONS)
    with pytest.raises(RecipeError, match="column `wanted`, sample 1, is ''"):
        reward(PROMPTS, COMPLETIONS, wanted=[REFERENCE, "", "a", "b"])


@pytest.mark.filterwarnings("ignore:.*W008")
def test_spacy_is_doc_similarity_and_0_for_unknown_words(tmp_path, recwarn):
    spacy = pytest.importorskip("spacy", reason="the extra spacy is not installed")
    nlp = spacy.blank("en")
    with pytest.raises(RecipeError, match="no word vectors"):
        SimilarityReward(REFERENCE, nlp, kind="spacy")
    with pytest.raises(RecipeError, match="`no_such_pipeline` could not be loaded"):
        SimilarityReward(REFERENCE, "no_such_pipeline", kind="spacy")
    generator = torch.Generator().manual_seed(0)
    for word in ["A", "dull", "film", "terrible", "ending", "The", "was", "good", "slept", "I"]:
        nlp.vocab.set_vector(word, torch.randn(8, generator=generator).numpy())
    nlp.to_disk(tmp_path / "pipeline")
    expected = [nlp(text).similarity(nlp(REFERENCE)) for text in TEXTS]
    recwarn.clear()
    for pipeline in (nlp, str(tmp_path / "pipeline")):
        reward = SimilarityReward(REFERENCE, pipeline, kind="spacy", batch_size=2)
        values = reward(PROMPTS, COMPLETIONS)
        assert values == pytest.approx(expected, abs=1e-6)
        assert values[2:] == [pytest.approx(1.0), 0.0]
        assert len({round(value, 3) for value in values}) == 4
        assert reward([""], ["zebra"]) == [0.0]
    assert not recwarn


def test_sentence_transformers_give_the_cosine_of_their_embeddings(tmp_path):
    library = pytest.importorskip(
        "sentence_transformers", reason="the extra sentence-transformers is not installed"
    )
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dull", "film", "ending", "good", "slept"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    sizes = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.5}
    folder = tmp_path / "bert"
    BertModel(BertConfig(**sizes)).save_pretrained(folder)
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
    ("make", "told"),
    [
        (lambda: SimilarityReward(""), "`reference_text` is ''"),
        (lambda: SimilarityReward(" \n"), "of at least one word"),
        (lambda: SimilarityReward(), "either `reference_text` or `column`"),
        (lambda: SimilarityReward("a", column="b"), "either `reference_text` or `column`"),
        (lambda: SimilarityReward("a", kind="guess"), "unknown kind 'guess'"),
        (lambda: PerplexityReward("./nothing"), "PerplexityReward: there is no file or folder"),
        (lambda: PerplexityReward(ARCHITECTURES["bart"](), object()), "encoder-decoder"),
    ],
)
def test_wrong_settings_are_refused(make, told):
    with pytest.raises(RecipeError, match=told):
        make()
