"""Liger's scaled cross-entropy and its scalar loss (github.com/linkedin/Liger-Kernel, BSD-2)."""

from __future__ import annotations

import os

import torch

from bench.peers.base import Contender, Where

# Its host check of the targets waits for the GPU; its own documentation says how to leave it out.
NO_CHECK = "LIGER_SCALED_CE_SM90_VALIDATE_TARGETS"


def implementation(device: torch.device) -> str:
    """Which of its implementations the call takes here."""
    from importlib.util import find_spec

    if device.type != "cuda":
        return "chunks of 512 tokens in PyTorch"
    if os.environ.get("LIGER_KERNEL_IMPL") == "cutile":
        return "cuTile"
    if torch.cuda.get_device_capability(device) == (9, 0):
        return "CuTe for SM90" if find_spec("cutlass") else "none: needs nvidia-cutlass-dsl"
    return "chunks of 512 tokens in PyTorch"


def scaled(where: Where) -> Contender:
    """Per-token negative log-prob."""
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as Scaled

    os.environ.setdefault(NO_CHECK, "0")
    return Contender(
        lambda h, w, y: -Scaled.apply(h, w, y, 1.0, -100),
        "LigerFusedLinearScaledCrossEntropyFunction without entropy, ran by: "
        f"{implementation(where.device)}; {NO_CHECK}=0",
    )


def scalar(where: Where) -> Contender:
    """The Triton loss of supervised training."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    where.need_triton()
    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)
    return Contender(
        lambda h, w, y: -loss(w, h, y),
        'LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=float32)',
    )
