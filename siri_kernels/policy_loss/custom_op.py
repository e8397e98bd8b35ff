"""``policy_loss`` as a ``torch.library`` operator, which ``torch.compile`` keeps in its graph.

Eager calls go through :mod:`.api` instead, which costs less a call. :mod:`siri_kernels._compiled`
describes the arguments of operators and when they check.
"""

from __future__ import annotations

from typing import Any

import torch

from siri_kernels import _checks as check
from siri_kernels._compiled import is_number, numbers_in_graph
from siri_kernels.policy_loss.compute import compute
from siri_kernels.policy_loss.formulas import OBJECTIVES
from siri_kernels.policy_loss.objectives import BY_HAND
from siri_kernels.policy_loss.types import (
    ROLLOUT_CORRECTIONS,
    LossInputs,
    PolicyLoss,
    RolloutCorrection,
    metric_names,
)
from siri_kernels.policy_loss.validate import CHOICES, OP, checked_options

# The numbers among the options, in the order of the operator's tensor; NONEABLE ones may be None.
NUMBERS = (
    *("clip_low", "clip_high", "dual_clip", "delta", "denominator", "off_policy_threshold"),
    *("kl_coef", "kl_limit", "entropy_coef"),  # then the two of sapo_tau and of the correction
)
NONEABLE = ("dual_clip", "delta", "denominator", "off_policy_threshold", "kl_limit")

Results = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def in_graph(x: LossInputs, options: dict[str, Any], backend: str | None) -> PolicyLoss:
    """The call while it is traced.

    Args:
        x: unchecked inputs.
        options: those of :func:`checked_options`, unchecked.
        backend: as in ``policy_loss``.

    Raises:
        TypeError: an option of a type that no operator takes.
        ValueError: an option with a value that no operator takes.
    """
    objective, denominator = options["objective"], options["denominator"]
    if isinstance(objective, str) and objective in OBJECTIVES and objective not in BY_HAND:
        # An operator's inside is below autograd, which would have to differentiate the formula.
        raise ValueError(
            f"{OP}: objective={objective!r} has a formula and no derivatives by hand; under "
            "torch.compile it takes backend='reference'"
        )
    by_tensor = isinstance(denominator, torch.Tensor)
    if by_tensor:
        check.tensor(OP, "denominator", denominator)
    scalars = {**options, "denominator": None if by_tensor else denominator}
    given = [scalars[name] is not None for name in NUMBERS]
    correction = options["rollout_correction"]
    if isinstance(correction, str) and correction in ROLLOUT_CORRECTIONS:
        correction = ROLLOUT_CORRECTIONS[correction]
    tau = options["sapo_tau"]
    plain = (
        (correction is None or isinstance(correction, RolloutCorrection))
        and isinstance(tau, (tuple, list))
        and len(tau) == 2
        and isinstance(options["kl_unbiased"], bool)
    )
    values = [
        1.0 if scalars[name] is None and name in NONEABLE else scalars[name] for name in NUMBERS
    ]
    if plain:
        bounds = correction or RolloutCorrection()
        values = [*values, *tau, bounds.high, bounds.low]
    names = [options[name] for name in CHOICES]
    names += ["", ""] if correction is None or not plain else [correction.mode, correction.level]
    plain = plain and all(isinstance(name, str) for name in names)
    if not plain or not all(is_number(value) for value in values):
        # Raises; a tensor's value cannot be read here.
        checked_options(**{**options, "denominator": 1.0 if by_tensor else denominator})
    loss, _, _, _, metrics = policy_loss(
        x.logprobs,
        x.old_logprobs,
        x.advantages,
        x.cu_seqlens,
        x.mask,
        x.rollout_logprobs,
        x.ref_logprobs,
        x.entropy,
        denominator if by_tensor else None,
        numbers_in_graph(values),
        given,
        options["kl_unbiased"],
        *names,
        "" if backend is None else backend,
    )
    found = metric_names(x, given[NUMBERS.index("off_policy_threshold")])
    return PolicyLoss(loss, {name: metrics[i] for i, name in enumerate(found)})


@torch.library.custom_op("siri_kernels::policy_loss", mutates_args=())
def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    cu_seqlens: torch.Tensor,
    mask: torch.Tensor | None,
    rollout_logprobs: torch.Tensor | None,
    ref_logprobs: torch.Tensor | None,
    entropy: torch.Tensor | None,
    denominator: torch.Tensor | None,
    numbers: torch.Tensor,
    given: list[bool],
    kl_unbiased: bool,
    objective: str,
    cispo_bounds: str,
    ratio: str,
    aggregation: str,
    kl_estimator: str,
    correction_mode: str,
    correction_level: str,
    backend: str,
) -> Results:
    """See :func:`siri_kernels.policy_loss`; gives loss, gradients, their factor and metrics.

    Options that are numbers come as ``numbers`` [13] float64 on the CPU, see NUMBERS, and
    ``given`` says which of them are not None. It checks everything.
    """
    *values, positive, negative, high, low = numbers.tolist()
    options: dict[str, Any] = {
        name: value if there else None
        for name, value, there in zip(NUMBERS, values, given, strict=True)
    }
    if denominator is not None:
        options["denominator"] = denominator
    correction = None
    if correction_mode:
        correction = RolloutCorrection(correction_mode, correction_level, high, low)
    checked = checked_options(
        **options,
        objective=objective,
        cispo_bounds=cispo_bounds,
        ratio=ratio,
        aggregation=aggregation,
        kl_estimator=kl_estimator,
        kl_unbiased=kl_unbiased,
        sapo_tau=(positive, negative),
        rollout_correction=correction,
    )
    x = LossInputs(
        logprobs,
        old_logprobs,
        advantages,
        cu_seqlens,
        mask,
        rollout_logprobs,
        ref_logprobs,
        entropy,
    )
    out = compute(x, checked, backend or None)
    d_entropy = out.d_entropy
    if d_entropy is None:
        d_entropy = torch.zeros_like(out.d_logprobs[: 0 if entropy is None else None])
    # Results must not share memory; the scale may be a number, or lie where the denominator does.
    scale = torch.as_tensor(out.scale, dtype=x.dtype, device=logprobs.device).clone()
    metrics = torch.stack(list(out.metrics.values()))
    return out.loss.clone(), out.d_logprobs, d_entropy, scale, metrics


@policy_loss.register_fake
def _(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    cu_seqlens: torch.Tensor,
    mask: torch.Tensor | None,
    rollout_logprobs: torch.Tensor | None,
    ref_logprobs: torch.Tensor | None,
    entropy: torch.Tensor | None,
    denominator: torch.Tensor | None,
    numbers: torch.Tensor,
    given: list[bool],
    kl_unbiased: bool,
    objective: str,
    cispo_bounds: str,
    ratio: str,
    aggregation: str,
    kl_estimator: str,
    correction_mode: str,
    correction_level: str,
    backend: str,
) -> Results:
    x = LossInputs(
        logprobs,
        old_logprobs,
        advantages,
        cu_seqlens,
        mask,
        rollout_logprobs,
        ref_logprobs,
        entropy,
    )

    def new(*size: int) -> torch.Tensor:
        return logprobs.new_empty(size, dtype=x.dtype)

    count = len(metric_names(x, given[NUMBERS.index("off_policy_threshold")]))
    d_entropy = new(0) if entropy is None else new(*logprobs.shape)
    return new(), new(*logprobs.shape), d_entropy, new(), new(count)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    entropy = inputs[7]
    ctx.dtype, ctx.entropy_dtype = inputs[0].dtype, None if entropy is None else entropy.dtype
    ctx.save_for_backward(*output[1:4])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: torch.Tensor | None, *_: Any) -> Any:
    to_logprobs = to_entropy = None
    if upstream is not None:
        d_logprobs, d_entropy, scale = ctx.saved_tensors
        factor = upstream * scale
        if ctx.needs_input_grad[0]:
            to_logprobs = (d_logprobs * factor).to(ctx.dtype)
        if ctx.needs_input_grad[7]:
            to_entropy = (d_entropy * factor).to(ctx.entropy_dtype)
    return to_logprobs, *[None] * 6, to_entropy, *[None] * 12


policy_loss.register_autograd(_backward, setup_context=_setup_context)
