"""Devices: where kernels are launched, and whether float64 exists there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

# It has no state, so one is enough.
_NOTHING = nullcontext()


def device_of(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """A context in which the GPU of ``tensor`` is the current one, where Triton launches.

    It does nothing for a tensor on another kind of device, nor where that GPU is the current one
    already: entering and leaving the context asks the driver three times.
    """
    if not tensor.is_cuda:
        return _NOTHING
    # A fake tensor of a GPU may exist where CUDA does not.
    if torch.cuda.is_initialized() and tensor.get_device() == torch.cuda.current_device():
        return _NOTHING
    return torch.cuda.device(tensor.device)


def has_float64(device: torch.device) -> bool:
    """Whether tensors of this device may be float64, found by trying.

    Apple's GPUs and several accelerators have no float64.
    """
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except Exception:  # TypeError on MPS; other devices raise other errors
        return False
    return True
