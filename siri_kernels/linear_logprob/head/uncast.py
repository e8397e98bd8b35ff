"""``Uncast``: a temperature that mixed precision does not round on its way to the head."""

from __future__ import annotations

from typing import Any

import torch


class Uncast:
    """A tensor among a module's arguments that is not seen as one.

    FSDP casts floating-point tensors among the arguments of a unit's forward to its 16-bit
    ``param_dtype``, also inside dictionaries, tuples and dataclasses (so this is none of them): a
    temperature of 0.6 becomes 0.6016.

    Args:
        value: the tensor, which stays as it is.
    """

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value


def pack(temperature: Any) -> Any:
    """``temperature``, as an :class:`Uncast` if it is a tensor."""
    return Uncast(temperature) if isinstance(temperature, torch.Tensor) else temperature


def unpack(temperature: Any, device: torch.device) -> Any:
    """The argument of :func:`pack`, on ``device``: FSDP would have moved the tensor there too."""
    return temperature.value.to(device) if isinstance(temperature, Uncast) else temperature
