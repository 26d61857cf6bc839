"""Controllers of the KL coefficient."""


class FixedKLController:
    """Keeps the KL coefficient as it is.

    >>> controller = FixedKLController(0.2)
    >>> controller.update(current=12.0, n_steps=1000)
    >>> controller.value
    0.2
    """

    def __init__(self, kl_coef: float):
        self.value = kl_coef

    def update(self, current: float, n_steps: int) -> None:
        """Do nothing; the adaptive controller's counterpart."""


class AdaptiveKLController:
    """Moves the KL coefficient so that the KL per sequence nears `target`, in nats.

    `horizon` is the number of episodes over which it adapts. Source: Ziegler et al. 2019
    (arXiv:1909.08593), section 2.2; TRL 0.11.4 `AdaptiveKLController`.

    >>> controller = AdaptiveKLController(0.2, target=6.0, horizon=10000)
    >>> controller.update(current=12.0, n_steps=1000)  # 20 % per horizon, at most
    >>> round(controller.value, 6)
    0.204
    """

    def __init__(self, init_kl_coef: float, target: float, horizon: float):
        self.value = init_kl_coef
        self.target = target
        self.horizon = horizon

    def update(self, current: float, n_steps: int) -> None:
        """Take one proportional step, by the mean KL of `n_steps` episodes of all processes."""
        error = min(max(current / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * n_steps / self.horizon
