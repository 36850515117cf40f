"""Token lists of unequal lengths as tensors, with little padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def by_length(lengths: Mapping[int, int], budget: int, padding: float = 1.0) -> list[list[int]]:
    """Rows in groups of like lengths, the longest first: each group is a single row, or rows ×
    longest ≤ `budget` and at most the share `padding` of that is padding."""
    groups: list[list[int]] = []
    longest = held = 0
    for row in sorted(lengths, key=lambda r: (-lengths[r], r)):
        held += lengths[row]
        size = (len(groups[-1]) + 1) * longest if groups else 0
        if not groups or size > budget or size - held > padding * size:
            groups.append([])
            longest = held = lengths[row]
        groups[-1].append(row)
    return groups


def pad_right(sequences: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token lists → `(B, T)` ids and their mask, 1 = valid."""
    length = max(len(s) for s in sequences)
    ids = torch.full((len(sequences), length), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids, mask
