"""Checks of the policy loss's arguments, each alone and against each other."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch

from siri_kernels import _checks as check
from siri_kernels import varlen
from siri_kernels.policy_loss.formulas import OBJECTIVES
from siri_kernels.policy_loss.types import (
    ROLLOUT_CORRECTIONS,
    LossInputs,
    LossOptions,
    RolloutCorrection,
)

OP = "policy_loss"
RATIOS = ("token", "sequence")
AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "token-sum-norm")
KL_ESTIMATORS = ("k1", "k2", "k3")
CISPO_BOUNDS = ("verl", "trl")
CORRECTION_MODES = ("truncate", "mask", "reject")
CORRECTION_LEVELS = ("token", "sequence", "geometric")


# The options that are one of several names, and the names.
CHOICES = {
    "objective": OBJECTIVES,
    "cispo_bounds": CISPO_BOUNDS,
    "ratio": RATIOS,
    "aggregation": AGGREGATIONS,
    "kl_estimator": KL_ESTIMATORS,
}


_SEEN: dict[tuple[Any, ...], LossOptions] = {}
_MOST_SEEN = 256


def options_of(given: dict[str, Any]) -> LossOptions:
    """:func:`checked_options`, which checks equal options of equal types once.

    Args:
        given: its arguments, all of them, in any order that does not change.

    Raises:
        TypeError: wrong type.
        ValueError: wrong value, or options that exclude each other.
    """
    correction, tau = given["rollout_correction"], given["sapo_tau"]
    denominator, aggregation = given["denominator"], given["aggregation"]
    # Without the denominator, another one in every step; with the types: True is equal to 1, and is
    # refused where a number is taken.
    values = tuple([value for name, value in given.items() if name != "denominator"])
    key = (values, *map(type, values))
    if type(tau) is tuple:
        key += tuple(map(type, tau))
    if type(correction) is RolloutCorrection:
        key += (type(correction.low), type(correction.high))
    try:
        seen = _SEEN.get(key)
    except Exception:  # a value without a hash, or that cannot be compared
        seen = None
    if seen is None or given["objective"] not in OBJECTIVES:
        checked = checked_options(**given)
        if len(_SEEN) >= _MOST_SEEN:
            _SEEN.clear()
        with contextlib.suppress(TypeError):
            _SEEN[key] = checked.constant
        return checked
    if denominator is None and aggregation != "token-sum-norm":
        return seen
    return seen.with_denominator(_denominator(denominator, aggregation))


def checked_options(
    *,
    objective: Any,
    clip_low: Any,
    clip_high: Any,
    dual_clip: Any,
    delta: Any,
    cispo_bounds: Any,
    sapo_tau: Any,
    ratio: Any,
    aggregation: Any,
    denominator: Any,
    rollout_correction: Any,
    off_policy_threshold: Any,
    kl_coef: Any,
    kl_estimator: Any,
    kl_unbiased: Any,
    kl_limit: Any,
    entropy_coef: Any,
) -> LossOptions:
    """See :func:`siri_kernels.policy_loss` for the options; here they are checked.

    Raises:
        TypeError: wrong type.
        ValueError: wrong value, or options that exclude each other.
    """
    check.choice(OP, "objective", objective, tuple(OBJECTIVES))
    in_log_space = objective == "gmpo"
    clip_low = check.number(
        OP, "clip_low", clip_low, at_least=0, at_most=None if in_log_space else 1
    )
    clip_high = check.number(OP, "clip_high", clip_high, at_least=0)
    if dual_clip is not None:
        dual_clip = check.number(OP, "dual_clip", dual_clip, above=1)
    if delta is not None:
        delta = check.number(OP, "delta", delta, at_least=1 + clip_high)
        if dual_clip is not None:
            raise ValueError(f"{OP}: delta and dual_clip cap the same loss; give one of them")
    check.choice(OP, "cispo_bounds", cispo_bounds, CISPO_BOUNDS)
    check.choice(OP, "ratio", ratio, RATIOS)
    check.choice(OP, "aggregation", aggregation, AGGREGATIONS)
    check.choice(OP, "kl_estimator", kl_estimator, KL_ESTIMATORS)
    kl_unbiased = check.flag(OP, "kl_unbiased", kl_unbiased)
    if kl_limit is not None:
        kl_limit = check.number(OP, "kl_limit", kl_limit, above=0)
    if off_policy_threshold is not None:
        off_policy_threshold = check.number(OP, "off_policy_threshold", off_policy_threshold)
    return LossOptions(
        objective,
        clip_low,
        clip_high,
        dual_clip,
        delta,
        cispo_bounds,
        _tau(sapo_tau),
        ratio,
        aggregation,
        _denominator(denominator, aggregation),
        _correction(rollout_correction),
        off_policy_threshold,
        check.number(OP, "kl_coef", kl_coef, at_least=0),
        kl_estimator,
        kl_unbiased,
        kl_limit,
        check.number(OP, "entropy_coef", entropy_coef),
    )


def _tau(value: Any) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(
            f"{OP}: sapo_tau must be two numbers, for A > 0 and A <= 0; got {check.shown(value)}"
        )
    positive, negative = (check.number(OP, "sapo_tau", tau, above=0) for tau in value)
    return positive, negative


def _denominator(value: Any, aggregation: str) -> float | torch.Tensor | None:
    if value is None:
        if aggregation == "token-sum-norm":
            raise ValueError(
                f"{OP}: denominator must be a number with aggregation='token-sum-norm'; got None"
            )
        return None
    if not isinstance(value, torch.Tensor):
        # A step without tokens: loss and gradient are 0.
        return check.number(OP, "denominator", value, at_least=0) or math.inf
    check.tensor(OP, "denominator", value)
    if value.dim() != 0:
        raise ValueError(
            f"{OP}: denominator must be a number or a 0-d tensor; got {check.describe(value)}"
        )
    check.dtype(OP, "denominator", value, (*check.FLOATS, *check.INTEGERS))
    value = value.detach()
    if check.may_read(value):
        check.number(OP, "denominator", value.item(), at_least=0)
    return value


def _correction(value: Any) -> RolloutCorrection | None:
    if value is None:
        return None
    name = "rollout_correction"
    if isinstance(value, str):
        check.choice(OP, name, value, tuple(ROLLOUT_CORRECTIONS))
        return ROLLOUT_CORRECTIONS[value]
    if not isinstance(value, RolloutCorrection):
        raise TypeError(
            f"{OP}: {name} must be None, a RolloutCorrection or one of "
            f"{', '.join(map(repr, ROLLOUT_CORRECTIONS))}; got {type(value).__name__}"
        )
    check.choice(OP, f"{name}.mode", value.mode, CORRECTION_MODES)
    check.choice(OP, f"{name}.level", value.level, CORRECTION_LEVELS)
    high = check.number(OP, f"{name}.high", value.high, above=0)
    low = check.number(OP, f"{name}.low", value.low, at_least=0, at_most=high)
    return RolloutCorrection(value.mode, value.level, high, low)


def check_inputs(x: LossInputs, options: LossOptions, *, values: bool = True) -> None:
    """Check the tensors, and that the options have the tensors that they need.

    Args:
        x: the tensors.
        options: checked.
        values: also those of cu_seqlens, where they may be read; else the caller does that.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape or device, or a tensor is missing.
    """
    if not _usual(x):
        _check_each(x)
    elif values:
        varlen.check_cu_seqlens(x.cu_seqlens, len(x.logprobs), op=OP)
    if options.with_kl and x.ref_logprobs is None:
        raise ValueError(f"{OP}: ref_logprobs must be given with kl_coef={options.kl_coef}")
    if options.entropy_coef != 0 and x.entropy is None:
        raise ValueError(f"{OP}: entropy must be given with entropy_coef={options.entropy_coef}")
    if options.correction is not None and x.rollout_logprobs is None:
        raise ValueError(f"{OP}: rollout_logprobs must be given with rollout_correction")
    if isinstance(options.denominator, torch.Tensor) and options.denominator.device.type != "cpu":
        check.device(OP, "denominator", options.denominator, "logprobs", x.logprobs.device)


# Without a subclass, which may hold no values or be distributed.
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _usual(x: LossInputs) -> bool:
    """Whether all checks of :func:`_check_each` hold but for cu_seqlens' values, in a microsecond.

    False may also be an unusual input that is right.
    """
    logprobs, offsets, advantages, mask = x.logprobs, x.cu_seqlens, x.advantages, x.mask
    if not (_dense(logprobs) and _dense(offsets) and _dense(advantages)):
        return False
    device, shape = logprobs.device, logprobs.shape
    if (
        len(shape) != 1
        or logprobs.dtype not in check.FLOATS
        or device.type == "meta"
        or offsets.dtype != torch.int32
        or offsets.device != device
        or offsets.dim() != 1
        or offsets.size(0) == 0
        or advantages.dtype not in check.FLOATS
        or advantages.device != device
        or advantages.dim() != 1
        or advantages.size(0) not in (offsets.size(0) - 1, shape[0])
    ):
        return False
    for value in (x.old_logprobs, x.rollout_logprobs, x.ref_logprobs, x.entropy):
        if value is None:
            if x.old_logprobs is None:
                return False
        elif not (
            _dense(value)
            and value.dtype in check.FLOATS
            and value.device == device
            and value.shape == shape
        ):
            return False
    return mask is None or (
        _dense(mask) and mask.dtype == torch.bool and mask.device == device and mask.shape == shape
    )


def _dense(value: object) -> bool:
    return type(value) in _PLAIN and value.layout is torch.strided and not value.is_nested  # type: ignore[attr-defined]


def _check_each(x: LossInputs) -> None:
    """Check each tensor; the errors say what is wrong with it."""
    check.tensor(OP, "logprobs", x.logprobs, holds_values=True)
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
    if x.advantages.dim() != 1 or len(x.advantages) not in (x.sequences, total):
        raise ValueError(
            f"{OP}: advantages must have shape [B] = [{x.sequences}] or [T] = [{total}]; got "
            f"{check.describe(x.advantages)}"
        )
