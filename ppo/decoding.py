"""Drawing responses token by token, with what the policy thought of each token kept.

Rows that have ended are dropped from the batch, and every row's random numbers are its own, so
that neither dropping rows nor the company they keep changes what is drawn.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    DynamicCache,
    PreTrainedModel,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from labeling.errors import InputError
from ppo.cache import growing_cache
from ppo.config import DRAWING_TOKENS, Generation
from ppo.head import Head, statistics
from ppo.policy import last_states
from ppo.sequences import assemble, pad_left
from reward.batches import by_length
from reward.compute import autocast

# Rows are dropped once so large a share of the batch has ended: dropping copies the cache.
_DROP_SHARE = 1 / 8
# Tokens between two looks at which rows have ended: a GPU is waited for at each look. (And at each
# token by transformers, while it asks whether the mask masks anything.)
_LOOK_EVERY = {"cpu": 1, "cuda": 16}
# At most so large a share of what is drawn at once is padding of prompts. A second batch costs all
# its steps, so a little padding is cheaper.
_PADDING = 0.5


@dataclass(frozen=True)
class Drawn:
    """Responses, and what was captured while they were drawn: `(B, T)`, 0 behind the end."""

    tokens: list[list[int]]  # stop token included
    logprobs: Tensor  # of the drawn tokens, at the sampling temperature
    entropies: Tensor  # of the distributions they were drawn from
    values: Tensor | None  # where a value function was given


def _in_order(groups: Sequence[Sequence[int]], drawn: Sequence[Drawn]) -> Drawn:
    """What was drawn in groups of rows, as if in one."""
    rows = sorted((row, g, i) for g, group in enumerate(groups) for i, row in enumerate(group))
    width = max(each.logprobs.shape[1] for each in drawn)

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        wide = [F.pad(each, (0, width - each.shape[1])) for each in tensors]
        return torch.stack([wide[g][i] for _, g, i in rows])

    values = [each.values for each in drawn if each.values is not None]
    return Drawn(
        [drawn[g].tokens[i] for _, g, i in rows],
        joined([each.logprobs for each in drawn]),
        joined([each.entropies for each in drawn]),
        joined(values) if values else None,
    )


class Decoder:
    """Draws from a causal language model."""

    def __init__(
        self,
        model: PreTrainedModel,
        stop: frozenset[int],
        generation: Generation,
        dtype: torch.dtype = torch.float32,
        value_of: Callable[[Tensor], Tensor] | None = None,
        check: bool = True,
    ) -> None:
        """
        Args:
            stop: tokens that end a response and belong to it.
            value_of: last hidden states `(b, d)` → values `(b,)`.
            check: draw a few tokens, and see that the model stands rows that are padded, cached
                and dropped.

        Raises:
            InputError: it does not, or its head is not understood.
        """
        self.model = model
        self.head = Head.of(model, dtype)
        self.stop = torch.tensor(sorted(stop), dtype=torch.long)
        self.generation = generation
        self.dtype = dtype
        self.value_of = value_of
        self.warpers = [
            *([TopKLogitsWarper(generation.top_k)] if generation.top_k else []),
            *([TopPLogitsWarper(generation.top_p)] if generation.top_p else []),
        ]
        parameters = inspect.signature(model.base_model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        if check:
            self._check()

    @torch.no_grad()
    def draw(
        self, prompts: Sequence[Sequence[int]], seed: int, limits: Sequence[int] | None = None
    ) -> Drawn:
        """One response for each prompt.

        Args:
            prompts: token ids, none empty.
            seed: decides every draw.
            limits: tokens after which each response is cut, in place of `max_new_tokens`.
        """
        count, budget = len(prompts), DRAWING_TOKENS[self.model.device.type]
        limits = [self.generation.max_new_tokens] * count if limits is None else limits
        longest = max(limits)
        uniforms = torch.rand(count, longest, generator=torch.Generator().manual_seed(seed))
        lengths = {row: len(prompt) + longest for row, prompt in enumerate(prompts)}
        groups = [sorted(group) for group in by_length(lengths, budget, _PADDING)]
        # Around all loops: autocast keeps the weights it has rounded until it ends.
        with autocast(self.model.device, self.dtype):
            drawn = [
                self._draw([prompts[i] for i in rows], uniforms[rows], [limits[i] for i in rows])
                for rows in groups
            ]
        return drawn[0] if len(groups) == 1 else _in_order(groups, drawn)

    def _draw(
        self, prompts: Sequence[Sequence[int]], uniforms: Tensor, limits: Sequence[int]
    ) -> Drawn:
        """As one batch."""
        device, count = self.model.device, len(prompts)
        longest, uniforms = max(limits), uniforms.to(device)
        ids, valid = (t.to(device) for t in pad_left(prompts, pad=0))
        mask = torch.cat([valid, valid.new_ones(count, longest)], dim=1)
        stop, last = self.stop.to(device), torch.tensor(limits, device=device) - 1
        tokens = torch.zeros(count, longest, dtype=torch.long, device=device)
        logprobs, entropies, values = torch.zeros(3, count, longest, device=device)
        lengths = torch.tensor(limits, device=device)
        cache = growing_cache(self.model, ids.shape[1] + longest)
        rows = torch.arange(count, device=device)  # which responses the batch's rows are
        ended = torch.zeros(count, dtype=torch.bool, device=device)
        positions = (valid.cumsum(dim=1) - 1).clamp(min=0)
        padded = not bool(valid.all())
        weight = self.head.linear.weight.to(self.head.dtype)
        for t in range(longest):
            seen = mask[rows, : mask.shape[1] - longest + t] if padded else None
            hidden = self._forward(ids, seen, positions, cache)
            with torch.autocast(device.type, enabled=False):
                chosen, logprob, entropy = self._choose(hidden, weight, uniforms[rows, t])
            tokens[rows, t], logprobs[rows, t], entropies[rows, t] = chosen, logprob, entropy
            if self.value_of is not None:
                values[rows, t] = self.value_of(hidden)
            ends = ~ended & (torch.isin(chosen, stop) | (last[rows] <= t))
            lengths[rows] = torch.where(ends, t + 1, lengths[rows])
            ended |= ends
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            if (t + 1) % _LOOK_EVERY.get(device.type, 16):
                continue
            left = (~ended).nonzero().squeeze(1)
            if not len(left):
                break
            if len(left) <= (1 - _DROP_SHARE) * len(rows):
                cache.batch_select_indices(left)
                rows, ids, positions = rows[left], ids[left], positions[left]
                ended = ended[left]
        width = int(lengths.max())
        live = torch.arange(width, device=device) < lengths[:, None]
        cut = [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
        return Drawn(
            cut,
            logprobs[:, :width] * live,
            entropies[:, :width] * live,
            None if self.value_of is None else values[:, :width] * live,
        )

    @torch.no_grad()
    def _check(self) -> None:
        """What is captured while drawing against a whole pass: two prompts, one of them padded, and
        a row that is dropped before the other ends."""
        plain = Generation(max_new_tokens=18)
        decoder = Decoder(self.model, frozenset(), plain, check=False)
        prompts, name = [[0], [1, 0, 1]], type(self.model).__name__
        try:
            drawn = decoder.draw(prompts, 0, [1, 18])
            part = assemble(prompts, drawn.tokens, self.model.device).part([0, 1])
            whole, _ = decoder.head.read(last_states(self.model.base_model, part), part.tokens, 1.0)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"responses cannot be drawn from {name}, whose cache or trunk is of another kind "
                f"({type(error).__name__}): use a model of plain attention layers"
            ) from error
        off = (drawn.logprobs.flatten()[part.places] - whole).abs().max().item()
        if not off < 1e-2:
            raise InputError(
                f"{name} gives a token another probability when it is drawn than in a pass over "
                f"the whole response (they differ by {off:.2g}): use a model of plain attention "
                "layers"
            )

    def _forward(
        self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: DynamicCache
    ) -> Tensor:
        """Last hidden state of each row, `(b, d)`."""
        where = {"position_ids": positions} if self._takes_positions else {}
        output = self.model.base_model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **where
        )
        return output.last_hidden_state[:, -1]

    def _choose(
        self, hidden: Tensor, weight: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Token, its log-probability, and the entropy, `(b,)` each."""
        temperature = self.generation.temperature
        logits = self.head.logits(hidden, temperature or 1.0, weight)
        for warper in self.warpers:
            logits = warper(None, logits)
        if temperature == 0:
            chosen = logits.argmax(dim=-1)
            logprobs, entropies, _, _ = statistics(logits, chosen)
            return chosen, logprobs, entropies
        log_p = logits.log_softmax(dim=-1)
        p = torch.exp(log_p, out=logits)
        # The inverse of the cumulative distribution: one random number a row, not one a token.
        cumulative = p.cumsum(dim=-1)
        target = uniforms[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, target, right=True).clamp(max=p.shape[1] - 1)
        entropies = -torch.linalg.vecdot(p, log_p.clamp(min=torch.finfo(log_p.dtype).min))
        return chosen.squeeze(1), log_p.gather(-1, chosen).squeeze(1), entropies
