"""Metrics of ``SiriGRPOTrainer``: TRL 1.16's names and meanings, and ours under ``siri/``."""

from __future__ import annotations

from typing import Any

import torch

from siri_kernels.integrations._grpo import GrpoOptions


class TrlMetrics:
    """Appends the values of one micro-batch, over all processes, to ``trainer._metrics``.

    Args:
        trainer: a ``GRPOTrainer``.
        mode: "train" or "eval".
    """

    def __init__(self, trainer: Any, mode: str) -> None:
        self.accelerator, self.mode = trainer.accelerator, mode
        self.values = trainer._metrics[mode]
        self.trainer = trainer

    def tokens(
        self,
        options: GrpoOptions,
        metrics: dict[str, torch.Tensor],
        entropy: torch.Tensor,
        mask: torch.Tensor,
    ) -> None:
        """Means over tokens: entropy, ``kl``, and what ``policy_loss`` reports.

        Args:
            options: those of the loss.
            metrics: of :func:`siri_kernels.policy_loss`.
            entropy: [B, L].
            mask: [B, L] bool, True for unmasked tokens.
        """
        count = metrics["tokens"].float()
        values = {
            "entropy": (entropy * mask).sum() / count.clamp(min=1),
            "siri/ratio_mean": metrics["ratio_mean"],
            "siri/approx_kl": metrics["approx_kl"],
        }
        if options.beta:
            values["kl"] = metrics["ref_kl"]
        if options.loss_type == "cispo":
            values["siri/clip_high"] = metrics["clip_frac_high"]  # of any advantage
        sums = torch.stack([count, *(v.float() * count for v in values.values())])
        total, *totals = self.accelerator.reduce(sums, reduction="sum").tolist()
        for name, value in zip(values, totals, strict=True):
            self.values[name].append(value / max(total, 1.0))
        largest = self.accelerator.gather(metrics["ratio_max"]).max().item()
        self.values["siri/ratio_max"].append(largest)

    @torch.no_grad()
    def clipped(
        self,
        options: GrpoOptions,
        logprobs: torch.Tensor,
        old: torch.Tensor | None,
        advantages: torch.Tensor,
        mask: torch.Tensor,
        weights: torch.Tensor | None,
    ) -> None:
        """Shares of clipped tokens, or at level "sequence" of clipped sequences, as TRL logs them.

        Args:
            options: those of the loss.
            logprobs: [B, L].
            old: [B, L]; None: ``logprobs``.
            advantages: [B], before the off-policy mask.
            mask: [B, L] bool, True for unmasked tokens.
            weights: [B, L] or [B, 1], the sampler's correction, which VESPO's weight includes.
        """
        change = torch.zeros_like(logprobs) if old is None else logprobs - old
        change = change.masked_fill(~mask, 0.0)
        gains = advantages[:, None]
        if options.loss_type == "vespo":
            a = self.trainer.args
            weight = self.trainer.get_gamma_weights(
                advantages=gains,
                log_ratio_per_token=change,
                mask=mask,
                importance_sampling_ratio=weights,
                k_pos=a.vespo_k_pos,
                lambda_pos=a.vespo_lambda_pos,
                k_neg=a.vespo_k_neg,
                lambda_neg=a.vespo_lambda_neg,
            )
            self._share("vespo/phi_seq_mean", weight, mask)
            return
        if options.level == "sequence":
            change = change.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        ratio = change.exp()
        if options.loss_type == "cispo":
            self._share("cispo_clip_ratio", (ratio > options.epsilon_high) & (gains > 0), mask)
        elif options.loss_type != "sapo":
            if options.delta is not None:  # TRL compares the ratio after that cap
                ratio = ratio.clamp(max=options.delta)
            high = (ratio > 1 + options.epsilon_high) & (gains > 0)
            low = (ratio < 1 - options.epsilon_low) & (gains < 0)
            for name, where in (("low", low), ("high", high), ("region", low | high)):
                self._share(f"clip_ratio/{name}_mean", where, mask)
            self._extreme("clip_ratio/low_min", low, mask, -1)
            self._extreme("clip_ratio/high_max", high, mask, 1)

    def entropy_bonus(self, loss: torch.Tensor) -> None:
        """``policy_loss``, the loss before the bonus, and ``entropy_coef`` once a step."""
        gathered = self.accelerator.gather(loss.detach().float())
        self.values["policy_loss"].append(gathered.nanmean().item())
        if self.mode == "train" and self.accelerator.sync_gradients:
            self.values["entropy_coef"].append(self.trainer.entropy_coef)

    def router(self, loss: torch.Tensor) -> None:
        """``aux_loss``, that of a mixture of experts, before its coefficient."""
        gathered = self.accelerator.gather_for_metrics(loss.detach())
        self.values["aux_loss"].append(gathered.mean().item())

    def _share(self, name: str, where: torch.Tensor, mask: torch.Tensor) -> None:
        """The mean of [B, L] over all unmasked tokens, or of [B, 1] over all sequences."""
        values = where.float()
        if values.shape[1] == 1:
            sums = torch.stack([values.sum(), values.new_tensor(float(len(values)))])
        else:
            sums = torch.stack([(values * mask).sum(), mask.sum().float()])
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        self.values[name].append(total / max(count, 1.0))

    def _extreme(self, name: str, where: torch.Tensor, mask: torch.Tensor, sign: int) -> None:
        """The largest (sign 1) or smallest (-1) of the sequences' shares; empty ones have none."""
        if where.shape[1] == 1:
            each = where.float()[:, 0]
        else:
            each = (where * mask).sum(1).float() / mask.sum(1)  # NaN where nothing counts
        each = self.accelerator.gather(each)
        each = each[~each.isnan()]
        value = float("nan") if not len(each) else (sign * (sign * each).max()).item()
        self.values[name].append(value)
