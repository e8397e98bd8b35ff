"""verl's two fused heads (github.com/verl-project/verl, Apache-2.0)."""

from __future__ import annotations

from bench.peers.base import Contender, Missing, Where


def chunked(where: Where) -> Contender:
    """``use_fused_kernels`` with ``impl_backend: torch``, verl's default of the two."""
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    fused = FusedLinearForPPO(chunk_size=512, impl_backend="torch")
    settings = "FusedLinearForPPO(chunk_size=512), its default; always computes entropy"
    return Contender(lambda h, w, y: fused(h, w, y, 1.0)[0], settings)


def triton(where: Where) -> Contender:
    """``impl_backend: triton``."""
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    if where.device.type != "cuda":
        raise Missing("its kernels are Triton's and its host code CUDA's: needs an NVIDIA GPU")
    settings = 'linear_cross_entropy(temperature=1.0, reduction="none"); always computes entropy'
    return Contender(
        lambda h, w, y: linear_cross_entropy(h.contiguous(), w, y, 1.0, "none", None)[0], settings
    )
