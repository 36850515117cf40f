"""Prompts and responses as tensors, and the parts of them that go through a model at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reward.batches import by_length, pad_right


@dataclass(frozen=True)
class Part:
    """Some rows as one forward pass takes them. Their N response tokens are packed, row after row,
    so that neither a head nor a loss ever meets a prompt or padding."""

    input_ids: Tensor  # (R, L)
    states: Tensor  # (N,) place in the flattened (R · L) of the state that predicts each token
    tokens: Tensor  # (N,) the response tokens
    places: Tensor  # (N,) place of each token in a flattened (B · T) of all rows


@dataclass(frozen=True)
class Sequences:
    """Prompt and response of each row, one after the other from column 0, padded at the right.

    Attention is causal, so what stands behind the end of a row is never seen: no attention mask is
    needed, and padding may hold any id.
    """

    input_ids: Tensor  # (B, L)
    responses: Tensor  # (B, T)
    mask: Tensor  # (B, T), 1 = valid response token
    prompt_lengths: tuple[int, ...]
    response_lengths: tuple[int, ...]

    def part(self, rows: Sequence[int]) -> Part:
        """The given rows, without the columns that are padding in all of them.

        Which tokens those are is known on the host, so a GPU is not waited for.
        """
        device, width = self.input_ids.device, self.responses.shape[1]
        length = max(self.prompt_lengths[r] + self.response_lengths[r] for r in rows)
        states, places = [], []
        for at, row in enumerate(rows):
            steps = torch.arange(self.response_lengths[row])
            states.append(at * length + self.prompt_lengths[row] - 1 + steps)
            places.append(row * width + steps)
        where = torch.cat(places).to(device, non_blocking=True)
        index = torch.tensor(rows).to(device, non_blocking=True)
        return Part(
            input_ids=self.input_ids[index, :length],
            states=torch.cat(states).to(device, non_blocking=True),
            tokens=self.responses.reshape(-1)[where],
            places=where,
        )

    def parts(self, budget: int, rows: Iterable[int] | None = None) -> Iterator[Part]:
        """All of the rows (or those given) in parts of like lengths: rows × longest ≤ budget."""
        chosen = range(len(self.prompt_lengths)) if rows is None else rows
        lengths = {r: self.prompt_lengths[r] + self.response_lengths[r] for r in chosen}
        for group in by_length(lengths, budget):
            yield self.part(group)

    def valid(self, rows: Iterable[int]) -> int:
        """Response tokens in the given rows."""
        return sum(self.response_lengths[r] for r in rows)


def assemble(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
    pad: int = 0,
) -> Sequences:
    """Token lists → `Sequences`.

    Raises:
        ValueError: an empty prompt or response; there would be no state or no action.
    """
    if not all(prompts) or not all(responses):
        raise ValueError("every prompt and every response needs at least one token")
    whole = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
    ids, _ = pad_right(whole, pad)
    tokens, mask = pad_right(responses, pad)
    return Sequences(
        input_ids=ids.to(device),
        responses=tokens.to(device),
        mask=mask.to(device),
        prompt_lengths=tuple(map(len, prompts)),
        response_lengths=tuple(map(len, responses)),
    )


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token lists → `(B, P)` ids and their mask, 1 = valid, aligned at the right."""
    ids, mask = pad_right([row[::-1] for row in rows], pad)
    return ids.flip(1), mask.flip(1)
