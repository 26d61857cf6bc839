"""Sampling keeps of each token what a forward pass gives, and lets ended rows go."""

import pytest
import torch
from architectures import ARCHITECTURES, OTHERS, UNUSUAL, VOCAB
from peft import LoraConfig, get_peft_model
from tiny_grpo import tiny
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import import_utils

from trl_recipes.models import sampling
from trl_recipes.models.forward import pad_rows, response_logits, rows_of
from trl_recipes.models.generation import generate_responses
from trl_recipes.models.sampling import (
    can_sample,
    can_sample_static,
    sample_responses,
    sample_static,
)

QUERIES = [torch.arange(2, 2 + n) for n in (3, 1, 6, 2)]
MODELS = [name for name in ARCHITECTURES | UNUSUAL if name != "mamba"]


def sample(model, lengths=(5, 2, 4, 7), eos=None, seed=0, **kwargs):
    torch.manual_seed(seed)
    return sample_responses(
        model, QUERIES, pad_token_id=0, eos_token_id=eos, max_new_tokens=lengths, **kwargs
    )


def of_one_row(model, query, response, temperature=1.0):
    """Log-probabilities and hidden states of one sequence alone, by transformers' own forward."""
    if model.config.is_encoder_decoder:
        start = torch.tensor([[model.config.decoder_start_token_id]])
        ids = torch.cat([start, response[None, :-1]], 1)
        output = model(input_ids=query[None], decoder_input_ids=ids, output_hidden_states=True)
        logits, hidden = output.logits[0], output.decoder_hidden_states[-1][0]
    else:
        output = model(torch.cat([query, response])[None], output_hidden_states=True)
        places = slice(len(query) - 1, -1)
        logits, hidden = output.logits[0, places], output.hidden_states[-1][0, places]
    logprobs = (logits.float() / temperature).log_softmax(-1)
    return logits, logprobs.gather(1, response[:, None])[:, 0], hidden


@pytest.mark.parametrize("smallest", [sampling.SMALLEST, 1], ids=["plain", "packed"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_what_sampling_keeps_is_what_a_forward_pass_gives(name, smallest, monkeypatch):
    monkeypatch.setattr(sampling, "SMALLEST", smallest)
    model = tiny(name).eval()
    assert can_sample(model)
    samples = sample(model, temperature=0.7)
    assert samples.mask.sum(1).tolist() == [5, 2, 4, 7]
    for row, (query, response) in enumerate(
        zip(QUERIES, rows_of(samples.responses, samples.mask), strict=True)
    ):
        length = len(response)
        _, logprobs, hidden = of_one_row(model, query, response, temperature=0.7)
        torch.testing.assert_close(samples.logprobs[row, :length], logprobs, rtol=0, atol=2e-5)
        torch.testing.assert_close(samples.hidden[row, :length], hidden, rtol=0, atol=5e-5)
        assert not samples.logprobs[row, length:].any()


@pytest.mark.parametrize("name", ARCHITECTURES | UNUSUAL)
@torch.no_grad()
def test_one_pass_over_padded_rows_gives_what_each_row_gives_alone(name):
    model = tiny(name).eval()
    responses = [torch.randint(2, VOCAB, (n,)) for n in (5, 2, 4, 7)]
    batch = (*pad_rows(QUERIES, 0, "right"), *pad_rows(responses, 0, "right"))
    logits, hidden = response_logits(model, *batch)
    assert logits.shape == (18, VOCAB)  # of the response tokens, and of nothing else
    alone = [of_one_row(model, *pair) for pair in zip(QUERIES, responses, strict=True)]
    torch.testing.assert_close(logits, torch.cat([row[0] for row in alone]), rtol=0, atol=5e-5)
    torch.testing.assert_close(hidden, torch.cat([row[2] for row in alone]), rtol=0, atol=5e-5)


def test_rows_that_ended_leave_the_batch():
    model, rows = tiny().eval(), []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    sample(model, lengths=(1, 5, 3, 3))
    assert rows == [4, 3, 3, 1, 1]


@torch.no_grad()
def test_tokens_are_drawn_as_often_as_the_model_says():
    model = tiny().eval()
    expected = model(torch.tensor([[5, 6]])).logits[0, -1].div(1.3).softmax(-1)
    queries, settings = [torch.tensor([5, 6])] * 20_000, {"pad_token_id": 0, "eos_token_id": None}
    settings |= {"max_new_tokens": [1] * 20_000, "temperature": 1.3}
    drawn = sample_responses(model, queries, **settings).responses[:, 0]
    counts = torch.bincount(drawn, minlength=VOCAB)
    chi_square = ((counts - expected * 20_000) ** 2 / (expected * 20_000)).sum()
    assert chi_square < 110  # 63 degrees of freedom: exceeded by chance once in 4000


@pytest.mark.parametrize("vocabulary", [3, 256, 1000])
def test_a_token_is_where_the_cumulative_distribution_passes_the_number(vocabulary):
    torch.manual_seed(0)
    probabilities = torch.randn(200, vocabulary).mul(3).softmax(1)
    probabilities[:, [0, vocabulary // 2]] = 0  # never drawn, at the number 0 neither
    points = torch.rand(200, 1, dtype=torch.float64)
    points[:2, 0] = torch.tensor([0, 1 - 2**-53], dtype=torch.float64)
    totals = probabilities.double().cumsum(1)
    expected = (totals <= points * totals[:, -1:]).sum(1, keepdim=True)
    assert sampling.draw(probabilities, points).equal(expected)


def both_samplers(model, begin=lambda: None, **changes):
    """What a growing cache and a static one draw, from the same random numbers a column."""
    settings = {"pad_token_id": 0, "eos_token_id": None, "temperature": 0.7} | changes
    drawn = []
    for sampler in (sample_responses, sample_static):
        torch.manual_seed(3)
        begin()
        drawn.append(sampler(model, QUERIES, **settings))
    return drawn


@pytest.mark.parametrize("ends", [None, [7, 11]], ids=["limits", "end tokens"])
@pytest.mark.parametrize("name", MODELS)
def test_a_static_cache_draws_the_same_tokens(name, ends, monkeypatch):
    model = tiny(name).eval()
    assert can_sample_static(model, torch.device("cpu")) == (name != "gemma2")  # it has windows
    if name == "gemma2":
        return
    numbers, draw = torch.rand(20, dtype=torch.float64).tolist(), sampling.draw

    def begin():
        if ends:  # rows leave one of the two: each column has one number for all rows
            left = iter(numbers)
            same = lambda p, u: draw(p, torch.full_like(u, next(left)))  # noqa: E731
            monkeypatch.setattr(sampling, "draw", same)

    settings = {"max_new_tokens": [20, 3, 18, 20] if ends else [7] * 4, "eos_token_id": ends}
    growing, static = both_samplers(model, begin, **settings)
    assert growing.responses.equal(static.responses)
    assert growing.mask.equal(static.mask)
    torch.testing.assert_close(growing.logprobs, static.logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(growing.hidden, static.hidden, rtol=0, atol=5e-5)


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "equal"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "gemma2"])
def test_a_token_that_is_captured_asks_nothing_of_the_device(name, monkeypatch):
    step = sampling._StaticBatch.step

    def watched(batch):
        with NoWaiting(), monkeypatch.context() as capturing:
            capturing.setattr(import_utils, "is_cuda_stream_capturing", lambda: True)
            step(batch)

    monkeypatch.setattr(sampling._StaticBatch, "step", watched)
    both_samplers(tiny(name).eval(), max_new_tokens=[4] * 4)


def test_rows_that_all_ended_are_looked_for_every_few_tokens():
    model, calls = tiny().eval(), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    lengths = [50] * len(QUERIES)
    samples = both_samplers(model, max_new_tokens=lengths, eos_token_id=list(range(60)))[1]
    assert samples.responses.shape[1] < 5
    assert len(calls) <= 5 + sampling.ASK_EVERY


# a head of 65 tokens gets rows of zeros, unless an adapter adds its own 65 logits
@pytest.mark.parametrize(
    ("vocabulary", "adapted"), [(64, ["c_attn"]), (65, ["c_attn"]), (65, ["c_attn", "lm_head"])]
)
def test_a_static_cache_samples_in_the_precision_of_autocast_and_leaves_the_weights(
    vocabulary, adapted
):
    model = tiny()
    model.resize_token_embeddings(vocabulary)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=adapted))
    before = {name: (weight, weight.clone()) for name, weight in model.named_parameters()}
    exact = both_samplers(model, max_new_tokens=[9] * 4)[1]
    with torch.autocast("cpu", torch.bfloat16):
        reduced = both_samplers(model, max_new_tokens=[9] * 4)[1]
    assert reduced.hidden.dtype == torch.bfloat16
    assert reduced.responses.max() < vocabulary
    torch.testing.assert_close(exact.logprobs[:, 0], reduced.logprobs[:, 0], rtol=0, atol=0.03)
    for name, weight in model.named_parameters():
        assert weight is before[name][0]
        assert weight.equal(before[name][1])


@pytest.mark.parametrize("name", [*OTHERS, "mamba"])
def test_a_greedy_response_does_not_depend_on_the_rows_beside_it(name):
    model = tiny(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)  # so that a prompt makes a difference
    settings = {"pad_token_id": 0, "eos_token_id": None, "do_sample": False}

    def responses(queries, lengths):
        rows = generate_responses(model, queries, max_new_tokens=lengths, **settings)
        return [row.tolist() for row in rows]

    lengths = [5, 2, 4, 7]
    together = responses(QUERIES, lengths)
    assert [len(row) for row in together] == lengths
    alone = zip(QUERIES, lengths, strict=True)
    assert together == [responses([query], [length])[0] for query, length in alone]
    assert can_sample(model) == (name in ("switch", "t5gemma"))
