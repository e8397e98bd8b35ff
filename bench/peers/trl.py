"""TRL's chunked log-prob, loss and advantages (github.com/huggingface/trl, Apache-2.0)."""

from __future__ import annotations

import sys
from collections import defaultdict
from contextlib import nullcontext
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from bench.peers.bare_import import make_importable
from bench.peers.base import Contender, Entry, GpuPart, Peer, Where

if TYPE_CHECKING:
    from torch import Tensor

    from bench.inputs import GroupIds, LossBatch

CHUNK = 32768  # vocabulary ids a tile, TRL's default


def _contender(outputs: tuple[str, ...], settings: str) -> Contender:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def call(hidden: Tensor, weight: Tensor, targets: Tensor) -> Any:
        arguments = (hidden, weight, None, targets, 1.0, CHUNK, None, 1.0, outputs)
        return ChunkedLogProbFunction.apply(*arguments)[0]

    return Contender(call, f"ChunkedLogProbFunction, chunks of {CHUNK} ids, {settings}")


def require(command: str) -> None:
    """End ``python -m bench COMMAND`` where TRL is not installed.

    Raises:
        SystemExit: it is not.
    """
    if find_spec("trl") is None:
        raise SystemExit(
            f"bench {command}: TRL is not installed: sh scripts/peers.sh .peers, then "
            "PYTHONPATH=.peers"
        )


def logprob(where: Where) -> Contender:
    """The log-prob alone, which is its fastest."""
    return _contender((), "log-prob only")


def with_entropy(where: Where) -> Contender:
    """Log-prob and entropy, which its GRPO trainer requests."""
    return _contender(("entropy",), "with entropy, as GRPOTrainer asks for it")


def loss(where: Where) -> Contender:
    """``GRPOTrainer._compute_loss``; a stand-in for the trainer supplies the log-probs."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    from bench.inputs import CLIP_HIGH, CLIP_LOW, gradient

    trainer = SimpleNamespace(
        beta=0.0, epsilon_low=CLIP_LOW, epsilon_high=CLIP_HIGH, importance_sampling_level="token",
        off_policy_mask_threshold=None, loss_type="bnpo", aux_loss_enabled=False,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        top_entropy_quantile=1.0, use_vllm=False, vllm_importance_sampling_correction=False,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        max_completion_length=1, use_adaptive_entropy=False, entropy_coef=None,
        _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(num_processes=1, sync_gradients=False, gather=lambda x: x,
                                    reduce=lambda x, reduction: x),
    )  # fmt: skip

    def call(b: LossBatch) -> Any:
        trainer._metrics = {"train": defaultdict(list)}
        entropy = b.padded_old  # any [B, L]: only its mean is logged
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (
            b.padded_logprobs, entropy, None,
        )  # fmt: skip
        one = b.mask[:, :1].long()
        inputs = {
            "prompt_ids": one, "prompt_mask": one, "completion_ids": b.mask.long(),
            "completion_mask": b.mask.long(), "advantages": b.advantages,
            "old_per_token_logps": b.padded_old, "num_items_in_batch": None,
        }  # fmt: skip
        return gradient(GRPOTrainer._compute_loss(trainer, None, inputs), b.padded_logprobs)

    return Contender(call, 'GRPOTrainer._compute_loss, loss_type="bnpo", padded, with its metrics')


def advantages(where: Where) -> Contender:
    """TRL 1.16's lines of ``_generate_and_score_completions``, which no function holds."""
    import torch
    from trl.trainer.utils import nanstd

    def call(rewards: Tensor, size: int, ids: GroupIds) -> Tensor:
        groups = rewards.view(-1, size)
        mean = torch.nanmean(groups, dim=1).repeat_interleave(size, dim=0)
        std = nanstd(groups, dim=1).repeat_interleave(size, dim=0)
        return torch.nan_to_num((rewards - mean) / (std + 1e-4), nan=0.0)

    return Contender(call, "the formula of GRPOTrainer with its nanstd, eps 1e-4 (restated)")


def _complete() -> None:
    """Replace the trainer's utilities where they cannot be imported.

    TRL's backward takes a context from them that gathers a ZeRO-3 weight, and that is empty without
    ZeRO-3. They need ``datasets``.
    """
    if make_importable("trl.trainer.utils"):
        utilities = ModuleType("trl.trainer.utils")
        utilities.maybe_gather_lm_head_ctx = lambda *parameters: nullcontext()  # type: ignore[attr-defined]
        sys.modules["trl.trainer.utils"] = utilities


PEER = Peer(
    package="trl",
    version="1.16.0",
    order=20,
    entries=(
        Entry("TRL", logprob, cases=("few", "sweep", "growth")),
        Entry("TRL, entropy too", with_entropy, cases=()),
        Entry("TRL", loss, ("loss",)),
        Entry("TRL", advantages, ("advantages",), tolerance=1e-3),  # its eps is larger
    ),
    parts=(
        GpuPart("trl", ("TRL", "TRL, entropy too"), "trl.kernels.chunked_logprob", ("trl",),
                order=3, prepare=_complete),
    ),
)  # fmt: skip
