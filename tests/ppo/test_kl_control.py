"""KL controllers against the formula of Ziegler et al. 2019, section 2.2."""

import pytest

from trl_recipes.ppo.controllers import AdaptiveKLController, FixedKLController


def test_the_adaptive_coefficient_follows_the_formula():
    controller = AdaptiveKLController(0.2, target=6.0, horizon=10000)
    controller.update(current=6.6, n_steps=256)  # error 0.1
    assert controller.value == pytest.approx(0.2 * (1 + 0.1 * 256 / 10000))


@pytest.mark.parametrize(("current", "error"), [(100.0, 0.2), (-5.0, -0.2)])
def test_one_step_is_bounded(current, error):
    controller = AdaptiveKLController(0.2, target=6.0, horizon=10000)
    controller.update(current, n_steps=100)
    assert controller.value == pytest.approx(0.2 * (1 + error * 0.01))


def test_two_half_batches_count_as_many_episodes_as_one():
    whole, halves = (AdaptiveKLController(0.2, 6.0, 10000) for _ in range(2))
    whole.update(6.06, 128)
    halves.update(6.06, 64)
    halves.update(6.06, 64)
    assert halves.value == pytest.approx(whole.value, rel=1e-6)


def test_the_fixed_coefficient_stays():
    controller = FixedKLController(0.1)
    controller.update(50.0, 1000)
    assert controller.value == 0.1
