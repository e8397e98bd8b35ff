"""Which implementation of an operation runs."""

from __future__ import annotations

import importlib.util
import os

import torch

from siri_kernels._checks import shown

BACKENDS = ("triton", "portable", "reference")
# Every call asks; a search of the installed packages would cost it tens of microseconds.
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


def resolve_backend(op: str, backend: str | None, tensor: torch.Tensor) -> str:
    """The implementation of an operation; with None the fastest one on the tensor's device.

    Args:
        op: named in the error.
        backend: None, "triton", "portable" or "reference".
        tensor: an input, whose device is that of the operation.

    Raises:
        ValueError: another name, or "triton" where it does not run.
    """
    if backend is None:
        return "triton" if _on_gpu(tensor) else "portable"
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(
            f"{op}: backend must be None, {', '.join(map(repr, BACKENDS))}; got {shown(backend)}"
        )
    if backend == "triton" and not (_on_gpu(tensor) or _interpreted()):
        raise ValueError(
            f"{op}: backend='triton' takes tensors on a GPU, with Triton installed (on a CPU only "
            "under TRITON_INTERPRET=1); backend=None, 'portable' and 'reference' take any"
        )
    return backend


def _on_gpu(tensor: object) -> bool:
    return _TRITON_INSTALLED and isinstance(tensor, torch.Tensor) and tensor.is_cuda


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
