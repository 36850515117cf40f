"""A rollout: prompts answered by the policy, scored, and turned into advantages and returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from labeling.records import Completion
from ppo.advantages import generalized_advantages, kl_shaped_rewards, masked_mean, whiten
from ppo.config import MICRO_BATCH_TOKENS, PPO
from ppo.decoding import Drawn
from ppo.head import Head
from ppo.kl import kl_estimate
from ppo.policy import ActorCritic, last_states
from ppo.rewards import Scores
from ppo.sequences import Part, Sequences, assemble
from reward.compute import autocast


@dataclass(frozen=True)
class Engine:
    """What computes: the actor, the reference, and the precision of both."""

    actor: ActorCritic
    head: Head
    reference: PreTrainedModel
    reference_head: Head
    dtype: torch.dtype

    @classmethod
    def of(cls, actor: ActorCritic, reference: PreTrainedModel, dtype: torch.dtype) -> Engine:
        """Raises InputError for a model whose head is not understood."""
        heads = Head.of(actor.policy, dtype), Head.of(reference, dtype)
        return cls(actor, heads[0], reference, heads[1], dtype)


@dataclass(frozen=True)
class Rollout:
    """What the policy did, and what was thought of it. `(B, T)`: responses × tokens, 0 at
    padding."""

    # what was drawn
    sequences: Sequences
    completions: list[Completion]

    # under the policy that drew it, and under the reference
    logprobs: Tensor  # (B, T)
    ref_logprobs: Tensor  # (B, T)
    values: Tensor  # (B, T)
    entropy: float  # nats, mean over valid tokens

    # from the reward model or a user's function
    raw_scores: Tensor  # (B,) as given
    scores: Tensor  # (B,) normalised, clipped, with the penalty for unfinished responses

    @property
    def kl(self) -> Tensor:
        """KL to the reference in nats a response, `(B,)`: Σ_t log π − log π_ref, unbiased."""
        per_token = kl_estimate(self.logprobs, self.ref_logprobs, "k1")
        return (per_token * self.sequences.mask).sum(dim=1)


@dataclass(frozen=True)
class Experience:
    """What the update learns from; `(B, T)` each, 0 at padding."""

    rewards: Tensor
    advantages: Tensor
    returns: Tensor


@torch.no_grad()
def read_rollout(
    engine: Engine,
    config: PPO,
    prompts: Sequence[Sequence[int]],
    drawn: Drawn,
    completions: Sequence[Completion],
    scores: Scores,
) -> Rollout:
    """Policy, reference and value on responses that were drawn and scored.

    In float32 the policy's log-probabilities, and the values of a shared trunk, are those captured
    while drawing: no pass is made for them. In bfloat16 a decoding step and a pass over the whole
    sequence round differently, so they are computed anew by a pass like the update's. Its rows are
    in other company there, and matrix products of other shapes round differently too: the ratio on
    the first minibatch is 1 to some hundredths of a token's, and exactly 1 in the mean no more.
    """
    actor, device = engine.actor, engine.actor.device
    sequences = assemble(prompts, drawn.tokens, device)
    captured = engine.dtype != torch.bfloat16
    logprobs, entropies = drawn.logprobs, drawn.entropies
    values = drawn.values if captured else None
    if not captured:
        logprobs, entropies = torch.zeros_like(logprobs), torch.zeros_like(entropies)
    ref_logprobs, read_values = torch.zeros_like(logprobs), torch.zeros_like(logprobs)
    for part in sequences.parts(micro_batch_tokens(config, device)):
        tokens, temperature = part.tokens, config.temperature
        with autocast(device, engine.dtype):
            theirs = last_states(engine.reference.base_model, part)
            # Of the policy's trunk nothing is needed where all was captured, or V has its own.
            needed = not captured or (values is None and actor.critic is None)
            ours = actor.states(part) if needed else None
            if values is None:
                _put(read_values, part, actor.values(part, ours))
        _put(ref_logprobs, part, engine.reference_head.read(theirs, tokens, temperature)[0])
        if not captured:
            assert ours is not None
            for target, read in zip(
                (logprobs, entropies), engine.head.read(ours, tokens, temperature), strict=True
            ):
                _put(target, part, read)
    return Rollout(
        sequences=sequences,
        completions=list(completions),
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=read_values if values is None else values,
        entropy=masked_mean(entropies, sequences.mask).item(),
        raw_scores=scores.raw.to(device),
        scores=scores.shaped.to(device),
    )


def _put(target: Tensor, part: Part, values: Tensor) -> None:
    """Write packed `(N,)` values where their tokens stand in `(B, T)`."""
    target.view(-1)[part.places] = values.to(target.dtype)


def experience_of(rollout: Rollout, config: PPO, kl_coef: float) -> Experience:
    """Scores and KL → rewards → advantages and returns, in the order of lm-human-preferences:
    rewards whitened before, advantages after GAE, returns from what stands between."""
    mask = rollout.sequences.mask
    rewards = kl_shaped_rewards(
        rollout.scores, rollout.logprobs, rollout.ref_logprobs, mask, kl_coef
    )
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = generalized_advantages(
        rewards, rollout.values, mask, config.gamma, config.lam
    )
    if config.whiten_advantages:
        advantages = whiten(advantages, mask)
    return Experience(rewards, advantages, returns)


def micro_batch_tokens(config: PPO, device: torch.device) -> int:
    """Tokens of prompts and responses, padding included, that go through a model at once."""
    return config.micro_batch_tokens or MICRO_BATCH_TOKENS[device.type]
