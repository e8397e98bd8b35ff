"""torchtitan (0.3): a loss component that is the LM head too.

In place of the RL experiment's ``ChunkedLossWrapper``: ``loss=SiriLoss.Config()``.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torchtitan.components.loss import BaseLoss, ChunkedLossWrapper
from torchtitan.config import CompileConfig

from siri_kernels.integrations._padded import padded_policy_loss
from siri_kernels.linear_logprob import linear_logprob
from siri_kernels.linear_logprob.screen.options import asked_for
from siri_kernels.linear_logprob.types import LogprobOutput


class SiriLoss(ChunkedLossWrapper):
    """Clipped loss of hidden states: :func:`linear_logprob`, then :func:`policy_loss`.

    Same values as ``ChunkedLossWrapper`` around torchtitan's ``DAPOLoss`` but for its clamp of
    log-ratios at 10 (here 20). It is a subclass so that torchtitan's trainers pass it the
    head and the model returns hidden states. Nothing is chunked and the loss is an ordinary graph:
    hidden states are kept until ``backward``, logits are never stored. The head is called as a
    module, so that FSDP2 gathers it.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        """Options.

        Args:
            ratio_clip_low: lower clip bound, as in ``DAPOLoss``.
            ratio_clip_high: upper clip bound, as in ``DAPOLoss``.
            tail: of ``linear_logprob``.
            screen: of ``linear_logprob``: None, "int8", "fp8" or "auto".
            logprob_tol: of ``linear_logprob``, with a screen.
        """

        ratio_clip_low: float = 0.2
        ratio_clip_high: float = 0.28
        tail: float = 1e-2
        screen: str | None = None
        logprob_tol: float = 1e-4

    def __init__(self, config: Config, *, compile_config: CompileConfig | None = None) -> None:
        del compile_config  # torch.compile would make nothing here faster
        asked_for("SiriLoss", config.screen, config.logprob_tol, True)
        self.config = config
        self.lm_head: Any = None

    def set_lm_head(self, lm_head: torch.nn.Module) -> None:
        """Take the head and replace its forward; torchtitan calls it after the model is built.

        Raises:
            ValueError: a head without ``weight`` [V, D].
        """
        weight = getattr(lm_head, "weight", None)
        if weight is None or weight.dim() != 2:
            raise ValueError(
                "SiriLoss: lm_head must have a weight of shape [V, D]; got "
                f"{type(lm_head).__name__}"
            )
        lm_head.forward = types.MethodType(_score, lm_head)
        self.lm_head = lm_head

    def __call__(
        self,
        pred: torch.Tensor,
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | float | None = None,
        *,
        generator_logprobs: torch.Tensor,
        advantages: torch.Tensor,
        loss_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of a micro-batch and torchtitan's metrics, shares of the step's means.

        Args:
            pred: [B, L, D] hidden states of the model without its head.
            labels: [B, L] int64, already shifted.
            global_valid_tokens: tokens of the step over all ranks; None: 1, a sum.
            generator_logprobs: [B, L]; a token whose entry is not finite is masked.
            advantages: [B, L].
            loss_mask: [B, L] bool, True at unmasked tokens.

        Raises:
            RuntimeError: no head was set.
            ValueError: a head sharded by tensor parallelism.
        """
        if self.lm_head is None:
            raise RuntimeError("SiriLoss: call set_lm_head before the first loss")
        mask = loss_mask & torch.isfinite(generator_logprobs)
        options = {name: getattr(self.config, name) for name in ("tail", "screen", "logprob_tol")}
        out = self.lm_head(pred, labels.masked_fill(~mask, -100), **options)
        count = 1.0 if global_valid_tokens is None else global_valid_tokens
        count = count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)
        result = padded_policy_loss(
            out.logprobs,
            generator_logprobs,
            advantages,
            mask,
            clip_low=self.config.ratio_clip_low,
            clip_high=self.config.ratio_clip_high,
            aggregation="token-sum-norm",
            denominator=count,
        )
        m = result.metrics
        share = m["tokens"] / count
        with torch.no_grad():
            apart = (out.logprobs - generator_logprobs).masked_fill(~mask, 0)
            metrics = {
                "loss/mean": result.loss.detach(),
                "loss/ratio_mean": m["ratio_mean"] * share,
                "loss/ratio_clipped_frac": (m["clip_frac_low"] + m["clip_frac_high"]) * share,
                "bit_wise/logprob_diff/mean": apart.sum() / count,
                "bit_wise/logprob_diff/max": apart.abs().max(),
                "trainer/entropy/mean": (out.entropy * mask).sum() / count,
            }
        return result.loss, metrics


def _score(head: Any, hidden: torch.Tensor, targets: torch.Tensor, **options: Any) -> LogprobOutput:
    weight, bias = head.weight, head.bias
    if isinstance(weight, DTensor) or isinstance(hidden, DTensor):
        raise ValueError(
            "SiriLoss: parallelism.tensor_parallel_degree must be 1; the head's weight or the "
            "hidden states are sharded by it"
        )
    return linear_logprob(hidden.to(weight.dtype), weight, targets, bias=bias, **options)
