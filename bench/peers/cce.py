"""Cut cross-entropy from PyPI (Apple sample code licence)."""

from __future__ import annotations

from bench.peers.base import Contender, Entry, GpuPart, Peer, Where


def _contender(options: dict[str, object]) -> Contender:
    from cut_cross_entropy import linear_cross_entropy

    text = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return Contender(
        lambda h, w, y: -linear_cross_entropy(h, w, y, reduction="none", **options),
        f'linear_cross_entropy(reduction="none", {text})',
    )


def filtered(where: Where) -> Contender:
    """Its Triton kernels at their default: gradients below 2.4e-4 left out."""
    contender = _contender({"impl": "cce"})
    where.need_triton()
    return contender


def unfiltered(where: Where) -> Contender:
    """Without the filter, which was made for losses of supervised training."""
    contender = _contender({"impl": "cce", "filter_eps": None})
    where.need_triton()
    return contender


def compiled(where: Where) -> Contender:
    """Its fallback for machines without a GPU."""
    return _contender({"impl": "torch_compile"})


PEER = Peer(
    package="cut-cross-entropy",
    version="25.1.1",
    order=60,
    entries=(
        Entry("cut-cross-entropy", filtered, cases=("few", "sweep")),
        Entry("cut-cross-entropy, no filter", unfiltered, cases=()),
        Entry("cut-cross-entropy, torch.compile", compiled, ("head", "scalar"), ("few", "sweep")),
    ),
    parts=(
        GpuPart("cce", ("cut-cross-entropy", "cut-cross-entropy, no filter"), "cut_cross_entropy",
                ("cut_cross_entropy",), order=4),
    ),
)  # fmt: skip
