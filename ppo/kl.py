"""The coefficient of the KL penalty: fixed, or steered to a target."""

from __future__ import annotations


class FixedKL:
    """A coefficient that stays what it is."""

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient

    def update(self, kl: float, steps: int) -> None:
        """Nothing to steer."""


class AdaptiveKL:
    """Steers the coefficient β so that the KL comes to its target (Ziegler et al. 2019, §2.2):

    e = clip(KL / target − 1, −0.2, 0.2),   β ← β (1 + e · steps / horizon)
    """

    def __init__(self, initial: float, target: float, horizon: int) -> None:
        self.coefficient = initial
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, steps: int) -> None:
        """Steer once.

        Args:
            kl: measured KL, nats a response.
            steps: responses since the last update.
        """
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coefficient *= 1 + error * steps / self.horizon
