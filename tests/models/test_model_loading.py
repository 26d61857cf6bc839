"""A model of another kind, or not whole, is refused; transformers would fill it in at random."""

import json
import logging.handlers
import shutil

import pytest
from transformers import GPT2Config

from trl_recipes import AutoModelForCausalLMWithValueHead, RecipeError, load_run
from trl_recipes.models.loading import check_language_model, load_classifier


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "GPT2ForTokenClassification"])
def test_heads_of_other_tasks_are_no_language_models(head):
    with pytest.raises(RecipeError, match=f"is a {head}, which is no language model"):
        check_language_model(GPT2Config(architectures=[head]), "x")


@pytest.mark.parametrize("load", [load_run, AutoModelForCausalLMWithValueHead.from_pretrained])
def test_weights_that_are_missing_or_do_not_fit_are_not_drawn_at_random(tiny_gpt2, tmp_path, load):
    folder = shutil.copytree(tiny_gpt2, tmp_path / "model")
    load(str(folder))
    config = json.loads((folder / "config.json").read_text())
    for broken, told in (
        (config | {"n_layer": 3}, r"lacks weights .*\(transformer\.h\.2\..*again"),
        (config | {"vocab_size": 310}, "do not fit together"),
        (config | {"vocab_size": "many"}, "do not fit together"),
        ([1], "do not fit together"),
    ):
        (folder / "config.json").write_text(json.dumps(broken))
        with pytest.raises(RecipeError, match=told):
            load(str(folder))


def test_a_head_that_was_asked_for_is_no_news(tiny_gpt2, monkeypatch):
    told = logging.handlers.BufferingHandler(100)
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "handlers", [told])
    model, _ = load_classifier(tiny_gpt2, new_head=True, num_labels=1)
    assert told.buffer == []
    assert model.num_labels == 1
    assert logger.level == logging.WARNING  # as it was
