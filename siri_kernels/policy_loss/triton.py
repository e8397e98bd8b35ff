"""Launches the Triton kernels: two, or three when something depends on whole sequences."""

from __future__ import annotations

import math
from typing import Any

import torch

from siri_kernels.policy_loss import triton_kernels as kernels
from siri_kernels.policy_loss.portable import LossAndGradient
from siri_kernels.policy_loss.types import LossInputs, LossOptions, RolloutCorrection, metric_names


def policy_loss(x: LossInputs, options: LossOptions) -> LossAndGradient:
    """Loss, its gradient with respect to logprobs and entropy, and metrics; in float32."""
    total, device = len(x.logprobs), x.logprobs.device
    # One slot more than needed when there are no sequences: a launch takes at least one.
    slots = max(x.sequences + total // kernels.BLOCK, 1)
    tensors = _Tensors(x)
    d_logprobs = torch.empty(total, dtype=torch.float32, device=device)
    d_entropy = torch.empty_like(d_logprobs) if options.entropy_coef != 0 else None
    flags = _loss_flags(x, options)
    low, high = options.bounds
    partials = d_logprobs
    if flags["HAS_STATS"]:
        partials = torch.empty(kernels.STATS, slots, dtype=torch.float32, device=device)
        kernels.sequence_kernel[(slots,)](
            *tensors.of("logprobs", "old_logprobs", "advantages", "mask", "rollout_logprobs"),
            *tensors.of("cu_seqlens"),
            partials,
            x.sequences,
            slots,
            low,
            high,
            **_sequence_flags(x, options),
            BLOCK=kernels.BLOCK,
        )
    sums = torch.empty(kernels.SUMS, slots, dtype=torch.float32, device=device)
    correction = options.correction or RolloutCorrection()
    kernels.loss_kernel[(slots,)](
        *tensors.of("logprobs", "old_logprobs", "advantages", "mask", "rollout_logprobs"),
        *tensors.of("ref_logprobs", "entropy", "cu_seqlens"),
        partials,
        sums,
        d_logprobs,
        d_logprobs if d_entropy is None else d_entropy,
        x.sequences,
        slots,
        low,
        high,
        options.ceiling or 0.0,
        *options.sapo_tau,
        correction.low,
        correction.high,
        options.off_policy_threshold or 0.0,
        options.kl_coef,
        options.kl_limit or 0.0,
        options.entropy_coef,
        **flags,
        BLOCK=kernels.BLOCK,
    )
    out = torch.empty(kernels.SUMS + 1, dtype=torch.float32, device=device)
    denominator, how = _denominator(options)
    kernels.reduce_kernel[(kernels.SUMS,)](
        sums, out, denominator, slots, DENOMINATOR=how, LANES=kernels.REDUCE_LANES
    )
    names = metric_names(x, options.off_policy_threshold is not None)
    metrics = {name: out[kernels.ROWS[name]] for name in names}
    return LossAndGradient(out[0], d_logprobs, d_entropy, out[kernels.SUMS], metrics)


class _Tensors:
    """The inputs of the kernels, contiguous because the kernels take no strides.

    In place of a tensor that is not given stands another one, which the kernels do not read.
    """

    def __init__(self, x: LossInputs) -> None:
        self._x = x

    def of(self, *names: str) -> list[torch.Tensor]:
        tensors = []
        for name in names:
            tensor = getattr(self._x, name)
            tensor = self._x.logprobs if tensor is None else tensor
            tensor = tensor.detach().contiguous()
            tensors.append(tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor)
        return tensors


def _sequence_flags(x: LossInputs, options: LossOptions) -> dict[str, Any]:
    correction = options.correction
    return {
        "HAS_MASK": x.mask is not None,
        "PER_TOKEN": x.advantage_per_token,
        "HAS_ROLLOUT": x.rollout_logprobs is not None,
        "GMPO": options.objective == "gmpo",
        "WITH_LOG_RATIO": options.sequence_ratio,
        "WITH_GAP": correction is not None and correction.level != "token",
        "WITH_DRIFT": options.off_policy_threshold is not None,
    }


def _loss_flags(x: LossInputs, options: LossOptions) -> dict[str, Any]:
    correction = options.correction
    by_sequence = options.aggregation.startswith("seq-mean")
    of_sequences = _sequence_flags(x, options)
    return {
        "OBJECTIVE": options.objective,
        "SEQUENCE_RATIO": options.sequence_ratio,
        "HAS_CEILING": options.ceiling is not None,
        "HAS_MASK": x.mask is not None,
        "PER_TOKEN": x.advantage_per_token,
        "HAS_STATS": any(of_sequences[f"WITH_{name}"] for name in ("LOG_RATIO", "GAP", "DRIFT"))
        or (by_sequence and x.mask is not None),
        "SEQUENCE_MEAN": options.aggregation == "seq-mean-token-mean",
        "HAS_ROLLOUT": x.rollout_logprobs is not None,
        "CORRECTION": "none" if correction is None else correction.mode,
        "LEVEL": "token" if correction is None else correction.level,
        "OFF_POLICY": options.off_policy_threshold is not None,
        "HAS_REF": x.ref_logprobs is not None,
        "KL": options.kl_estimator,
        "KL_UNBIASED": options.kl_unbiased,
        "HAS_KL_LIMIT": options.kl_limit is not None,
        "HAS_ENTROPY": x.entropy is not None,
        "HAS_BONUS": options.entropy_coef != 0,
    }


def _denominator(options: LossOptions) -> tuple[float | torch.Tensor, str]:
    value = options.denominator
    if value is None:
        return 0.0, "sequences" if options.aggregation.startswith("seq-mean") else "tokens"
    if not isinstance(value, torch.Tensor):
        return value, "value"
    if value.device.type == "cpu":  # reading it waits for nothing
        return float(value) or math.inf, "value"
    return value, "pointer"
