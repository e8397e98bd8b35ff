"""Where kernels are launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def device_of(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Makes the GPU of ``tensor`` the current one: Triton launches there, whatever its arguments
    say. Does nothing for a tensor on another kind of device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
