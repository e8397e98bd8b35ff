"""``policy_loss``: the public function, its checks and its autograd."""

from __future__ import annotations

from typing import Any

import torch

from siri_kernels import _checks as check
from siri_kernels import varlen
from siri_kernels._autograd import refuse_double_backward
from siri_kernels._backend import resolve_backend
from siri_kernels.policy_loss import portable, reference
from siri_kernels.policy_loss.types import LossInputs, LossOptions, PolicyLoss

OP = "policy_loss"
OBJECTIVES = ("clip", "cispo", "sapo", "gmpo", "reinforce")
RATIOS = ("token", "sequence")
AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "token-sum-norm")
KL_ESTIMATORS = ("k1", "k2", "k3")


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
    ratio: str = "token",
    aggregation: str = "token-mean",
    denominator: float | torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    rollout_logprobs: torch.Tensor | None = None,
    rollout_correction: Any = None,
    ref_logprobs: torch.Tensor | None = None,
    kl_coef: float = 0.0,
    kl_estimator: str = "k3",
    entropy: torch.Tensor | None = None,
    entropy_coef: float = 0.0,
    backend: str | None = None,
) -> PolicyLoss:
    """Clipped policy-gradient loss of packed answers, with its metrics.

    Per token ``-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`` with
    ``r = exp(logprobs - old_logprobs)`` (PPO, arXiv 1707.06347 eq. 7; decoupled bounds: DAPO,
    arXiv 2503.14476, "clip-higher"; SIRI, arXiv 2509.25176 section 3.2), plus ``kl_coef`` times an
    estimate of the KL to a reference, minus ``entropy_coef`` times the entropy; then aggregated.
    Log-ratios are clamped to +-20 before exp, as in verl; beyond, the gradient is 0.

    Args:
        logprobs: [T] floating point, of the policy that learns. The loss is differentiable with
            respect to it and to ``entropy``, once, and to nothing else.
        old_logprobs: [T], of the policy that the step started from.
        advantages: [B], one a sequence, or [T]. Where T = B it is read as [B].
        cu_seqlens: [B+1] int32, flash-attention's convention: 0 first, never falling, T last.
            A sequence may have length 0.
        objective: "clip"; "cispo", "sapo", "gmpo" and "reinforce" are not there yet.
        clip_low, clip_high: numbers >= 0, clip_low <= 1.
        dual_clip: number > 1: where A < 0 the loss is at most ``-dual_clip * A``
            (arXiv 1912.09729; verl uses 3, its DAPO recipe 10). None: off.
        ratio: "token"; or "sequence": GSPO-token (arXiv 2507.18071 section 4.3), the geometric mean
            of the sequence's counted ratios, of which every token takes its own gradient.
        aggregation: verl's names. With m counted tokens in all and n non-empty sequences (those
            with a counted token): "token-mean": sum over tokens / m; "seq-mean-token-mean": sum
            over sequences of their mean / n; "seq-mean-token-sum": sum over tokens / n;
            "token-sum-norm": sum over tokens / denominator (Dr. GRPO, arXiv 2503.20783).
        denominator: number or 0-d tensor > 0 in place of m or n: the count of the whole optimiser
            step, when this call sees a part of it. "token-sum-norm" requires it.
        mask: [T] bool, tokens that count; None: all. Whatever the other tensors hold elsewhere,
            infinity and NaN included, has no influence.
        rollout_logprobs: [T], as the sampler reported them; for metrics.
        rollout_correction: not there yet: None.
        ref_logprobs: [T], of the reference policy.
        kl_coef: number >= 0; above 0 it needs ``ref_logprobs``.
        kl_estimator: with d = logprobs - ref_logprobs: "k1": d; "k2": d^2 / 2; "k3":
            exp(-d) - 1 + d. Clamped to +-20 like the log-ratio.
        entropy: [T] nats, of the policy that learns; for its metric and bonus.
        entropy_coef: number; other than 0 it needs ``entropy``.
        backend: None (fastest there is: today portable), "portable" or "reference"; "triton" is
            not there yet.

    Returns:
        PolicyLoss: loss 0-d, float32 (float64 for float64 logprobs), and metrics, 0-d and without
        gradient, means over this call's counted tokens whatever the denominator (0 without any):
        clip_frac_low: r < 1 - clip_low and A < 0; clip_frac_high: r > 1 + clip_high and A > 0;
        ratio_mean and ratio_max of r; approx_kl: r - 1 - log r of token ratios, an estimate of
        KL(old || policy); tokens: how many count; entropy, if given; and with rollout_logprobs,
        rollout_kl: w - 1 - log w with w = exp(old_logprobs - rollout_logprobs), an estimate of
        KL(rollout || old), and rollout_weight_mean of w. Without a counted token the loss and its
        gradient are 0. No call waits for a GPU.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape, device or value, an unknown option, a missing denominator,
            ref_logprobs or entropy; cu_seqlens that fall or do not end at T (read on a CPU,
            elsewhere under ``SIRI_KERNELS_CHECK=1``).
        NotImplementedError: what is not there yet, double backward.
    """
    backend = resolve_backend(OP, backend)
    check.choice(OP, "objective", objective, OBJECTIVES)
    if objective != "clip":
        raise NotImplementedError(
            f"{OP}: objective={objective!r} is not there yet (see CHANGELOG.md and issue 4 of the "
            "roadmap); 'clip' is"
        )
    if rollout_correction is not None:
        raise NotImplementedError(
            f"{OP}: rollout_correction is not there yet (see CHANGELOG.md and issue 4 of the "
            "roadmap); None is, and rollout_logprobs for metrics"
        )
    options = _options(
        clip_low,
        clip_high,
        dual_clip,
        ratio,
        aggregation,
        denominator,
        kl_coef,
        kl_estimator,
        entropy_coef,
    )
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
    _check(inputs, options)
    if backend == "reference":
        return reference.policy_loss(inputs, options)
    with torch.no_grad():
        result = portable.policy_loss(inputs, options)
    loss = _WithGradient.apply(result.loss, logprobs, result.d_logprobs, entropy, result.d_entropy)
    return PolicyLoss(loss, result.metrics)


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient was computed along with it."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: torch.Tensor,
        logprobs: torch.Tensor,
        d_logprobs: torch.Tensor,
        entropy: torch.Tensor | None,
        d_entropy: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(logprobs, d_logprobs, entropy, d_entropy)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        logprobs, d_logprobs, entropy, d_entropy = ctx.saved_tensors
        to_logprobs = to_entropy = None
        with torch.no_grad():
            if ctx.needs_input_grad[1]:
                to_logprobs = (d_logprobs * upstream[0]).to(logprobs.dtype)
            if ctx.needs_input_grad[3]:
                if d_entropy is None:
                    to_entropy = torch.zeros_like(entropy)
                else:
                    to_entropy = (d_entropy * upstream[0]).to(entropy.dtype)
        grads = (None, to_logprobs, None, to_entropy, None)
        return refuse_double_backward(OP, grads, (logprobs, entropy, upstream[0]))


def _options(
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    ratio: str,
    aggregation: str,
    denominator: float | torch.Tensor | None,
    kl_coef: float,
    kl_estimator: str,
    entropy_coef: float,
) -> LossOptions:
    clip_low = check.number(OP, "clip_low", clip_low, at_least=0, at_most=1)
    clip_high = check.number(OP, "clip_high", clip_high, at_least=0)
    if dual_clip is not None:
        dual_clip = check.number(OP, "dual_clip", dual_clip, above=1)
    check.choice(OP, "ratio", ratio, RATIOS)
    check.choice(OP, "aggregation", aggregation, AGGREGATIONS)
    check.choice(OP, "kl_estimator", kl_estimator, KL_ESTIMATORS)
    kl_coef = check.number(OP, "kl_coef", kl_coef, at_least=0)
    entropy_coef = check.number(OP, "entropy_coef", entropy_coef)
    if aggregation == "token-sum-norm" and denominator is None:
        raise ValueError(
            f"{OP}: denominator must be a number > 0 with aggregation='token-sum-norm'; got None"
        )
    if isinstance(denominator, torch.Tensor):
        if denominator.dim() != 0:
            raise ValueError(
                f"{OP}: denominator must be a number or a 0-d tensor; got "
                f"{check.describe(denominator)}"
            )
        denominator = denominator.detach()
        if check.may_read(denominator):
            check.number(OP, "denominator", denominator.item(), above=0)
    elif denominator is not None:
        denominator = check.number(OP, "denominator", denominator, above=0)
    return LossOptions(
        clip_low,
        clip_high,
        dual_clip,
        ratio,
        aggregation,
        denominator,
        kl_coef,
        kl_estimator,
        entropy_coef,
    )


def _check(x: LossInputs, options: LossOptions) -> None:
    check.tensor(OP, "logprobs", x.logprobs)
    check.dtype(OP, "logprobs", x.logprobs)
    if x.logprobs.dim() != 1:
        raise ValueError(f"{OP}: logprobs must have shape [T]; got {check.describe(x.logprobs)}")
    total, device = len(x.logprobs), x.logprobs.device
    check.tensor(OP, "cu_seqlens", x.cu_seqlens)
    check.device(OP, "cu_seqlens", x.cu_seqlens, "logprobs", device)
    varlen.check_cu_seqlens(x.cu_seqlens, total, op=OP)
    for name in ("old_logprobs", "rollout_logprobs", "ref_logprobs", "entropy"):
        value = getattr(x, name)
        if value is not None or name == "old_logprobs":
            check.tensor(OP, name, value)
            check.dtype(OP, name, value)
            check.device(OP, name, value, "logprobs", device)
            check.shape(OP, name, value, x.logprobs.shape, "that of logprobs, [T]")
    if x.mask is not None:
        check.tensor(OP, "mask", x.mask)
        check.dtype(OP, "mask", x.mask, (torch.bool,))
        check.device(OP, "mask", x.mask, "logprobs", device)
        check.shape(OP, "mask", x.mask, x.logprobs.shape, "that of logprobs, [T]")
    check.tensor(OP, "advantages", x.advantages)
    check.dtype(OP, "advantages", x.advantages)
    check.device(OP, "advantages", x.advantages, "logprobs", device)
    sequences = len(x.cu_seqlens) - 1
    if x.advantages.dim() != 1 or len(x.advantages) not in (sequences, total):
        raise ValueError(
            f"{OP}: advantages must have shape [B] = [{sequences}] or [T] = [{total}]; got "
            f"{check.describe(x.advantages)}"
        )
    if options.kl_coef != 0 and x.ref_logprobs is None:
        raise ValueError(f"{OP}: ref_logprobs must be given with kl_coef={options.kl_coef}")
    if options.entropy_coef != 0 and x.entropy is None:
        raise ValueError(f"{OP}: entropy must be given with entropy_coef={options.entropy_coef}")
    if isinstance(options.denominator, torch.Tensor) and options.denominator.device.type != "cpu":
        check.device(OP, "denominator", options.denominator, "logprobs", device)
