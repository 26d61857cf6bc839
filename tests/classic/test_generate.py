"""`generate` heeds or refuses each argument of transformers' `generate`."""

import warnings

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, GPT2LMHeadModel, LogitsProcessor, StoppingCriteria

from trl_recipes import PPOConfig, PPOTrainer, RecipeError
from trl_recipes.ppo.classic import HARMLESS, MORE, NEUTRAL, complete_settings

QUERIES = [torch.tensor(ids) for ids in ([40, 41, 42], [43], [44, 45, 46, 47, 48])]
NEVER = {"eos_token_id": -1}
BENDING = {*vars(GenerationConfig())} - {*HARMLESS, *MORE, "stop_strings", "transformers_version"}
BENDING -= {name for name in BENDING if name[0] == "_"}
GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture
def trainer(tokenizer, tiny_gpt2):
    return PPOTrainer(PPOConfig(batch_size=3), str(tiny_gpt2), None, tokenizer)


def lengths(trainer, **settings):
    return [len(r) for r in trainer.generate(QUERIES, return_prompt=False, **settings)]


class HighToken(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] >= 150


class Only(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return torch.full_like(scores, -1e9).index_fill(1, torch.tensor([7]), 0.0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_new_tokens": np.int64(4), **NEVER}, [4, 4, 4]),
        ({"max_new_tokens": torch.tensor([4]), **NEVER}, [4, 4, 4]),
        ({"max_length": 8, **NEVER}, [5, 7, 3]),  # which counts the query
        ({"max_length": 8, "max_new_tokens": 2, **NEVER}, [2, 2, 2]),  # as in transformers
        ({"generation_config": GenerationConfig(max_new_tokens=3, eos_token_id=-1)}, [3, 3, 3]),
        ({"generation_config": {"max_new_tokens": 3}, "max_new_tokens": 2, **NEVER}, [2, 2, 2]),
        ({"num_return_sequences": 2, "max_new_tokens": 2, **NEVER}, [2] * 6),
        ({"pad_token_id": None, "top_k": None, "max_new_tokens": 2, **NEVER}, [2, 2, 2]),
        ({"temperature": 0.0, "do_sample": False, "max_new_tokens": 2, **NEVER}, [2, 2, 2]),
        ({"output_scores": False, "max_new_tokens": 1}, [1] * 3),
        ({"num_beams": 2, "do_sample": False, "max_new_tokens": 2, **NEVER}, [2, 2, 2]),
    ],
)
def test_lengths_and_numbers_are_transformers(trainer, settings, expected):
    assert lengths(trainer, **settings) == expected


@pytest.mark.parametrize("beams", [1, 3])
def test_a_search_finds_what_transformers_finds(trainer, tiny_gpt2, beams):
    model = GPT2LMHeadModel.from_pretrained(tiny_gpt2)
    found = trainer.generate(QUERIES, return_prompt=False, num_beams=beams, **GREEDY, **NEVER)
    for query, row in zip(QUERIES, found, strict=True):
        tokens = {"attention_mask": torch.ones(1, len(query)).long(), "pad_token_id": 0}
        tokens |= {"eos_token_id": None, "num_beams": beams}
        expected = model.generate(query[None], **tokens, **GREEDY)
        assert row.tolist() == expected[0, len(query) :].tolist()


def test_criteria_end_a_row_and_processors_bend_it(trainer, tokenizer):
    def draw(**settings):
        torch.manual_seed(0)
        settings = {"max_new_tokens": 30} | settings
        return trainer.generate(QUERIES * 4, return_prompt=False, **settings, **NEVER)

    for row in draw(stopping_criteria=[HighToken()]):
        assert all(token < 150 for token in row[:-1])
        assert row[-1] >= 150 or len(row) == 30
    texts = tokenizer.batch_decode(draw(stop_strings=["e"], tokenizer=tokenizer))
    assert any("e" in text for text in texts)
    assert all("e" not in text[:-1] or text.rindex("e") > len(text) - 12 for text in texts)
    assert {int(t) for row in draw(logits_processor=[Only()]) for t in row} == {7}
    allowed = draw(prefix_allowed_tokens_fn=lambda row, ids: [9, 11])
    assert {int(t) for row in allowed for t in row} == {9, 11}


def test_the_responses_to_one_query_are_a_batch(trainer):
    settings = {"num_return_sequences": 3, "generate_ref_response": True, **NEVER}
    both = trainer.generate(QUERIES[0], max_new_tokens=4, **settings)
    assert [tuple(rows.shape) for rows in both] == [(3, 7), (3, 7)]
    assert both[0][:, :3].tolist() == [[40, 41, 42]] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_token": 3}, "no use for `max_new_token`: it takes queries"),
        ({"return_dict_in_generate": True}, "no use for `return_dict_in_generate`"),
        ({"streamer": print}, "no use for `streamer`"),
        ({"attention_mask": torch.tensor([0, 1, 1])}, "no use for `attention_mask`"),
        ({"temperature": 0.0}, "`temperature` is 0.0: it must be greater than 0"),
        ({"temperature": np.float32(-1)}, "`temperature` is -1.0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` 0 leaves no token"),
        ({"max_length": 5}, "`max_length` 5 leaves no token"),
        ({"length_sampler": iter([4, 0, 4]).__next__}, "0 of `length_sampler` leaves no token"),
        ({"max_new_tokens": 60}, "model's context holds 64"),
        ({"num_return_sequences": 2, "num_beams": 2}, "`num_beams` goes with neither"),
        ({"num_beams": 2, "stop_strings": "a"}, "a beam cannot end alone"),
        ({"query_tensor": []}, "empty list"),
        (
            {"query_tensor": [torch.tensor([5, 400])]},
            r"`query_tensor\[0\]` holds token id 400, out",
        ),
        ({"query_tensor": [QUERIES[0], torch.tensor([5.0])]}, r"tensor\[1\]` holds torch.float32"),
        ({"query_tensor": torch.ones(1, 3).long()}, "must be one-dimensional"),
    ],
)
def test_what_cannot_be_heeded_or_is_no_token_id_is_refused(trainer, settings, message):
    with pytest.raises(RecipeError, match=message):
        trainer.generate(**{"query_tensor": QUERIES} | settings)


@pytest.mark.parametrize(
    ("settings", "bent"),
    [
        (dict.fromkeys(BENDING, 2) | {"logits_processor": [Only()], "top_k": 5}, True),
        (NEUTRAL | {"token_healing": False}, False),
        ({"max_new_tokens": 3, "use_cache": False, "bos_token_id": 3, "min_length": -1}, False),
    ],
)
def test_every_argument_that_bends_the_distribution_is_warned_about_and_no_other(settings, bent):
    for name, value in settings.items():
        with warnings.catch_warnings(record=True) as told:
            complete_settings({name: value}, {"temperature": 1.0, "eos_token_id": 0}, None)
        assert [name in str(one.message) for one in told] == [True] * bent, name
