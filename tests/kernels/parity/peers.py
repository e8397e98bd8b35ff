"""The batch every peer gets, padded, and what ``policy_loss`` makes of it, packed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from siri_kernels import policy_loss, varlen

LENGTHS = (9, 1, 12, 4, 7, 2)


@dataclass
class Padded:
    """[B, L] each but advantages [B]; float64. ``mask`` has holes in the answers."""

    logprobs: torch.Tensor
    old: torch.Tensor
    ref: torch.Tensor
    rollout: torch.Tensor
    entropy: torch.Tensor
    mask: torch.Tensor
    advantages: torch.Tensor
    lengths: torch.Tensor

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def float_mask(self) -> torch.Tensor:
        return self.mask.to(self.logprobs.dtype)


def padded(spread=0.5, holes=True, empty_row=False) -> Padded:
    lengths = torch.tensor(LENGTHS)
    shape = (len(LENGTHS), int(lengths.max()))
    mask = torch.arange(shape[1]) < lengths[:, None]
    if holes:
        mask = mask & (torch.rand(shape) < 0.8)
        mask[:, 0] = True
    if empty_row:
        mask[1] = False
    old = -3 * torch.rand(shape).double()

    def near(size: float) -> torch.Tensor:
        return old + size * torch.randn(shape).double()

    return Padded(
        near(spread).requires_grad_(),
        old,
        near(0.4),
        near(0.2),
        torch.rand(shape).double().requires_grad_(),
        mask,
        torch.tensor([1.2, -0.7, -1.4, 0.3, 0.9, -0.2]).double(),
        lengths,
    )


def ours(batch: Padded, *, rollout=False, ref=False, entropy=False, **options):
    """Loss, gradient by ``batch.logprobs`` and by ``batch.entropy``, and metrics."""

    def packed(values: torch.Tensor) -> torch.Tensor:
        return varlen.pack(values, batch.lengths).values

    tensors = {"mask": packed(batch.mask)}
    if rollout:
        tensors["rollout_logprobs"] = packed(batch.rollout)
    if ref:
        tensors["ref_logprobs"] = packed(batch.ref)
    if entropy:
        tensors["entropy"] = packed(batch.entropy)
    out = policy_loss(
        packed(batch.logprobs),
        packed(batch.old),
        batch.advantages,
        varlen.cu_seqlens_from(batch.lengths),
        **tensors,
        **options,
    )
    return out.loss, *gradients(out.loss, batch), out.metrics


def gradients(loss: torch.Tensor, batch: Padded):
    return torch.autograd.grad(
        loss, (batch.logprobs, batch.entropy), allow_unused=True, materialize_grads=True
    )


class Compare:
    """Asserts equality and keeps the largest difference seen, for the report."""

    def __init__(self, name: str) -> None:
        self.name, self.cases, self.worst = name, 0, 0.0

    def __call__(self, got, want, tolerance: float = 1e-9) -> None:
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            scale = max(1.0, b.abs().max().item())
            gap = (a.double() - b.double()).abs().max().item() / scale
            assert gap <= tolerance, f"{self.name}: {gap:.3g}"
            self.worst = max(self.worst, gap)
        self.cases += 1

    def __str__(self) -> str:
        return f"{self.name}: {self.cases} cases, largest difference {self.worst:.2g}"
