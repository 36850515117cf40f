"""The three losses of PPO: pure functions over `(B, T)` response tokens,
`mask` 1 = valid. Schulman et al. 2017, arXiv:1707.06347."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppo.advantages import masked_mean
from ppo.kl import kl_estimate


@dataclass(frozen=True)
class PolicyLoss:
    """The clipped policy loss and what it says about the update; all scalars."""

    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor
    ratio: Tensor


@dataclass(frozen=True)
class ValueLoss:
    """The clipped value loss; both scalars."""

    loss: Tensor
    clip_fraction: Tensor


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> PolicyLoss:
    """Clipped surrogate (PPO, eq. 7), to be minimised:

        ρ_t = exp(log π − log π_old),   L = E_t[ max(−A_t ρ_t, −A_t clip(ρ_t, 1−ε, 1+ε)) ]

    Args:
        logprobs: `(B, T)` under the policy being trained; carries the gradient.
        old_logprobs: `(B, T)` under the policy that drew the responses.
        advantages: `(B, T)`.
        mask: `(B, T)`, 1 = valid.
        clip_range: ε.

    Returns:
        the loss with the share of tokens where the clip was the larger side, the approximate KL
        from old to new policy (½ E (log π − log π_old)²), and the mean ratio.
    """
    # Padding may hold anything: multiply it out before exp, so that no inf · 0 arises.
    log_ratio = (logprobs - old_logprobs) * mask
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    with torch.no_grad():
        clip_fraction = masked_mean((clipped > unclipped).to(ratio.dtype), mask)
        approx_kl = masked_mean(kl_estimate(log_ratio, torch.zeros_like(log_ratio), "k2"), mask)
        mean_ratio = masked_mean(ratio, mask)
    loss = masked_mean(torch.maximum(unclipped, clipped), mask)
    return PolicyLoss(loss, clip_fraction, approx_kl, mean_ratio)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float | None
) -> ValueLoss:
    """Clipped value loss (as in OpenAI's baselines and lm-human-preferences):

        V_clip = V_old + clip(V − V_old, ±ε),   L = ½ E_t[ max((V − R)², (V_clip − R)²) ]

    Args:
        values: `(B, T)`, carries the gradient.
        old_values: `(B, T)` from the rollout.
        returns: `(B, T)` targets.
        mask: `(B, T)`, 1 = valid.
        clip_range: ε; None leaves the loss unclipped.
    """
    squared = (values - returns) ** 2
    if clip_range is None:
        return ValueLoss(0.5 * masked_mean(squared, mask), torch.zeros_like(squared.sum()))
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    squared_clipped = (clipped - returns) ** 2
    with torch.no_grad():
        clip_fraction = masked_mean((squared_clipped > squared).to(values.dtype), mask)
    return ValueLoss(
        0.5 * masked_mean(torch.maximum(squared, squared_clipped), mask), clip_fraction
    )


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each position's distribution: logits `(…, V)` → `(…)`."""
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)


def entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean entropy over valid positions, a scalar in nats. The bonus of PPO's eq. 9, by definition;
    the update has it from `ppo.head.statistics`, chunk by chunk.

    Args:
        logits: `(B, T, V)`, already divided by the sampling temperature.
        mask: `(B, T)`, 1 = valid.
    """
    return masked_mean(token_entropy(logits), mask)
