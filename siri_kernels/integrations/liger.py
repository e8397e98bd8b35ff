"""Liger (0.8.5): its GRPO loss over a linear head, with the same call and values."""

from __future__ import annotations

import inspect
import warnings

import torch

from siri_kernels.integrations._grpo import GrpoOptions, grpo_loss
from siri_kernels.linear_logprob import linear_logprob

_OP = "LigerFusedLinearGRPOLoss"


class LigerFusedLinearGRPOLoss(torch.nn.Module):
    """Replaces ``liger_kernel.chunked_loss.LigerFusedLinearGRPOLoss``.

    The parameters of constructor and call are Liger's, in its order. ``compiled`` and
    ``chunk_size`` are about Liger's computation and have no effect here. Remaining differences:
    gradients are computed in ``backward`` and not in ``forward``; those of ``lin_weight`` and
    ``bias`` are accumulated in float32; tokens masked by ``attention_mask`` are not computed.

    Args:
        beta: KL coefficient, >= 0; estimator k3.
        compiled: no effect.
        chunk_size: no effect.
        use_ref_model: whether ``ref_input`` and ``ref_weight`` are used where no
            ``ref_per_token_logps`` is given; without either the KL is that to the policy itself.
        epsilon_low: lower clip bound.
        epsilon_high: upper clip bound; for "cispo" that of the weight.
        loss_type: "grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo" or "vespo".
        max_completion_length: of "dr_grpo", which requires it; never a cap that moves.
        importance_sampling_level: "token" or "sequence".
        sapo_temperature_pos: of "sapo", > 0.
        sapo_temperature_neg: of "sapo", > 0.
        temperature: of the logits.
        delta: two-sided clipping, at least ``1 + epsilon_high``.
        use_bias_correction_kl: KL estimate times the ratio, a token's or a sequence's as the level.
        vespo_k_pos: of "vespo".
        vespo_lambda_pos: of "vespo".
        vespo_k_neg: of "vespo".
        vespo_lambda_neg: of "vespo".

    Raises:
        ValueError: another option; "cispo", "sapo" and "vespo" at level "sequence"; "luspo"
            at level "token" or with ``beta`` (0.04 by default), where Liger's sum includes padding.
    """

    def __init__(
        self,
        beta: float = 0.04,
        compiled: bool = True,
        use_ref_model: bool = True,
        chunk_size: int = 1,
        epsilon_low: float = 0.2,
        epsilon_high: float = 0.2,
        loss_type: str = "dapo",
        max_completion_length: int | None = None,
        importance_sampling_level: str = "token",
        sapo_temperature_pos: float = 1.0,
        sapo_temperature_neg: float = 1.05,
        temperature: float = 1.0,
        delta: float | None = None,
        use_bias_correction_kl: bool = False,
        vespo_k_pos: float = 2.0,
        vespo_lambda_pos: float = 3.0,
        vespo_k_neg: float = 3.0,
        vespo_lambda_neg: float = 2.0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("sapo_temperature_pos", sapo_temperature_pos),
            ("sapo_temperature_neg", sapo_temperature_neg),
        ):
            if not value > 0:
                raise ValueError(f"{_OP}: {name} must be > 0; got {value}")
        self.options = GrpoOptions(
            loss_type,
            epsilon_low,
            epsilon_high,
            importance_sampling_level,
            delta,
            beta,
            use_bias_correction_kl,
            (sapo_temperature_pos, sapo_temperature_neg),
            (vespo_k_pos, vespo_lambda_pos),
            (vespo_k_neg, vespo_lambda_neg),
        )
        self.options.check(_OP)
        sequence = importance_sampling_level == "sequence"
        if sequence and loss_type in ("cispo", "sapo", "vespo"):
            raise ValueError(
                f"{_OP}: importance_sampling_level must be 'token' for loss_type={loss_type!r}"
            )
        if loss_type == "luspo" and (not sequence or beta):
            default = self._defaults()
            met = [
                f"{name}={value!r}" + (" (the default)" if value == default[name] else "")
                for name, value, bad in (
                    ("importance_sampling_level", importance_sampling_level, not sequence),
                    ("beta", beta, bool(beta)),
                )
                if bad
            ]
            raise ValueError(
                f"{_OP}: loss_type='luspo' got {' and '.join(met)}, where Liger 0.8.5 sums over "
                "padding too; set importance_sampling_level='sequence' and beta=0.0"
            )
        if loss_type == "dr_grpo" and max_completion_length is None:
            raise ValueError(f"{_OP}: max_completion_length is required by loss_type='dr_grpo'")
        self.max_completion_length = max_completion_length
        self.temperature = temperature
        self.use_ref_model = use_ref_model

    @classmethod
    def _defaults(cls) -> dict[str, object]:
        parameters = inspect.signature(cls.__init__).parameters
        return {name: parameter.default for name, parameter in parameters.items()}

    def forward(
        self,
        _input: torch.Tensor,
        lin_weight: torch.Tensor,
        selected_token_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        advantages: torch.Tensor,
        bias: torch.Tensor | None = None,
        ref_per_token_logps: torch.Tensor | None = None,
        old_per_token_logps: torch.Tensor | None = None,
        ref_input: torch.Tensor | None = None,
        ref_weight: torch.Tensor | None = None,
        ref_bias: torch.Tensor | None = None,
        vllm_is_ratio: torch.Tensor | None = None,
        num_items_in_batch: float | torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Loss 0-d and Liger's metrics: with ``beta`` the mean KL, then the clipped share.

        Args:
            _input: [B, L, D] hidden states at the positions that predict ``selected_token_ids``.
            lin_weight: [V, D].
            selected_token_ids: [B, L] int64.
            attention_mask: [B, L], 1 at unmasked tokens.
            advantages: [B].
            bias: [V].
            ref_per_token_logps: [B, L], of the reference model.
            old_per_token_logps: [B, L], of the policy that the step started from.
            ref_input: [B, L, D], of the reference model.
            ref_weight: [V, D], of the reference model.
            ref_bias: [V], of the reference model.
            vllm_is_ratio: [B, L] or [B, 1], weights that correct for the sampler; "luspo": [B, 1].
            num_items_in_batch: tokens of the whole step over all processes, for "dapo", "cispo"
                and "vespo"; None: those of this call (summed over processes).

        Raises:
            ValueError: with ``beta`` no reference; a weight for each token of "luspo", where Liger
                sums over padding.
        """
        mask = attention_mask.bool()
        targets = selected_token_ids.masked_fill(~mask, -100)
        logprobs = linear_logprob(
            _input, lin_weight, targets, bias=bias, temperature=self.temperature
        ).logprobs
        ref = ref_per_token_logps
        if self.use_ref_model and ref is not None and ref_input is not None:  # as Liger does
            warnings.warn(
                f"{_OP}: ref_per_token_logps and ref_input are both given; the former is used",
                UserWarning,
                stacklevel=2,
            )
        if self.options.beta and ref is None:
            ref = logprobs.detach()
            if self.use_ref_model:
                if ref_input is None or ref_weight is None:
                    raise ValueError(
                        f"{_OP}: beta = {self.options.beta} and use_ref_model need "
                        "ref_per_token_logps, or ref_input and ref_weight"
                    )
                with torch.no_grad():
                    ref = linear_logprob(
                        ref_input, ref_weight, targets, bias=ref_bias, temperature=self.temperature
                    ).logprobs
        if vllm_is_ratio is not None and vllm_is_ratio.dim() == 1:
            vllm_is_ratio = vllm_is_ratio[:, None]
        if self.options.loss_type == "luspo" and vllm_is_ratio is not None:
            if vllm_is_ratio.shape[1] != 1:
                raise ValueError(
                    f"{_OP}: vllm_is_ratio must have shape [B, 1] with luspo; got "
                    f"{list(vllm_is_ratio.shape)}: there Liger 0.8.5 sums over padding too"
                )
        out = grpo_loss(
            self.options,
            logprobs,
            mask,
            advantages,
            old=old_per_token_logps,
            ref=ref,
            weights=vllm_is_ratio,
            denominator=self._denominator(mask, num_items_in_batch),
        )
        metrics = [out.metrics["ref_kl"]] if self.options.beta else []
        metrics.append(self._clipped(out.metrics))
        return out.loss, tuple(metrics)

    def _clipped(self, metrics: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.options.loss_type == "cispo":
            return metrics["cispo_clip_ratio"]
        if self.options.loss_type in ("sapo", "vespo"):
            return torch.zeros_like(metrics["tokens"])
        return metrics["clip_frac_low"] + metrics["clip_frac_high"]

    def _denominator(
        self, mask: torch.Tensor, items: float | torch.Tensor | None
    ) -> float | torch.Tensor | None:
        kind, rows = self.options.loss_type, float(len(mask))
        if kind in ("grpo", "sapo", "luspo"):
            return rows
        if kind == "dr_grpo":
            assert self.max_completion_length is not None
            return rows * self.max_completion_length
        if kind == "bnpo":
            return None
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        count = torch.as_tensor(
            mask.sum() if items is None else items, dtype=torch.float32, device=mask.device
        )
        if several:
            if items is None:
                torch.distributed.all_reduce(count)
            count = count / torch.distributed.get_world_size()
        return count.clamp(min=1.0)
