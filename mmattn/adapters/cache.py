"""A key/value cache that grows in place: no step copies what is there, and all layers share one tensor."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer

# Room for new tokens is made in portions that grow with the cache, so that copying stays rare.
PORTION = 64


def cache_argument(decoder: nn.Module) -> str:
    """What a decoder calls the cache that it is given: transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(type(decoder).forward).parameters else "past_key_values"


class SharedCache(Cache):  # type: ignore[misc]
    """For decoders whose layers are alike and sit on one device.

    Keys of all layers form one tensor, so that a reader of every layer's last row needs one product instead of many.
    """

    def __init__(self, depth: int, buffers: tuple[torch.Tensor, torch.Tensor] | None = None) -> None:
        """`buffers`: keys and values (L, B, G, capacity, D) to be filled, in place of own ones that grow."""
        self._store = _Store(depth, buffers)
        super().__init__(layers=[_Layer(self._store, index) for index in range(depth)])

    @property
    def keys(self) -> torch.Tensor:
        """(L, B, G, S, D) of all layers, a view."""
        return self._store.keys[:, :, :, : self.get_seq_length()]

    @property
    def values(self) -> torch.Tensor:
        """(L, B, G, S, D) of all layers, a view."""
        return self._store.values[:, :, :, : self.get_seq_length()]

    def adopt(self, other: SharedCache, rows: Sequence[tuple[int, int, int]], width: int) -> None:
        """Begin with `width` tokens: for each row, zeros and then what `other` holds.

        Args:
            rows: for each row, the row of `other`, its first token to take, and how many.
        """
        pairs = [(other.keys, "keys"), (other.values, "values")]
        like = other.keys[0, :1, :, :0].expand(len(rows), -1, -1, -1)
        self._store.reserve(like, 0, width)
        for theirs, name in pairs:
            mine = getattr(self._store, name)
            for row, (source, begin, count) in enumerate(rows):
                mine[:, row, :, : width - count] = 0
                mine[:, row, :, width - count : width] = theirs[:, source, :, begin : begin + count]
        for layer in self.layers:
            layer.begin(like, width)

    def extend(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Room for tokens of the shape of `like` (B, G, T, D), counted as given: keys and values (L, B, G, capacity, D)
        whose next T tokens the caller fills.
        """
        begin = self.get_seq_length()
        self._store.reserve(like, begin, begin + like.shape[2])
        for layer in self.layers:
            layer.begin(like, begin + like.shape[2])
        return self._store.keys, self._store.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Go on with these rows of the batch."""
        self._store.keys, self._store.values = (
            one.index_select(1, indices) for one in (self._store.keys, self._store.values)
        )
        for layer in self.layers:
            layer.look()


class _Store:
    """Two tensors (L, B, G, capacity, D)."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, depth: int, buffers: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        self.depth = depth
        self.capacity = 0
        if buffers is not None:
            self.keys, self.values = buffers
            self.capacity = self.keys.shape[3]

    def reserve(self, like: torch.Tensor, used: int, needed: int) -> None:
        """Make room for `needed` tokens of the shape of `like` (B, G, T, D), keeping the first `used` ones."""
        if needed <= self.capacity:
            return
        batch, groups, _, dim = like.shape
        capacity = needed + max(PORTION, used // 4)
        old = (self.keys, self.values) if used else ()
        self.keys, self.values = (like.new_empty(self.depth, batch, groups, capacity, dim) for _ in range(2))
        for new, before in zip((self.keys, self.values), old, strict=False):
            new[..., :used, :] = before[..., :used, :]
        self.capacity = capacity


class _Layer(DynamicLayer):  # type: ignore[misc]
    """One layer's part of the store."""

    def __init__(self, store: _Store, index: int) -> None:
        super().__init__()
        self._store, self._index = store, index
        self._used = 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, self._used = self._used, self._used + key_states.shape[-2]
        self._store.reserve(key_states, begin, self._used)
        for whole, new in ((self._store.keys, key_states), (self._store.values, value_states)):
            whole[self._index, :, :, begin : self._used] = new
        self.look()
        return self.keys, self.values

    def begin(self, like: torch.Tensor, used: int) -> None:
        """Count the first `used` tokens of the store as given; they are of the kind of `like`."""
        if not self.is_initialized:
            self.lazy_initialization(like, like)
        self._used = used
        self.look()

    def look(self) -> None:
        """Point to what the store holds."""
        self.keys = self._store.keys[self._index, :, :, : self._used]
        self.values = self._store.values[self._index, :, :, : self._used]
