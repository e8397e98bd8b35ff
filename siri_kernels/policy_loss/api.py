"""``policy_loss``: the public function and its autograd."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from siri_kernels import _checks as check
from siri_kernels._autograd import refuse_double_backward
from siri_kernels._backend import resolve_backend
from siri_kernels._compiled import refusal
from siri_kernels.policy_loss import custom_op, reference
from siri_kernels.policy_loss.compute import compute
from siri_kernels.policy_loss.types import (
    LossInputs,
    PolicyLoss,
    RolloutCorrection,
    metric_names,
)
from siri_kernels.policy_loss.validate import OP, check_inputs, options_of

_NOTHING = contextlib.nullcontext()


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    objective: str = "clip",
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
    delta: float | None = None,
    cispo_bounds: str = "verl",
    sapo_tau: tuple[float, float] = (1.0, 1.05),
    ratio: str = "token",
    aggregation: str = "token-mean",
    denominator: float | torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    rollout_logprobs: torch.Tensor | None = None,
    rollout_correction: RolloutCorrection | str | None = None,
    off_policy_threshold: float | None = None,
    ref_logprobs: torch.Tensor | None = None,
    kl_coef: float = 0.0,
    kl_estimator: str = "k3",
    kl_unbiased: bool = False,
    kl_limit: float | None = None,
    entropy: torch.Tensor | None = None,
    entropy_coef: float = 0.0,
    backend: str | None = None,
) -> PolicyLoss:
    """Policy-gradient loss of packed answers, with its metrics.

    Per token an objective of the ratio ``r = exp(logprobs - old_logprobs)`` and the advantage A,
    times the rollout correction's weight, plus ``kl_coef`` times an estimate of the KL to a
    reference, minus ``entropy_coef`` times the entropy; then aggregated. docs/losses.md lists the
    options of each paper's and trainer's loss, and the differences between trainers.

    Differences of log-probs are clamped to +-20 before anything else, as in verl; beyond, the
    derivative is 0. An infinite log-prob is therefore a ratio of exp(20) or exp(-20) of its token;
    NaN stays NaN.

    Args:
        logprobs: [T] floating point, of the policy that learns. The loss is differentiable with
            respect to it and to ``entropy``, once, and to nothing else.
        old_logprobs: [T], of the policy that the step started from.
        advantages: [B], one a sequence, or [T]. Where T = B it is read as [B].
        cu_seqlens: [B+1] int32, flash-attention's convention: 0 first, never falling, T last.
            A sequence may have length 0.
        objective: "clip": ``-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`` (PPO,
            arXiv 1707.06347 eq. 7; decoupled bounds: DAPO, arXiv 2503.14476; SIRI, arXiv
            2509.25176 section 3.2). "cispo": ``-w A logprobs`` with w the clipped ratio, a constant
            (arXiv 2506.13585). "sapo": ``-4/tau sigmoid(tau (r - 1)) A`` (arXiv 2511.20347).
            "gmpo": ``-r A`` with r the geometric mean over the sequence of ratios clipped to
            [exp(-clip_low), exp(clip_high)] on the side that the sign of A says (arXiv 2507.20673);
            r is the sequence's whatever ``ratio``. "reinforce": ``-A logprobs``.
        clip_low: number >= 0, at most 1 but for "gmpo".
        clip_high: number >= 0.
        dual_clip: number > 1: for "clip", where A < 0 the loss is at most ``-dual_clip * A``
            (arXiv 1912.09729; verl uses 3, its DAPO recipe 10). None: off.
        delta: number >= 1 + clip_high, for "clip", instead of dual_clip: the ratio is at most delta
            before the minimum is taken (two-sided clipping, INTELLECT-2, arXiv 2505.07291; TRL).
        cispo_bounds: w is clipped to, "verl": [1 - clip_low, 1 + clip_high]; "trl": [0, clip_high].
        sapo_tau: numbers > 0, for A > 0 and for the others.
        ratio: "token"; or "sequence": GSPO-token (arXiv 2507.18071 section 4.3), the geometric mean
            of the ratios of the sequence's unmasked tokens; every token has its own gradient.
        aggregation: verl's names. With m unmasked tokens in all and n non-empty sequences
            (those with an unmasked token): "token-mean": sum over tokens / m;
            "seq-mean-token-mean": sum over sequences of their mean / n; "seq-mean-token-sum": sum
            over tokens / n;
            "token-sum-norm": sum over tokens / denominator (Dr. GRPO, arXiv 2503.20783).
        denominator: number or 0-d tensor >= 0 in place of m or n: the count of the whole optimiser
            step, when this call sees a part of it. "token-sum-norm" requires it. 0, the count of a
            step whose tokens are all masked, gives loss 0 and gradient 0.
        mask: [T] bool, True at unmasked tokens; None: all. Values of the other tensors at masked
            tokens, infinity and NaN included, have no influence.
        rollout_logprobs: [T], of the sampler. NaN, not reported: a weight of 1.
        rollout_correction: None, a :class:`RolloutCorrection`, or "tis", "mis", "icepop" for the
            usual ones (``ROLLOUT_CORRECTIONS``): the objective of a token is multiplied with a
            weight, a constant, made of ``exp(old_logprobs - rollout_logprobs)``.
        off_policy_threshold: number: the objective is 0 where A < 0 in sequences whose mean of
            ``sampler - logprobs`` over unmasked tokens is above it, with rollout_logprobs as the
            sampler's where given and else old_logprobs (DeepSeek-V3.2, arXiv 2512.02556).
        ref_logprobs: [T], of the reference policy.
        kl_coef: number >= 0; above 0 it needs ``ref_logprobs``.
        kl_estimator: with d = logprobs - ref_logprobs: "k1": d; "k2": d^2 / 2; "k3":
            exp(-d) - 1 + d.
        kl_unbiased: the estimate is multiplied with the token's ratio, through which the gradient
            passes (DeepSeek-V3.2; TRL's use_bias_correction_kl).
        kl_limit: number > 0: estimates are clamped to +-kl_limit (verl: 10, k3 only). None: not.
        entropy: [T] nats, of the policy that learns; for its metric and bonus.
        entropy_coef: number; other than 0 it needs ``entropy``.
        backend: None (fastest there is), "triton", "portable" or "reference".

    Returns:
        PolicyLoss: loss 0-d, float32 (float64 for float64 logprobs), and metrics, 0-d and without
        gradient, means over this call's unmasked tokens for every denominator (0 without any):
        clip_frac_low, clip_frac_high: the clip is active, so r past that bound and, but for
        "cispo", A < 0 or A > 0; ratio_mean and ratio_max of r; approx_kl: r - 1 - log r of token
        ratios, an estimate of KL(old || policy); tokens: how many are unmasked; entropy, if given;
        ref_kl, with ref_logprobs: the estimate; with rollout_logprobs, rollout_kl: w - 1 - log w
        with w = exp(old_logprobs - rollout_logprobs), an estimate of KL(rollout || old), and
        rollout_weight_mean of the correction's weight, of w without one; off_policy_frac, with
        off_policy_threshold: tokens that it silences. Without an unmasked token the loss and its
        gradient are 0. No call waits for a GPU. ``torch.compile`` takes the call as one
        ``torch.library`` operator, which it does not compile again for other lengths or numbers.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape, device or value, an unknown option, a missing denominator,
            ref_logprobs, rollout_logprobs or entropy; cu_seqlens that fall or do not end at T (read
            on a CPU, elsewhere under ``SIRI_KERNELS_CHECK=1``).
        NotImplementedError: double backward.
    """
    options = {
        "objective": objective,
        "clip_low": clip_low,
        "clip_high": clip_high,
        "dual_clip": dual_clip,
        "delta": delta,
        "cispo_bounds": cispo_bounds,
        "sapo_tau": sapo_tau,
        "ratio": ratio,
        "aggregation": aggregation,
        "denominator": denominator,
        "rollout_correction": rollout_correction,
        "off_policy_threshold": off_policy_threshold,
        "kl_coef": kl_coef,
        "kl_estimator": kl_estimator,
        "kl_unbiased": kl_unbiased,
        "kl_limit": kl_limit,
        "entropy_coef": entropy_coef,
    }
    inputs = LossInputs(
        logprobs,
        old_logprobs,
        advantages,
        cu_seqlens,
        mask,
        rollout_logprobs,
        ref_logprobs,
        entropy,
    )
    if torch.compiler.is_compiling() and backend != "reference":
        try:
            _check_types(inputs, backend)
            return custom_op.in_graph(inputs, options, backend)
        except (TypeError, ValueError) as error:
            loss = refusal(error, logprobs, old_logprobs, advantages, cu_seqlens)
            return PolicyLoss(loss.sum(), dict.fromkeys(metric_names(inputs, True), loss.sum()))
    if backend is not None:
        resolve_backend(OP, backend, logprobs)
    checked = options_of(options)
    if backend == "reference":
        check_inputs(inputs, checked)
        return reference.policy_loss(inputs, checked)
    result = compute(inputs, checked, backend)
    loss = result.loss
    if torch.is_grad_enabled() and (
        logprobs.requires_grad or (entropy is not None and entropy.requires_grad)
    ):
        loss = _WithGradient.apply(
            loss, logprobs, result.d_logprobs, entropy, result.d_entropy, result.scale
        )
    return PolicyLoss(loss, result.metrics)


def _check_types(x: LossInputs, backend: object) -> None:
    """Check the types that an operator needs before it can check the rest."""
    if backend is not None and not isinstance(backend, str):
        resolve_backend(OP, backend, x.logprobs)  # type: ignore[arg-type]
    for name in ("logprobs", "cu_seqlens", "old_logprobs", "advantages"):
        check.tensor(OP, name, getattr(x, name))
    for name in ("rollout_logprobs", "ref_logprobs", "entropy", "mask"):
        value = getattr(x, name)
        if value is not None:
            check.tensor(OP, name, value)


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient was computed along with it, but for the factor ``scale``."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: torch.Tensor,
        logprobs: torch.Tensor,
        d_logprobs: torch.Tensor,
        entropy: torch.Tensor | None,
        d_entropy: torch.Tensor | None,
        scale: torch.Tensor | float,
    ) -> torch.Tensor:
        ctx.save_for_backward(logprobs, d_logprobs, entropy, d_entropy)
        ctx.scale = scale
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        logprobs, d_logprobs, entropy, d_entropy = ctx.saved_tensors
        to_logprobs = to_entropy = None
        graph = torch.is_grad_enabled()  # rarely in backward: then entering no_grad is saved
        with torch.no_grad() if graph else _NOTHING:
            factor = _factor(upstream[0], ctx.scale)
            if ctx.needs_input_grad[1]:
                to_logprobs = _times(d_logprobs, factor, logprobs.dtype)
            if ctx.needs_input_grad[3]:
                if d_entropy is None:
                    to_entropy = torch.zeros_like(entropy)
                else:
                    to_entropy = _times(d_entropy, factor, entropy.dtype)
        grads = (None, to_logprobs, None, to_entropy, None, None)
        return refuse_double_backward(OP, grads, (logprobs, entropy, upstream[0]))


def _factor(upstream: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor | None:
    """The factor of the gradients; None: it is 1, as is read where that waits for nothing."""
    if scale.__class__ is not float:
        return upstream * scale
    if scale == 1.0 and upstream.__class__ is torch.Tensor and check.may_read(upstream):
        with contextlib.suppress(RuntimeError):  # under vmap it is several numbers
            if upstream.item() == 1.0:
                return None
    return upstream * scale


def _times(values: torch.Tensor, factor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    if factor is not None:
        values = values * factor
    return values if values.dtype == dtype else values.to(dtype)
