"""Rewards, advantages and returns: pure functions over `(B, T)` tensors of response tokens.

`mask` is 1 at valid response tokens and 0 at padding; responses are right-padded. Padding never
enters a sum, a mean or a recursion.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppo.kl import kl_estimate


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the valid entries, a scalar: Σ m·v / Σ m."""
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale the valid entries to variance 1, and to mean 0 unless they are to keep their mean.

        w = (v − μ) / √(σ² + 1e−8)   (+ μ when not shift_mean)

    σ² is the unbiased variance, as in TRL and verl (OpenAI's lm-human-preferences divides by N).

    Args:
        values: `(B, T)`.
        mask: `(B, T)`, 1 = valid; at least two valid entries.
        shift_mean: True for advantages (mean 0), False for rewards (the mean stays).

    Returns:
        `(B, T)`, 0 at padding.

    Raises:
        ValueError: fewer than two valid entries have no variance.
    """
    count = mask.sum()
    if count < 2:
        raise ValueError(f"whitening needs at least 2 valid tokens, got {int(count)}")
    mean = masked_mean(values, mask)
    centred = (values - mean) * mask
    variance = (centred**2).sum() / (count - 1)
    whitened = centred * torch.rsqrt(variance + 1e-8)
    return whitened if shift_mean else whitened + mean * mask


def kl_shaped_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float
) -> Tensor:
    """Per-token reward of RLHF (Ziegler et al. 2019, eq. 2, arXiv:1909.08593):

        r_t = −β (log π(a_t|s_t) − log π_ref(a_t|s_t)) + [t is the last valid token] · score

    Args:
        scores: `(B,)` score of each whole response.
        logprobs: `(B, T)` of the policy that drew the responses.
        ref_logprobs: `(B, T)` of the reference.
        mask: `(B, T)`, 1 = valid; every row has a valid token.
        kl_coef: β.

    Returns:
        `(B, T)`, 0 at padding.
    """
    rewards = -kl_coef * kl_estimate(logprobs, ref_logprobs, "k1") * mask
    last = mask.long().sum(dim=1) - 1
    rewards[torch.arange(len(scores), device=rewards.device), last] += scores
    return rewards


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16, arXiv:1506.02438):

        δ_t = r_t + γ V_{t+1} − V_t,   A_t = δ_t + γλ A_{t+1},   R_t = A_t + V_t

    with V and A zero after the last valid token of a row.

    Args:
        rewards: `(B, T)`.
        values: `(B, T)`, V of the state in which token t is chosen.
        mask: `(B, T)`, 1 = valid.
        gamma: discount γ in [0, 1].
        lam: λ in [0, 1].

    Returns:
        advantages and returns, `(B, T)` each, 0 at padding.
    """
    rewards, values = rewards * mask, values * mask
    advantage = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(advantage)
    advantages = torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # A padded step resets the recursion: nothing flows back from behind the end.
        advantage = (delta + gamma * lam * advantage) * mask[:, t]
        next_value = values[:, t]
        advantages[:, t] = advantage
    return advantages, advantages + values
