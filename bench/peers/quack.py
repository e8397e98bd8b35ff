"""QuACK's chunked loss, a scalar (github.com/Dao-AILab/quack, Apache-2.0)."""

from __future__ import annotations

from bench.peers.base import Contender, Entry, Missing, Peer, Where


def scalar(where: Where) -> Contender:
    """Its tuned chunks; the scaled-exp form where it takes the shape.

    Raises:
        Missing: without an NVIDIA GPU.
    """
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    if where.device.type != "cuda":
        raise Missing("CuTe kernels: needs an NVIDIA GPU")
    return Contender(
        lambda h, w, y: (
            -chunked_linear_cross_entropy(
                h, w, y, chunk_size=4096, reduction="sum", tuned=True, use_scaled_exp=None
            )
        ),
        'chunked_linear_cross_entropy(chunk_size=4096, reduction="sum", tuned=True)',
    )


PEER = Peer(
    package="quack-kernels",
    version="0.6.5",
    order=50,
    entries=(Entry("QuACK", scalar, ("scalar",)),),
)
