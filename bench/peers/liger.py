"""Liger's scaled cross-entropy, scalar loss and GRPO loss (linkedin/Liger-Kernel, BSD-2)."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bench.peers.base import Contender, Entry, GpuPart, Peer, Where

if TYPE_CHECKING:
    from bench.inputs import LossBatch

# Its host check of the targets waits for the GPU; its own documentation says how to leave it out.
NO_CHECK = "LIGER_SCALED_CE_SM90_VALIDATE_TARGETS"


def _implementation(where: Where) -> str:
    """Which of its implementations the call takes here."""
    import torch

    if where.device.type != "cuda":
        return "chunks of 512 tokens in PyTorch"
    if os.environ.get("LIGER_KERNEL_IMPL") == "cutile":
        return "cuTile"
    if torch.cuda.get_device_capability(where.device) == (9, 0):
        return "CuTe for SM90" if find_spec("cutlass") else "none: needs nvidia-cutlass-dsl"
    return "chunks of 512 tokens in PyTorch"


def scaled(where: Where) -> Contender:
    """Per-token negative log-prob."""
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as Scaled

    os.environ.setdefault(NO_CHECK, "0")
    return Contender(
        lambda h, w, y: -Scaled.apply(h, w, y, 1.0, -100),
        "LigerFusedLinearScaledCrossEntropyFunction without entropy, ran by: "
        f"{_implementation(where)}; {NO_CHECK}=0",
    )


def scalar(where: Where) -> Contender:
    """The Triton loss of supervised training."""
    import torch
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    where.need_triton()
    total = LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)
    return Contender(
        lambda h, w, y: -total(w, h, y),
        'LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=float32)',
    )


def loss(where: Where) -> Contender:
    """The loss inside ``LigerFusedLinearGRPOLoss``, compiled as there, without its head."""
    import torch
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

    from bench.inputs import CLIP_HIGH, CLIP_LOW, gradient

    compiled = torch.compile(LigerFusedLinearGRPOFunction.ppo_loss_fn, dynamic=False)

    def call(b: LossBatch) -> Any:
        mask = b.mask.to(b.padded_old.dtype)
        out = compiled(
            b.padded_logprobs, mask, b.advantages, mask, old_per_token_logps=b.padded_old,
            epsilon_low=CLIP_LOW, epsilon_high=CLIP_HIGH, beta=0.0, loss_type="bnpo",
        )  # fmt: skip
        return gradient(out[0], b.padded_logprobs)

    return Contender(
        call, 'LigerFusedLinearGRPOFunction.ppo_loss_fn, loss_type="bnpo", torch.compile, padded'
    )


PEER = Peer(
    package="liger-kernel",
    version="0.8.5",
    also=("nvidia-cutlass-dsl",),
    order=40,
    entries=(
        Entry("Liger scaled CE", scaled),
        Entry("Liger FLCE", scalar, ("scalar",)),
        Entry("Liger", loss, ("loss",)),
    ),
    parts=(
        GpuPart("liger", ("Liger FLCE",), "liger_kernel.transformers", ("liger_kernel",),
                table="scalar", order=1),
        GpuPart("liger-scaled", ("Liger scaled CE",), "liger_kernel.ops",
                ("liger_kernel", "cutlass"), order=2),
    ),
    remedies=(
        ("cutlass",
         "pip install 'liger-kernel[cutedsl]', or bring the wheel of nvidia-cutlass-dsl"),
    ),
)  # fmt: skip
