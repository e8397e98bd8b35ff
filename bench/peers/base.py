"""What a contender is, and why one may be missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


class Missing(Exception):
    """A contender that cannot run here; the message says why."""


@dataclass(frozen=True)
class Where:
    """Where the bench runs.

    ``triton`` is false where Triton kernels cannot run; ``backend`` is what ``siri_kernels`` is
    asked for, None being its own choice ("triton" makes a CPU run them in the interpreter).
    ``without``: names of contenders to leave out.
    """

    device: torch.device
    triton: bool
    backend: str | None = None
    without: frozenset[str] = frozenset()

    def need_triton(self) -> None:
        """Raise :class:`Missing` where Triton kernels cannot run."""
        if not self.triton:
            raise Missing("its kernels are Triton's: needs a GPU")


@dataclass(frozen=True)
class Contender:
    """One way to do the work, through its public call.

    ``gate`` is the error it may have against float64, as a multiple of eager PyTorch's on the same
    rows: in the same dtype for ``same``, in bfloat16 for ``bfloat16``. A contender past it is not
    timed. ``masks``: the call takes ``ignore_index``; the others get the counted rows alone.
    """

    call: Callable[..., Any]
    settings: str
    gate: tuple[float, str] = (2.0, "bfloat16")
    masks: bool = False


Make = Callable[[Where], Contender]
