"""A model of another kind, or not whole, is refused; transformers would fill it in at random."""

import json
import logging.handlers

import pytest
from transformers import AutoTokenizer, GPT2Config, T5Config

from trl_recipes import AutoModelForCausalLMWithValueHead, RecipeError, load_run
from trl_recipes.models.loading import check_language_model, load_classifier


def test_heads_of_other_tasks_are_no_language_models():
    for head in ("BertForSequenceClassification", "GPT2ForTokenClassification"):
        with pytest.raises(RecipeError, match=f"is a {head}, which is no language model"):
            check_language_model(T5Config(architectures=[head]), "x")
    for head in (["GPT2LMHeadModel"], ["T5ForConditionalGeneration"], None):
        check_language_model(T5Config(architectures=head), "x")


@pytest.mark.parametrize("load", [load_run, AutoModelForCausalLMWithValueHead.from_pretrained])
def test_weights_that_are_missing_are_not_drawn_at_random(tiny_gpt2, tmp_path, load):
    config = json.loads((tiny_gpt2 / "config.json").read_text()) | {"n_layer": 3}
    model, tokenizer = load_run(tiny_gpt2)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match=r"lacks weights .*\(transformer\.h\.2\..*again"):
        load(str(tmp_path))


def test_sizes_that_differ_and_a_broken_config_are_one_error(tiny_gpt2, tmp_path):
    config = json.loads((tiny_gpt2 / "config.json").read_text())
    load_run(tiny_gpt2)[0].save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_gpt2).save_pretrained(tmp_path)
    for broken in (config | {"vocab_size": 310}, config | {"vocab_size": "many"}, [1]):
        (tmp_path / "config.json").write_text(json.dumps(broken))
        with pytest.raises(RecipeError, match="do not fit together"):
            load_run(tmp_path)


def test_each_kind_of_model_is_sent_to_its_own_recipe():
    for kind, causal, told in (
        (GPT2Config(), True, r"`x` is a causal model \(gpt2\).*ppo_sentiment.py"),
        (T5Config(), False, r"`x` is an encoder-decoder \(t5\).*ppo_seq2seq.py"),
    ):
        check_language_model(kind, "x", causal=causal)
        with pytest.raises(RecipeError, match=told):
            check_language_model(kind, "x", causal=not causal)


def test_a_head_that_was_asked_for_is_no_news(tiny_gpt2, monkeypatch):
    told = logging.handlers.BufferingHandler(100)
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "handlers", [told])
    model, _ = load_classifier(tiny_gpt2, new_head=True, num_labels=1)
    assert told.buffer == []
    assert model.num_labels == 1
    assert logger.level == logging.WARNING  # as it was
