"""What scripts import from `trl.core` and `trl.extras`, against torch and figures by hand."""

import pytest
import torch
from transformers import GenerationConfig, GPT2LMHeadModel

from trl_recipes import AutoModelForCausalLMWithValueHead as ValueHeadModel
from trl_recipes import BestOfNSampler, RecipeError, core, load_tokenizer

VALUES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]])
MASK = torch.tensor([[0, 1, 1], [1, 0, 1]])
KEPT = torch.tensor([2.0, 3.0, 4.0, 9.0])


def test_masked_moments_are_those_of_the_unmasked_elements():
    assert core.masked_mean(VALUES, MASK) == KEPT.mean()
    assert core.masked_mean(VALUES, MASK, axis=1).tolist() == [2.5, 6.5]
    torch.testing.assert_close(core.masked_var(VALUES, MASK), KEPT.var())
    torch.testing.assert_close(
        core.masked_var(VALUES, MASK, unbiased=False), KEPT.var(unbiased=False)
    )
    with pytest.raises(ValueError, match="mask leaves no element"):
        core.masked_var(VALUES, torch.zeros_like(VALUES))


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitened_elements_are_those_of_the_formula(shift_mean):
    expected = (KEPT - 4.5) / (29 / 3) ** 0.5 + (0 if shift_mean else 4.5)
    torch.testing.assert_close(core.whiten(KEPT, shift_mean), expected)
    masked = core.masked_whiten(VALUES, MASK, shift_mean)
    torch.testing.assert_close(masked[MASK.bool()], expected)


def test_logprobs_and_entropy_are_those_of_torchs_distribution():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2], [3, 4, 0]])
    distribution = torch.distributions.Categorical(logits=logits)
    expected = distribution.log_prob(labels)
    torch.testing.assert_close(core.logprobs_from_logits(logits, labels), expected)
    every = core.logprobs_from_logits(logits, labels, gather=False)
    torch.testing.assert_close(every.exp().sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(core.entropy_from_logits(logits), distribution.entropy())


def test_clipping_takes_numbers_and_tensors():
    low, high = torch.tensor([0.0, 3.0, 4.0, 4.0]), torch.tensor([1.0, 5.0, 5.0, 5.0])
    assert core.clip_by_value(KEPT, low, high).tolist() == [1, 3, 4, 5]
    assert core.clip_by_value(KEPT, 2.5, 4).tolist() == [2.5, 3, 4, 4]


def test_dictionaries_are_flattened_and_stacked():
    nested = {"ppo": {"loss": {"total": 1}, "lr": 2}, "step": 3}
    assert core.flatten_dict(nested) == {"ppo/loss/total": 1, "ppo/lr": 2, "step": 3}
    with pytest.raises(ValueError, match="'a/b' holds the separator"):
        core.flatten_dict({"a/b": 1})
    stacked = core.stack_dicts([{"kl": torch.tensor([[1.0, 2.0]])}, {"kl": torch.tensor(3.0)}])
    assert stacked["kl"].tolist() == [[1, 2], [3, -1]]


def test_responses_to_a_batch_are_of_the_length_asked_for(tiny_gpt2):
    model = GPT2LMHeadModel.from_pretrained(tiny_gpt2).eval()
    queries = torch.tensor([[5, 6, 7], [8, 9, 10]])
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    greedy = model.generate(queries, attention_mask=torch.ones_like(queries), **settings)
    assert torch.equal(core.respond_to_batch(model, queries, 4, top_k=1), greedy[:, 3:])
    assert core.respond_to_batch(model, queries, txt_len=6, top_p=0.9).shape == (2, 6)


def test_a_seed_gives_the_same_lengths_again():
    lengths = core.LengthSampler(2, 9)
    core.set_seed(3)
    first = [lengths() for _ in range(5)]
    core.set_seed(3)
    assert [lengths() for _ in range(5)] == first


SAMPLED = GenerationConfig(do_sample=True, top_k=0, top_p=1.0, pad_token_id=0)


@pytest.mark.parametrize("kind", [list, torch.tensor])
@pytest.mark.parametrize("several", [False, True])
def test_the_best_of_n_responses_come_back_best_first(kind, several, tiny_gpt2):
    tokenizer, scored = load_tokenizer(str(tiny_gpt2)), []

    def score(texts):
        scored.append(texts)
        return [float(len(text)) for text in texts]

    given = (ValueHeadModel.from_pretrained(str(tiny_gpt2)), tokenizer, score, lambda: 5)
    settings = {"generation_config": SAMPLED, "seed": 0}
    sampler = BestOfNSampler(*given, sample_size=6, n_candidates=2, **settings)
    queries = [kind(ids) for ids in tokenizer(["The acting", "I liked"]).input_ids]
    best = sampler.generate(queries if several else queries[0])
    assert len(best) == len(scored) == 1 + several
    for texts, kept in zip(scored, best, strict=True):
        assert len(texts) == 6
        assert [len(text) for text in kept] == sorted(map(len, texts), reverse=True)[:2]
        assert set(kept) <= set(texts)
    with pytest.raises(RecipeError, match="between 1 and `sample_size`"):
        BestOfNSampler(*given, sample_size=2, n_candidates=3)
