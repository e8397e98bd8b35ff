"""verl's fused heads, loss and advantages (github.com/verl-project/verl, Apache-2.0)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.peers.base import Contender, Entry, GpuPart, Missing, Peer, Where

if TYPE_CHECKING:
    from torch import Tensor

    from bench.inputs import GroupIds, LossBatch


def chunked(where: Where) -> Contender:
    """``use_fused_kernels`` with ``impl_backend: torch``, verl's default of the two."""
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    fused = FusedLinearForPPO(chunk_size=512, impl_backend="torch")
    settings = "FusedLinearForPPO(chunk_size=512), its default; always computes entropy"
    return Contender(lambda h, w, y: fused(h, w, y, 1.0)[0], settings)


def triton(where: Where) -> Contender:
    """``impl_backend: triton``.

    Raises:
        Missing: without an NVIDIA GPU.
    """
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    if where.device.type != "cuda":
        raise Missing("its kernels are Triton's and its host code CUDA's: needs an NVIDIA GPU")
    settings = 'linear_cross_entropy(temperature=1.0, reduction="none"); always computes entropy'
    return Contender(
        lambda h, w, y: linear_cross_entropy(h.contiguous(), w, y, 1.0, "none", None)[0], settings
    )


def loss(where: Where) -> Contender:
    """``compute_policy_loss_vanilla``; its dual clip is always on, 1e9 is out of reach."""
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
    from verl.workers.config import ActorConfig

    from bench.inputs import CLIP_HIGH, CLIP_LOW, gradient

    config = ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio=CLIP_LOW,
        clip_ratio_low=CLIP_LOW, clip_ratio_high=CLIP_HIGH, clip_ratio_c=1e9,
    )  # fmt: skip

    def call(b: LossBatch) -> Any:
        value, _ = compute_policy_loss_vanilla(
            old_log_prob=b.padded_old, log_prob=b.padded_logprobs,
            advantages=b.advantages[:, None].expand_as(b.padded_old),
            response_mask=b.mask.to(b.padded_old.dtype), loss_agg_mode="token-mean",
            config=config,
        )  # fmt: skip
        return gradient(value, b.padded_logprobs)

    return Contender(call, 'compute_policy_loss_vanilla, "token-mean", padded, with its metrics')


def _advantages(function: str, text: str) -> Contender:
    import torch
    from verl.trainer.ppo import core_algos

    estimate = getattr(core_algos, function)

    def call(rewards: Tensor, size: int, ids: GroupIds) -> Tensor:
        scores = rewards[:, None]
        return estimate(scores, torch.ones_like(scores), ids.numpy)[0][:, 0]

    return Contender(call, f"{function}, {text}")


def advantages(where: Where) -> Contender:
    """The default estimator."""
    return _advantages("compute_grpo_outcome_advantage", "its default; ids as a numpy array")


def advantages_vectorized(where: Where) -> Contender:
    """The vectorised, faster estimator."""
    return _advantages("compute_grpo_vectorized_outcome_advantage", "ids as a numpy array")


PEER = Peer(
    package="verl",
    version="0.9.1",
    order=30,
    entries=(
        Entry("verl, torch", chunked, cases=("few", "growth")),
        Entry("verl, Triton", triton),
        Entry("verl", loss, ("loss",)),
        Entry("verl", advantages, ("advantages",), most=2**15),
        Entry("verl, vectorised", advantages_vectorized, ("advantages",)),
    ),
    parts=(
        GpuPart("verl", ("verl, Triton",), "verl.utils.kernel.linear_cross_entropy", ("verl",),
                order=5),
    ),
)  # fmt: skip
