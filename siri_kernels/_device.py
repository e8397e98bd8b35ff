"""Where kernels are launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def device_of(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Makes the GPU of ``tensor`` the current one: Triton launches there, whatever its arguments
    say. Does nothing for a tensor on another kind of device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def has_float64(device: torch.device) -> bool:
    """Whether tensors of this device may be float64: tried, as no list of devices would stay true
    (Apple's GPUs and several accelerators have none)."""
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except Exception:  # TypeError on MPS; what others raise is theirs to choose
        return False
    return True
