"""Best-of-n keeps what the score prefers."""

import pytest
import torch
from transformers import GenerationConfig

from trl_recipes import AutoModelForCausalLMWithValueHead, BestOfNSampler, load_tokenizer
from trl_recipes.errors import RecipeError


@pytest.fixture(scope="module")
def parts(tiny_gpt2):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(tiny_gpt2))
    return model, load_tokenizer(str(tiny_gpt2))


SAMPLED = GenerationConfig(do_sample=True, top_k=0, top_p=1.0, pad_token_id=0)


def sampler(parts, scored, **options):
    def score(texts):
        scored.append(texts)
        return [float(len(text)) for text in texts]

    return BestOfNSampler(*parts, score, lambda: 5, generation_config=SAMPLED, seed=0, **options)


@pytest.mark.parametrize("kind", [list, torch.tensor])
@pytest.mark.parametrize("several", [False, True])
def test_the_best_of_each_query_come_back_best_first(parts, kind, several):
    first, second = (kind(ids) for ids in parts[1](["The acting", "I liked"]).input_ids)
    scored = []
    best = sampler(parts, scored, sample_size=6, n_candidates=2).generate(
        [first, second] if several else first
    )
    assert len(best) == len(scored) == 1 + several
    for texts, kept in zip(scored, best, strict=True):
        assert len(texts) == 6
        assert [len(text) for text in kept] == sorted(map(len, texts), reverse=True)[:2]
        assert set(kept) <= set(texts)


def test_more_candidates_than_samples_are_refused(parts):
    with pytest.raises(RecipeError, match="between 1 and `sample_size`"):
        sampler(parts, [], sample_size=2, n_candidates=3)
