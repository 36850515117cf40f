"""The SFT term in PPO's loss ("PPO-ptx", Ouyang et al. 2022, arXiv:2203.02155, eq. 2): what the
preferences do not speak of stays as the demonstrations have it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppo.config import PPO
from ppo.demonstrations import Encoded
from ppo.order import batch_at
from ppo.rollout import Engine, micro_batch_tokens
from ppo.sequences import assemble
from reward.compute import autocast


class Imitation:
    """Demonstrations, a batch of them for every optimizer step."""

    def __init__(self, examples: Sequence[Encoded], config: PPO) -> None:
        self.examples = examples
        self.config = config

    def backward(self, engine: Engine, step: int) -> Tensor:
        """Add the gradient of `sft_coef` times the mean cross-entropy of a completion token over
        the batch of this step (prompt tokens are given, not imitated). Returns the cross-entropy
        in nats a token."""
        config, device = self.config, engine.actor.device
        size = config.sft_batch_size
        chosen = batch_at(step, size, len(self.examples), config.seed, "demonstrations")
        batch = [self.examples[i] for i in chosen]
        sequences = assemble([e.prompt for e in batch], [e.completion for e in batch], device)
        valid = sequences.valid(range(size))
        total = torch.zeros((), device=device)

        def cross_entropy(logprobs: Tensor, entropies: Tensor, chunk: slice) -> Tensor:
            loss = -logprobs.sum() / valid
            total.add_(loss.detach())
            return config.sft_coef * loss

        for part in sequences.parts(micro_batch_tokens(config, device)):
            with autocast(device, engine.dtype):
                states = engine.actor.states(part)
            # At temperature 1: demonstrations are language as it is, not as it is sampled.
            states.backward(engine.head.backward(states.detach(), part.tokens, 1.0, cross_entropy))
        return total
