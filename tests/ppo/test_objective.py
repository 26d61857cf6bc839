"""The mathematics of PPO against hand-worked figures, brute force and enumeration."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from trl_recipes.ppo import objective
from trl_recipes.ppo.statistics import AdaptiveKLController, FixedKLController

close = torch.testing.assert_close


def brute_force_advantages(rewards, values, gamma, lam):
    """GAE as its definition says: a double loop in python floats."""
    rows, decay = [], gamma * lam
    for r, v in zip(rewards.tolist(), values.tolist(), strict=True):
        v = [*v, 0.0]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        rows.append([sum(decay**i * d for i, d in enumerate(deltas[t:])) for t in range(len(r))])
    return torch.tensor(rows, dtype=rewards.dtype)


def test_advantages_of_three_tokens_by_hand():
    # deltas: 0 + .5*2 - 1 = 0;  0 + .5*3 - 2 = -.5;  4 - 3 = 1;  decay .5 * .5 = .25
    # A3 = 1;  A2 = -.5 + .25 * 1 = -.25;  A1 = 0 + .25 * -.25 = -.0625
    rewards, values = torch.tensor([[0.0, 0.0, 4.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    advantages, returns = objective.generalized_advantages(rewards, values, gamma=0.5, lam=0.5)
    close(advantages, torch.tensor([[-0.0625, -0.25, 1.0]]))
    close(returns, torch.tensor([[0.9375, 1.75, 4.0]]))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31))
def test_advantages_equal_the_double_loop(length, gamma, lam, seed):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 3, length, generator=generator, dtype=torch.float64)
    advantages, _ = objective.generalized_advantages(rewards, values, gamma, lam)
    close(advantages, brute_force_advantages(rewards, values, gamma, lam))


def masked_var(values, mask):
    return objective.masked_moments([values], [mask])[1][0]


def test_masked_statistics_are_those_of_the_unmasked_part():
    values, mask = torch.randn(4, 6), (torch.rand(4, 6) > 0.4).long()
    kept = values[mask.bool()]
    spoilt = torch.where(mask.bool(), values, 1e9)
    mean, var = objective.masked_moments([spoilt], [mask])
    close(objective.masked_mean(spoilt, mask), kept.mean())
    close((mean[0], var[0]), (kept.mean(), kept.var()))
    whitened = objective.masked_whiten(spoilt, mask)
    close(whitened[mask.bool()], (kept - kept.mean()) / kept.std(), rtol=1e-5, atol=1e-6)
    unshifted = objective.masked_whiten(spoilt, mask, shift_mean=False)
    close(unshifted[mask.bool()].mean(), kept.mean(), rtol=1e-5, atol=1e-6)


def test_one_value_whitens_to_zero_and_not_to_nan():
    values, mask = torch.tensor([[3.0, 9.0]]), torch.tensor([[1, 0]])
    close(objective.masked_whiten(values, mask), torch.zeros(1, 2))


def test_sums_over_two_processes_give_the_statistics_of_both():
    values, mask = torch.randn(4, 6), (torch.rand(4, 6) > 0.3).long()
    (mine, theirs), (kept, other) = values.split(2), mask.split(2)

    def both(total):  # what both halves hold together
        return total + torch.stack([(theirs * other).sum(), other.sum().float()])

    close(objective.masked_mean(mine, kept, all_sum=both), objective.masked_mean(values, mask))


def test_unbiased_estimators_average_to_the_exact_kl():
    torch.manual_seed(1)
    p, q = torch.randn(2, 5).log_softmax(-1)
    exact = sum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    for kind in ("kl", "k3"):
        average = float((p.exp() * objective.kl_penalty(p, q, kind)).sum())
        assert average == pytest.approx(exact, abs=1e-6)
    shifted = objective.full_kl(p[None, None] + 3.0, q[None, None] - 2.0)  # logits of any height
    assert float(shifted) == pytest.approx(exact, abs=1e-6)


def test_abs_and_mse_penalties_by_hand():
    p, q = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -1.5])
    close(objective.kl_penalty(p, q, "abs"), torch.tensor([2.0, 0.5]))
    close(objective.kl_penalty(p, q, "mse"), torch.tensor([2.0, 0.125]))
    assert (objective.kl_penalty(p, q, "k3") >= 0).all()


def test_the_score_lands_on_the_last_token_that_counts():
    kl = torch.full((3, 4), 0.5)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]])
    rewards, non_score = objective.token_rewards(torch.tensor([1.0, 2.0, 3.0]), kl, 0.2, mask)
    expected = torch.tensor([[-0.1, -0.1, -0.1, 0.9], [-0.1, 1.9, 0.0, 0.0], [0.0, -0.1, 2.9, 0.0]])
    close(rewards, expected)
    close(non_score, -0.1 * mask)


class Largest(TorchDispatchMode):
    """Notes the most float32 numbers that an operation gave."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if torch.is_tensor(result) and result.dtype == torch.float32:
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_and_entropy_equal_log_softmax_in_chunks(monkeypatch, dtype, temperature):
    monkeypatch.setattr(objective, "CHUNK_CPU", 15)  # two rows at a time
    logits, labels = torch.randn(5, 7, dtype=dtype).requires_grad_(), torch.randint(0, 7, (5,))
    weights = torch.randn(5)
    categorical = torch.distributions.Categorical(logits=logits.float() / temperature)
    expected = categorical.log_prob(labels)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), logits)
    with Largest() as largest:
        of_model = logits * 1
        close(objective.logprobs_from_logits(of_model, labels, temperature), expected)
        logprobs, entropy = objective.logprobs_and_entropy(of_model, labels, temperature)
        close(logprobs, expected)
        (own,) = torch.autograd.grad((logprobs * weights).sum(), logits)
    close(entropy, categorical.entropy())
    torch.testing.assert_close(own, gradient)
    assert not entropy.requires_grad
    assert largest.numbers == (14 if dtype == torch.bfloat16 else 35)


def test_clipped_losses_by_hand():
    # ratio e^0.5 = 1.6487, above 1.2: with A = 2 the clipped loss -2.4 is the larger;
    # ratio e^-0.5 = .6065, below .8: with A = 2 the unclipped -1.2131 is the larger
    losses = objective.ppo_losses(
        logprobs=torch.tensor([[0.5, -0.5]]),
        values=torch.tensor([[1.0, 1.0]]),
        old_logprobs=torch.zeros(1, 2),
        old_values=torch.tensor([[0.0, 0.9]]),
        advantages=torch.full((1, 2), 2.0),
        returns=torch.tensor([[3.0, 0.0]]),
        cliprange=0.2,
        cliprange_value=0.2,
    )
    close(losses.policy, torch.tensor([[-2.4, -2 * math.exp(-0.5)]]))
    # value 1.0 is held to 0.2: (0.2 - 3)^2 = 7.84 against (1 - 3)^2 = 4; the second is not held
    close(losses.value, torch.tensor([[3.92, 0.5]]))
    close(losses.policy_clipped, torch.tensor([[1.0, 0.0]]))
    close(losses.value_clipped, torch.tensor([[1.0, 0.0]]))


def test_without_a_change_nothing_is_clipped_and_the_gradient_is_minus_the_advantage():
    old = torch.randn(2, 3)
    logprobs = old.clone().requires_grad_()
    advantages = torch.randn(2, 3)
    losses = objective.ppo_losses(
        logprobs, old, old, old, advantages, old, cliprange=0.2, cliprange_value=0.2
    )
    losses.policy.sum().backward()
    close(losses.ratio, torch.ones(2, 3))
    close(logprobs.grad, -advantages)
    assert not losses.policy_clipped.any()


@pytest.mark.parametrize(
    ("current", "error"), [(6.6, 0.1), (100.0, 0.2), (-5.0, -0.2)], ids=["free", "high", "low"]
)
def test_the_adaptive_kl_coefficient_follows_the_formula(current, error):
    """Ziegler et al. 2019, section 2.2: the error is bounded by 0.2 either way."""
    controller, fixed = AdaptiveKLController(0.2, target=6.0, horizon=10000), FixedKLController(0.1)
    controller.update(current, n_steps=256)
    fixed.update(current, n_steps=256)
    assert fixed.value == 0.1
    assert controller.value == pytest.approx(0.2 * (1 + error * 256 / 10000))
