"""Which items a step takes and with which seed: from counters alone, so that nothing random has to
be remembered to go on at any step."""

from __future__ import annotations

import hashlib

import torch


def counter_seed(seed: int, *purpose: object) -> int:
    """A seed for one purpose, such as `counter_seed(seed, iteration, "rollout")`."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def batch_at(step: int, size: int, items: int, seed: int, purpose: str) -> list[int]:
    """Indices of a step's items: passes over all `items`, each in its own permutation."""
    positions = range(step * size, (step + 1) * size)
    orders = {
        number: torch.randperm(
            items,
            generator=torch.Generator().manual_seed(counter_seed(seed, purpose, number)),
        ).tolist()
        for number in {position // items for position in positions}
    }
    return [orders[position // items][position % items] for position in positions]
