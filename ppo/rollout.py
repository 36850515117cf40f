"""A rollout: prompts answered by the policy, scored, and turned into advantages and returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from labeling.records import Completion, Prompt
from ppo.advantages import generalized_advantages, kl_shaped_rewards, masked_mean, whiten
from ppo.config import PPO
from ppo.generation import Generator, Response
from ppo.losses import token_entropy
from ppo.policy import ActorCritic, Sequences, assemble, response_logits, token_logprobs
from reward.compute import autocast

Score = Callable[[Sequence[Prompt], Sequence[Completion]], list[float]]


@dataclass(frozen=True)
class Rollout:
    """What the policy did, and what was thought of it. `(B, T)`: responses × tokens."""

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
    scores: Tensor  # (B,) with the penalty for unfinished responses

    @property
    def kl(self) -> Tensor:
        """KL to the reference in nats a response, `(B,)`: Σ_t log π − log π_ref, unbiased."""
        return ((self.logprobs - self.ref_logprobs) * self.sequences.mask).sum(dim=1)


@dataclass(frozen=True)
class Experience:
    """What the update learns from; `(B, T)` each, 0 at padding."""

    rewards: Tensor
    advantages: Tensor
    returns: Tensor


def collect(
    actor: ActorCritic,
    reference: PreTrainedModel,
    generator: Generator,
    score: Score,
    prompts: Sequence[Prompt],
    prompt_tokens: Sequence[Sequence[int]],
    config: PPO,
    seed: int,
    dtype: torch.dtype,
) -> Rollout:
    """Draw one response for each prompt, score it, and read policy, reference and value on it.

    The log-probabilities are computed by the same forward pass as in the update, not taken from
    the sampler, so that the ratio on the first minibatch is 1.
    """
    responses = generator.draw(prompt_tokens, seed)
    completions = [r.completion for r in responses]
    raw = torch.tensor(score(prompts, completions))
    return read_rollout(
        actor, reference, prompt_tokens, responses, raw, generator.pad, config, dtype
    )


@torch.no_grad()
def read_rollout(
    actor: ActorCritic,
    reference: PreTrainedModel,
    prompt_tokens: Sequence[Sequence[int]],
    responses: Sequence[Response],
    raw_scores: Tensor,
    pad: int,
    config: PPO,
    dtype: torch.dtype,
) -> Rollout:
    """Policy, reference and value on responses that were drawn and scored."""
    device = actor.value_head.weight.device
    sequences = assemble(prompt_tokens, [r.tokens for r in responses], pad).to(device)
    shape = sequences.mask.shape
    logprobs, ref_logprobs, values, entropies = (
        torch.zeros(shape, device=device) for _ in range(4)
    )
    for index in torch.arange(shape[0], device=device).split(micro_batch_size(config)):
        part = sequences.rows(index)
        width = part.mask.shape[1]
        with autocast(device, dtype):
            logits, value = actor(part, config.temperature)
            ref_logits, _ = response_logits(reference, part, config.temperature)
        logprobs[index, :width] = token_logprobs(logits, part.responses) * part.mask
        ref_logprobs[index, :width] = token_logprobs(ref_logits, part.responses) * part.mask
        values[index, :width] = value * part.mask
        entropies[index, :width] = token_entropy(logits) * part.mask
    raw_scores = raw_scores.to(device)
    unfinished = torch.tensor([not r.completion.finished for r in responses], device=device)
    return Rollout(
        sequences=sequences,
        completions=[r.completion for r in responses],
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        entropy=masked_mean(entropies, sequences.mask).item(),
        raw_scores=raw_scores,
        scores=raw_scores - (config.unfinished_penalty or 0.0) * unfinished,
    )


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


def micro_batch_size(config: PPO) -> int:
    """Responses in memory at once."""
    minibatch = -(-config.rollout_batch_size // config.minibatches)
    return config.micro_batch_size or minibatch
