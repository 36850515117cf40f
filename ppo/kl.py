"""The KL to the reference: its estimators, and the coefficient of its penalty, which is fixed or
steered to a target."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def kl_estimate(
    logprobs: Tensor, ref_logprobs: Tensor, kind: Literal["k1", "k2", "k3"] = "k1"
) -> Tensor:
    """Per-token estimate of KL(π ‖ π_ref) from samples of π (Schulman 2020,
    http://joschu.net/blog/kl-approx.html). With d = log π − log π_ref:

        k1 = d (unbiased),   k2 = d²/2 (low variance),   k3 = exp(−d) − 1 + d (both, ≥ 0)

    Args:
        logprobs, ref_logprobs: any equal shape.

    Raises:
        ValueError: an unknown kind.
    """
    d = logprobs - ref_logprobs
    if kind == "k1":
        return d
    if kind == "k2":
        return d**2 / 2
    if kind == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"kind is k1, k2 or k3, not {kind!r}")


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
