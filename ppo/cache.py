"""What attention keeps of the tokens it has read."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class _GrowingLayer(DynamicLayer):
    """Keys and values written into room made once; the parent class copies them every token."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append the new states `(b, heads, t, d)`; returns all of them."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            batch, heads, _, width = key_states.shape
            # Under autocast rotary positions leave the keys in float32, which attention then rounds
            # at every token: once is enough.
            self._keys = value_states.new_empty(batch, heads, self.room, width)
            self._values = value_states.new_empty(batch, heads, self.room, value_states.shape[-1])
            self.is_initialized = True
        start, self.length = self.length, self.length + key_states.shape[-2]
        self._keys[:, :, start : self.length] = key_states
        self._values[:, :, start : self.length] = value_states
        self.keys = self._keys[:, :, : self.length]
        self.values = self._values[:, :, : self.length]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given rows (in order) alone: they move up within the room."""
        for name in ("_keys", "_values"):
            room = getattr(self, name)
            room[: len(indices), :, : self.length] = room[indices, :, : self.length]
            setattr(self, name, room[: len(indices)])


class _EmptyLayer(DynamicLayer):
    """Gives attention what it was given, and keeps nothing."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """The new states `(b, heads, t, d)`, which are all there are."""
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens held."""
        return 0


def empty_cache(trunk: Any) -> DynamicCache:
    """A cache that keeps nothing, for a whole pass. Without any cache, transformers asks the
    positions whether rows are packed, and a GPU is waited for in each pass."""
    cache = DynamicCache(config=trunk.config)
    cache.layers = [_EmptyLayer() for _ in cache.layers]
    return cache


def growing_cache(model: PreTrainedModel, room: int) -> DynamicCache:
    """A cache for up to `room` tokens; layers that are not plain attention stay transformers'."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_GrowingLayer(room) if type(x) is DynamicLayer else x for x in cache.layers]
    return cache
