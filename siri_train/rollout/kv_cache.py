"""The rows being decoded: a key-value cache that grows in place, rows that leave and join."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 32
"""Tokens of free room behind the keys and values; copying them once in so many costs nothing."""


class RoomyLayer(DynamicLayer):
    """Keys and values [B, heads, L, head size] with free room behind them.

    transformers' own layer copies all of them for every token.
    """

    _buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        assert self.keys is not None and self.values is not None
        length = self.keys.shape[2]
        end = length + key_states.shape[2]
        buffers = self._buffers
        if buffers is None or end > buffers[0].shape[2]:
            buffers = self._buffers = _roomy(self.keys, end), _roomy(self.values, end)
        keys, values = buffers
        keys[:, :, length:end] = key_states
        values[:, :, length:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    @property
    def full(self) -> bool:
        """The next token has no room."""
        assert self.keys is not None
        return self._buffers is None or self.keys.shape[2] == self._buffers[0].shape[2]

    def put(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write other sequences over ``rows``, their newest tokens beside those of the others."""
        assert self.keys is not None and self.values is not None
        start = self.keys.shape[2] - keys.shape[2]
        for mine, theirs in ((self.keys, keys), (self.values, values)):
            # What stood there is masked, but a NaN would come through the mask.
            mine[rows, :, :start] = 0
            mine[rows, :, start:] = theirs

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Hold these instead; the next :meth:`update` makes new room."""
        self._buffers = None
        self.keys, self.values = keys, values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Leave only these rows."""
        assert self.keys is not None and self.values is not None
        self.replace(self.keys[indices], self.values[indices])


def _roomy(x: Tensor, length: int) -> Tensor:
    rows, heads, filled, size = x.shape
    buffer = x.new_empty(rows, heads, length + ROOM, size)
    buffer[:, :, :filled] = x
    return buffer


def new_cache() -> Any:
    """An empty transformers ``Cache`` of :class:`RoomyLayer`; a model adds its layers."""
    return Cache(layer_class_to_replicate=RoomyLayer)


def selected(cache: Any, rows: Tensor) -> Any:
    """A cache of its own with some rows of another, which may be named several times.

    Args:
        cache: of B sequences.
        rows: [b] int64, on its device.
    """
    chosen = new_cache()
    for layer in cache.layers:
        copy = RoomyLayer()
        copy.lazy_initialization(layer.keys, layer.values)
        copy.keys, copy.values = layer.keys[rows], layer.values[rows]
        chosen.layers.append(copy)
    return chosen


@dataclass
class Batch:
    """The rows being decoded.

    Args:
        cache: keys and values of every row, padded at the left, [B, heads, L, head size] a layer.
        mask: [B, L + 1] int64, 1 at real tokens; the last column is the token about to be read.
        position: [B, 1] int64, position of that token.
        ids: [B, 1] int64, that token.
        live: the index of the response each row belongs to.
        ended: rows that have finished and wait to be replaced or dropped.
    """

    cache: Any
    mask: Tensor
    position: Tensor
    ids: Tensor
    live: list[int]
    ended: list[bool]


def compact(batch: Batch) -> None:
    """Drop the rows that have ended, and the columns that are padding in all others."""
    rows = [row for row, done in enumerate(batch.ended) if not done]
    keep = torch.tensor(rows, dtype=torch.long, device=batch.mask.device)
    batch.cache.batch_select_indices(keep)
    batch.ids, batch.mask = batch.ids[keep], batch.mask[keep]
    batch.position = batch.position[keep]
    batch.live, batch.ended = [batch.live[row] for row in rows], [False] * len(rows)
    trim(batch)


def trim(batch: Batch) -> None:
    """Drop the columns that are padding in every row."""
    first = int(batch.mask.any(0).int().argmax())
    if first:
        batch.mask = batch.mask[:, first:]
        for layer in batch.cache.layers:
            layer.replace(layer.keys[:, :, first:], layer.values[:, :, first:])


def select(batch: Batch, rows: list[int], live: list[int]) -> Batch:
    """A batch of its own with some rows of another, which may be named several times."""
    index = torch.tensor(rows, device=batch.mask.device)
    return Batch(
        selected(batch.cache, index),
        batch.mask[index],
        batch.position[index],
        batch.ids[index],
        live,
        [batch.ended[row] for row in rows],
    )


def joined(old: Batch | None, new: Batch | None) -> Batch | None:
    """The live rows of two batches as one batch.

    Rows of ``new`` take the places of rows of ``old`` that have ended, if there are enough of
    them: nothing else is copied then. Otherwise the narrower cache is padded at the left.
    """
    if old is None or new is None:
        return new or old
    if any(new.ended):
        compact(new)
    places = [row for row, done in enumerate(old.ended) if done][: len(new.live)]
    if len(places) == len(new.live) and new.mask.shape[1] <= old.mask.shape[1]:
        return _placed(old, new, places)
    if any(old.ended):
        compact(old)
    width = max(old.mask.shape[1], new.mask.shape[1])

    def widen(x: Tensor, have: int, dim: int) -> Tensor:
        shape = list(x.shape)
        shape[dim] = width - have
        return torch.cat([x.new_zeros(shape), x], dim=dim) if width > have else x

    for a, b in zip(old.cache.layers, new.cache.layers, strict=True):
        keys, values = (
            torch.cat([widen(x, old.mask.shape[1], 2), widen(y, new.mask.shape[1], 2)])
            for x, y in ((a.keys, b.keys), (a.values, b.values))
        )
        a.replace(keys, values)
    return Batch(
        old.cache,
        torch.cat([widen(old.mask, old.mask.shape[1], 1), widen(new.mask, new.mask.shape[1], 1)]),
        torch.cat([old.position, new.position]),
        torch.cat([old.ids, new.ids]),
        old.live + new.live,
        old.ended + new.ended,
    )


def _placed(old: Batch, new: Batch, places: list[int]) -> Batch:
    rows = torch.tensor(places, device=old.mask.device)
    for a, b in zip(old.cache.layers, new.cache.layers, strict=True):
        a.put(rows, b.keys, b.values)
    old.mask[rows] = 0
    old.mask[rows, old.mask.shape[1] - new.mask.shape[1] :] = new.mask
    old.position[rows], old.ids[rows] = new.position, new.ids
    for place, index in zip(places, new.live, strict=True):
        old.live[place], old.ended[place] = index, False
    return old
