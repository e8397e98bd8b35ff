"""unsloth-zoo's fused log-probs (LGPL-3.0; called, nothing of it is here)."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from bench.peers.base import Contender, Entry, Missing, Peer, Where

if TYPE_CHECKING:
    from torch import Tensor


def logprob(where: Where) -> Contender:
    """Log-prob only.

    Raises:
        Missing: in a dry run.
    """
    if where.device.type == "cpu" and where.backend == "triton":
        raise Missing("its import replaces triton.jit where there is no GPU: not in dry runs")
    # Its switches: imported without unsloth itself, and without its changes to PyTorch's allocator.
    os.environ.setdefault("UNSLOTH_IS_PRESENT", "1")
    os.environ.setdefault("UNSLOTH_ZOO_DISABLE_GPU_INIT", "1")
    # Its import writes copies of its (AGPL) code into the current folder otherwise.
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", tempfile.mkdtemp())
    from unsloth_zoo.fused_losses.fused_linear import fused_linear_logprobs

    def call(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        out = fused_linear_logprobs(hidden, weight, targets)
        return out[0] if isinstance(out, tuple) else out

    return Contender(call, "fused_linear_logprobs, defaults, log-prob only")


PEER = Peer(
    package="unsloth-zoo",
    version="2026.10.9",
    order=70,
    entries=(Entry("unsloth-zoo", logprob),),
)
