"""The learning rate over the iterations."""

from __future__ import annotations

import math

from ppo.config import PPO


def learning_rate_at(iteration: int, config: PPO) -> float:
    """Rises over `warmup_iterations`, then goes to its share `learning_rate_end`, which it would
    reach after the last iteration; so no iteration is spent on a rate of 0."""
    warmup = config.warmup_iterations
    if iteration < warmup:
        return config.learning_rate * (iteration + 1) / (warmup + 1)
    done = (iteration - warmup) / (config.iterations - warmup)
    falls = 1 - config.learning_rate_end
    if config.learning_rate_schedule == "constant":
        return config.learning_rate
    if config.learning_rate_schedule == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return config.learning_rate * (1 - done * falls)
