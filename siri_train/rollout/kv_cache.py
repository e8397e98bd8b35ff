"""The batch being decoded: a key-value cache that grows in place, sequences that leave and join."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

PREALLOCATED = 32
"""Tokens that are allocated behind the keys and values. Copying them once in 32 tokens costs
nothing that can be measured."""


class PreallocatedLayer(DynamicLayer):
    """Keys and values [B, heads, L, head size] with memory allocated for the tokens to come.

    transformers' own layer copies all of them for every token.
    """

    _buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values; returns all of them.

        Args:
            key_states: [B, heads, new tokens, head size].
            value_states: the same shape.
            *args: without effect, as transformers passes them.
            **kwargs: without effect.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        assert self.keys is not None and self.values is not None
        length = self.keys.shape[2]
        end = length + key_states.shape[2]
        buffers = self._buffers
        if buffers is None or end > buffers[0].shape[2]:
            buffers = self._buffers = _preallocate(self.keys, end), _preallocate(self.values, end)
        keys, values = buffers
        keys[:, :, length:end] = key_states
        values[:, :, length:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    @property
    def full(self) -> bool:
        """The next token needs a new allocation."""
        assert self.keys is not None
        return self._buffers is None or self.keys.shape[2] == self._buffers[0].shape[2]

    def put(self, sequences: Tensor, keys: Tensor, values: Tensor) -> None:
        """Replace some sequences by others of the same or a smaller length.

        Their newest tokens stand beside the newest ones of the sequences that stay.

        Args:
            sequences: [b] int64, indices of those that are replaced.
            keys: [b, heads, l, head size], l at most L.
            values: the same shape.
        """
        assert self.keys is not None and self.values is not None
        start = self.keys.shape[2] - keys.shape[2]
        for mine, theirs in ((self.keys, keys), (self.values, values)):
            # The columns before are masked, but a NaN comes through a mask.
            mine[sequences, :, :start] = 0
            mine[sequences, :, start:] = theirs

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Hold these instead; the next :meth:`update` allocates anew."""
        self._buffers = None
        self.keys, self.values = keys, values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these sequences ([b] int64)."""
        assert self.keys is not None and self.values is not None
        self.replace(self.keys[indices], self.values[indices])


def _preallocate(x: Tensor, length: int) -> Tensor:
    sequences, heads, filled, size = x.shape
    buffer = x.new_empty(sequences, heads, length + PREALLOCATED, size)
    buffer[:, :, :filled] = x
    return buffer


def new_cache() -> Any:
    """An empty transformers ``Cache`` of :class:`PreallocatedLayer`; a model adds its layers."""
    return Cache(layer_class_to_replicate=PreallocatedLayer)


def copy_sequences(cache: Any, sequences: Tensor) -> Any:
    """A new cache with some sequences of another; one may be named several times.

    Args:
        cache: of B sequences.
        sequences: [b] int64, on its device.
    """
    chosen = new_cache()
    for layer in cache.layers:
        copy = PreallocatedLayer()
        copy.lazy_initialization(layer.keys, layer.values)
        copy.keys, copy.values = layer.keys[sequences], layer.values[sequences]
        chosen.layers.append(copy)
    return chosen


@dataclass
class DecodingBatch:
    """The sequences being decoded.

    Args:
        cache: keys and values of every sequence, padded at the left, [B, heads, L, head size] a
            layer.
        mask: [B, L + 1] int64, 1 at real tokens; the last column is the token about to be read.
        position: [B, 1] int64, position of that token.
        ids: [B, 1] int64, that token.
        responses: the index of the response that each sequence belongs to.
        ended: sequences that have finished and wait to be replaced or dropped.
    """

    cache: Any
    mask: Tensor
    position: Tensor
    ids: Tensor
    responses: list[int]
    ended: list[bool]

    @property
    def unfinished(self) -> int:
        """How many sequences are still being decoded."""
        return self.ended.count(False)


def compact(batch: DecodingBatch) -> None:
    """Drop the sequences that have ended, and the columns that are padding in all others."""
    going = [index for index, done in enumerate(batch.ended) if not done]
    keep = torch.tensor(going, dtype=torch.long, device=batch.mask.device)
    batch.cache.batch_select_indices(keep)
    batch.ids, batch.mask = batch.ids[keep], batch.mask[keep]
    batch.position = batch.position[keep]
    batch.responses, batch.ended = [batch.responses[i] for i in going], [False] * len(going)
    trim(batch)


def trim(batch: DecodingBatch) -> None:
    """Drop the columns that are padding in every sequence."""
    first = int(batch.mask.any(0).int().argmax())
    if first:
        batch.mask = batch.mask[:, first:]
        for layer in batch.cache.layers:
            layer.replace(layer.keys[:, :, first:], layer.values[:, :, first:])


def select(batch: DecodingBatch, sequences: list[int], responses: list[int]) -> DecodingBatch:
    """A new batch with some sequences of another; one may be named several times.

    Args:
        batch: where they come from.
        sequences: their indices in it.
        responses: the index of the response that each belongs to in the new batch.
    """
    index = torch.tensor(sequences, device=batch.mask.device)
    return DecodingBatch(
        copy_sequences(batch.cache, index),
        batch.mask[index],
        batch.position[index],
        batch.ids[index],
        responses,
        [batch.ended[i] for i in sequences],
    )


def join(old: DecodingBatch | None, new: DecodingBatch | None) -> DecodingBatch | None:
    """The unfinished sequences of two batches as one batch.

    Sequences of ``new`` take the places of those of ``old`` that have ended, if there are enough of
    them: nothing else is copied then. Otherwise the narrower cache is padded at the left.
    """
    if old is None or new is None:
        return new or old
    if any(new.ended):
        compact(new)
    places = [index for index, done in enumerate(old.ended) if done][: len(new.responses)]
    if len(places) == len(new.responses) and new.mask.shape[1] <= old.mask.shape[1]:
        return _placed(old, new, places)
    if any(old.ended):
        compact(old)
    width = max(old.mask.shape[1], new.mask.shape[1])

    def pad(x: Tensor, have: int, dim: int) -> Tensor:
        size = list(x.shape)
        size[dim] = width - have
        return torch.cat([x.new_zeros(size), x], dim=dim) if width > have else x

    for a, b in zip(old.cache.layers, new.cache.layers, strict=True):
        keys, values = (
            torch.cat([pad(x, old.mask.shape[1], 2), pad(y, new.mask.shape[1], 2)])
            for x, y in ((a.keys, b.keys), (a.values, b.values))
        )
        a.replace(keys, values)
    return DecodingBatch(
        old.cache,
        torch.cat([pad(old.mask, old.mask.shape[1], 1), pad(new.mask, new.mask.shape[1], 1)]),
        torch.cat([old.position, new.position]),
        torch.cat([old.ids, new.ids]),
        old.responses + new.responses,
        old.ended + new.ended,
    )


def _placed(old: DecodingBatch, new: DecodingBatch, places: list[int]) -> DecodingBatch:
    index = torch.tensor(places, device=old.mask.device)
    for a, b in zip(old.cache.layers, new.cache.layers, strict=True):
        a.put(index, b.keys, b.values)
    old.mask[index] = 0
    old.mask[index, old.mask.shape[1] - new.mask.shape[1] :] = new.mask
    old.position[index], old.ids[index] = new.position, new.ids
    for place, response in zip(places, new.responses, strict=True):
        old.responses[place], old.ended[place] = response, False
    return old
