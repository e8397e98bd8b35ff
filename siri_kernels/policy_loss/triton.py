"""Launches the Triton kernels: two, or three when something depends on whole sequences."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from siri_kernels._launch import launch
from siri_kernels.policy_loss import triton_kernels as kernels
from siri_kernels.policy_loss.portable import LossAndGradient
from siri_kernels.policy_loss.types import LossInputs, LossOptions, RolloutCorrection, metric_names


def policy_loss(x: LossInputs, options: LossOptions) -> LossAndGradient:
    """Loss, its gradient with respect to logprobs and entropy, and metrics; in float32.

    At usual sizes the host's work takes longer than the kernels': what depends on options alone is
    made once, and no operator is called that is not needed.
    """
    total, device = len(x.logprobs), x.logprobs.device
    sequences = x.sequences
    # One slot more than needed when there are no sequences: a launch takes at least one.
    slots = max(sequences + total // kernels.BLOCK, 1)
    logprobs = _plain(x.logprobs)
    # In place of a tensor that is not given stands another one, which the kernels do not read.
    old, advantages, offsets, mask, rollout, ref, entropy = (
        logprobs if tensor is None else _plain(tensor) for tensor in x[1:]
    )
    d_logprobs = torch.empty(total, dtype=torch.float32, device=device)
    d_entropy = torch.empty_like(d_logprobs) if options.entropy_coef != 0 else None
    given = (x.mask is not None, x.advantage_per_token, x.rollout_logprobs is not None)
    constant = options.constant
    flags = _loss_flags(constant, *given, x.ref_logprobs is not None, x.entropy is not None)
    numbers = _numbers(constant)
    partials = d_logprobs
    if flags["HAS_STATS"]:
        partials = torch.empty(kernels.STATS, slots, dtype=torch.float32, device=device)
        launch(
            kernels.sequence_kernel,
            (slots,),
            logprobs,
            old,
            advantages,
            mask,
            rollout,
            offsets,
            partials,
            sequences,
            slots,
            *numbers[:2],
            **_sequence_flags(constant, *given),
            BLOCK=kernels.BLOCK,
        )
    sums = torch.empty(kernels.SUMS, slots, dtype=torch.float32, device=device)
    launch(
        kernels.loss_kernel,
        (slots,),
        logprobs,
        old,
        advantages,
        mask,
        rollout,
        ref,
        entropy,
        offsets,
        partials,
        sums,
        d_logprobs,
        d_logprobs if d_entropy is None else d_entropy,
        sequences,
        slots,
        *numbers,
        **flags,
        BLOCK=kernels.BLOCK,
    )
    out = torch.empty(kernels.SUMS + 1, dtype=torch.float32, device=device)
    denominator, how = _denominator(options)
    launch(
        kernels.reduce_kernel,
        (kernels.SUMS,),
        sums,
        out,
        denominator,
        slots,
        DENOMINATOR=how,
        LANES=kernels.REDUCE_LANES,
    )
    rows = out.unbind()
    names = metric_names(x, options.off_policy_threshold is not None)
    metrics = {name: rows[kernels.ROWS[name]] for name in names}
    return LossAndGradient(rows[0], d_logprobs, d_entropy, rows[kernels.SUMS], metrics)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous, because the kernels take no strides nor signs, and bytes in place of bool."""
    if not tensor.is_contiguous() or tensor.is_neg():
        tensor = tensor.detach().resolve_neg().contiguous()
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


@functools.lru_cache(maxsize=256)
def _numbers(options: LossOptions) -> tuple[float, ...]:
    """The numbers of the kernels, in their order; the two bounds come first."""
    correction = options.correction or RolloutCorrection()
    return (
        *options.bounds,
        options.ceiling or 0.0,
        *options.sapo_tau,
        correction.low,
        correction.high,
        options.off_policy_threshold or 0.0,
        options.kl_coef,
        options.kl_limit or 0.0,
        options.entropy_coef,
    )


@functools.lru_cache(maxsize=256)
def _sequence_flags(
    options: LossOptions, masked: bool, per_token: bool, rollout: bool
) -> dict[str, Any]:
    correction = options.correction
    return {
        "HAS_MASK": masked,
        "PER_TOKEN": per_token,
        "HAS_ROLLOUT": rollout,
        "GMPO": options.objective == "gmpo",
        "WITH_LOG_RATIO": options.sequence_ratio,
        "WITH_GAP": correction is not None and correction.level != "token",
        "WITH_DRIFT": options.off_policy_threshold is not None,
    }


@functools.lru_cache(maxsize=256)
def _loss_flags(
    options: LossOptions, masked: bool, per_token: bool, rollout: bool, ref: bool, entropy: bool
) -> dict[str, Any]:
    correction = options.correction
    by_sequence = options.aggregation.startswith("seq-mean")
    of_sequences = _sequence_flags(options, masked, per_token, rollout)
    return {
        "OBJECTIVE": options.objective,
        "SEQUENCE_RATIO": options.sequence_ratio,
        "HAS_CEILING": options.ceiling is not None,
        "HAS_MASK": masked,
        "PER_TOKEN": per_token,
        "HAS_STATS": any(of_sequences[f"WITH_{name}"] for name in ("LOG_RATIO", "GAP", "DRIFT"))
        or (by_sequence and masked),
        "SEQUENCE_MEAN": options.aggregation == "seq-mean-token-mean",
        "HAS_ROLLOUT": rollout,
        "CORRECTION": "none" if correction is None else correction.mode,
        "LEVEL": "token" if correction is None else correction.level,
        "OFF_POLICY": options.off_policy_threshold is not None,
        "HAS_REF": ref,
        "KL": options.kl_estimator,
        "KL_UNBIASED": options.kl_unbiased,
        "HAS_KL_LIMIT": options.kl_limit is not None,
        "HAS_ENTROPY": entropy,
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
