"""The SFT term in PPO's loss ("PPO-ptx", Ouyang et al. 2022, arXiv:2203.02155, eq. 2): what the
preferences do not speak of stays as the demonstrations have it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ppo.config import PPO
from ppo.demonstrations import Encoded
from ppo.order import batch_at
from ppo.policy import assemble, response_logits, token_logprobs
from reward.compute import autocast


class Imitation:
    """Demonstrations, a batch of them for every optimizer step."""

    def __init__(self, examples: Sequence[Encoded], pad: int, config: PPO) -> None:
        self.examples = examples
        self.pad = pad
        self.config = config

    def backward(self, policy: PreTrainedModel, step: int, dtype: torch.dtype) -> float:
        """Add the gradient of `sft_coef` times the mean cross-entropy of a completion token over
        the batch of this step (prompt tokens are given, not imitated). Returns the cross-entropy
        in nats a token."""
        config, device = self.config, policy.device
        size = config.sft_batch_size
        chosen = batch_at(step, size, len(self.examples), config.seed, "demonstrations")
        batch = [self.examples[i] for i in chosen]
        valid = sum(len(e.completion) for e in batch)
        total = 0.0
        at_once = config.micro_batch_size or size
        for start in range(0, size, at_once):
            part = assemble(
                [e.prompt for e in batch[start : start + at_once]],
                [e.completion for e in batch[start : start + at_once]],
                self.pad,
            ).to(device)
            with autocast(device, dtype):
                logits, _ = response_logits(policy, part, temperature=1.0)
            loss = -(token_logprobs(logits, part.responses) * part.mask).sum() / valid
            (config.sft_coef * loss).backward()
            total += loss.item()
        return total
