"""``linear_logprob``: the public function, its checks and its autograd."""

from __future__ import annotations

from typing import Any

import torch

from siri_kernels import _checks as check
from siri_kernels._autograd import untraced
from siri_kernels._backend import resolve_backend
from siri_kernels.linear_logprob import reference
from siri_kernels.linear_logprob.op import OP, LinearLogprob, Plan, no_autocast
from siri_kernels.linear_logprob.slots import slots_for
from siri_kernels.linear_logprob.types import LogitRule, LogprobOutput


@untraced
def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    temperature: float | torch.Tensor = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    tail: float = 1e-2,
    backend: str | None = None,
    process_group: Any = None,
) -> LogprobOutput:
    """Log-prob of each target and entropy of each distribution, without storing logits.

    With ``raw = hidden @ weight.T + bias``, the logits are, in this order, ``raw``, then
    ``softcap * tanh(raw / softcap)`` where a softcap is given, then divided by ``temperature``.
    Returns ``log_softmax(logits)[target]`` and ``-sum p log p`` of every row. No tensor of the size
    of the logits ever exists, in forward or backward.

    Args:
        hidden: [..., D] bfloat16, float16, float32 or float64, any strides.
        weight: [V, D], dtype of ``hidden``; under ``torch.autocast`` the two may differ and are
            multiplied in autocast's dtype.
        targets: [...] int64, each in 0..V-1 or ``ignore_index``.
        bias: [V] floating point, added before the softcap.
        temperature: number > 0, or a tensor [...] of them, one per token. It gets no gradient: a
            tensor that requires one is refused.
        softcap: number > 0, as ``final_logit_softcapping`` of Gemma; None: no cap.
        ignore_index: rows with this target are skipped: results 0, gradients 0, nothing computed
            on a CPU, and a NaN in them goes nowhere.
        tail: the most relative L1 error that backward may make in the gradient of the raw logits
            of this call, a finite number >= 0; 0: none. Forward keeps a short list of the entries
            of each row that matter, and backward recomputes only the rows whose left-out mass
            would cost too much (see :mod:`.certificate`;
            :func:`~siri_kernels.linear_logprob.take_backward_stats` says how many). Small
            vocabularies, and "portable" on a GPU, are recomputed whole.
        backend: None (fastest there is: "triton" on a GPU but for float64, else "portable"),
            "triton" (forward does not wait for the GPU, backward reads two numbers once),
            "portable" or "reference".
        process_group: vocabulary-parallel shards of ``weight``; not there yet.

    Returns:
        LogprobOutput: logprobs [...] and entropy [...], in nats, float32 (float64 if ``hidden`` is
        float64), both differentiable once with respect to ``hidden``, ``weight`` and ``bias``.
        Log-probs are never above 0 and keep their relative precision where ``1 - p`` is below the
        rounding of fp32. Gradients are accumulated in fp32 and rounded once. Backward skips rows
        whose incoming gradients are exactly zero, and inputs that need no gradient. A row with a
        NaN gives NaN for itself alone. Runs on the same machine with the same number of threads
        repeat bit for bit.

    Raises:
        TypeError: wrong type or dtype, or ``hidden`` and ``weight`` differ outside autocast.
        ValueError: wrong shape, device or value, a target out of range (checked on a CPU, elsewhere
            under ``SIRI_KERNELS_CHECK=1``), an unknown backend.
        NotImplementedError: ``process_group``, double backward.
    """
    asked, backend = backend, resolve_backend(OP, backend, hidden)
    gemm_dtype = _check(hidden, weight, targets, bias)
    if backend == "triton" and gemm_dtype == torch.float64:
        if asked is not None:
            raise ValueError(
                f"{OP}: backend='triton' takes bfloat16, float16 and float32; got hidden "
                f"{check.describe(hidden)}; backend=None and 'portable' take float64"
            )
        backend = "portable"
    rule = check_rule(OP, temperature, softcap, targets, hidden.device)
    check_targets(OP, targets, weight.shape[0], ignore_index)
    tail = check.number(OP, "tail", tail, at_least=0)
    if process_group is not None:
        raise NotImplementedError(
            f"{OP}: process_group (vocabulary-parallel weight) is not there yet; it takes None"
        )
    lead = targets.shape
    rows, flat = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if backend == "reference":
        with no_autocast(hidden.device):
            rows, weight = rows.to(gemm_dtype), weight.to(gemm_dtype)
            out = reference.linear_logprob(rows, weight, flat, bias, rule, ignore_index)
    else:
        triton = backend == "triton"
        lists = triton or hidden.device.type == "cpu"  # elsewhere they would read sizes
        slots = _slots((hidden, weight, bias), tail) if lists else 0
        plan = Plan(rule, ignore_index, gemm_dtype, tail, slots, triton)
        out = LogprobOutput(*LinearLogprob.apply(rows, weight, flat, bias, plan))
    return LogprobOutput(out.logprobs.view(lead), out.entropy.view(lead))


def _slots(inputs: tuple[torch.Tensor | None, ...], tail: float) -> int:
    needed = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    weight = inputs[1]
    assert weight is not None
    return slots_for(len(weight), tail, needed)


# Checks


def _check(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None
) -> torch.dtype:
    """Checks the tensors; the dtype in which ``hidden`` and ``weight`` are multiplied."""
    for name, value in (("hidden", hidden), ("weight", weight), ("targets", targets)):
        check.tensor(OP, name, value)
    check.dtype(OP, "hidden", hidden)
    check.dtype(OP, "weight", weight)
    check.device(OP, "weight", weight, "hidden", hidden.device)
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(
            f"{OP}: weight must have shape [V, D] with V, D >= 1; got {check.describe(weight)}"
        )
    if hidden.dim() == 0 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{OP}: hidden must have shape [..., D] with D = {weight.shape[1]}, the width of "
            f"weight; got {check.describe(hidden)}"
        )
    check.dtype(OP, "targets", targets, (torch.int64,))
    check.device(OP, "targets", targets, "hidden", hidden.device)
    check.shape(OP, "targets", targets, hidden.shape[:-1], "hidden.shape[:-1]")
    if bias is not None:
        check.tensor(OP, "bias", bias)
        check.dtype(OP, "bias", bias)
        check.device(OP, "bias", bias, "hidden", hidden.device)
        check.shape(OP, "bias", bias, weight.shape[:1], "[V]")
    kind = hidden.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if autocast and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    if weight.dtype != hidden.dtype:
        raise TypeError(
            f"{OP}: weight must have the dtype of hidden, {hidden.dtype}, unless torch.autocast is "
            f"on; got {check.describe(weight)}"
        )
    return hidden.dtype


def check_rule(
    op: str,
    temperature: float | torch.Tensor,
    softcap: float | None,
    targets: torch.Tensor,
    device: torch.device,
) -> LogitRule:
    """Checks temperature and softcap; the rule with one temperature, or a flat tensor of them."""
    if softcap is not None:
        softcap = check.number(op, "softcap", softcap, above=0)
    if not isinstance(temperature, torch.Tensor):
        return LogitRule(check.number(op, "temperature", temperature, above=0), softcap)
    check.dtype(op, "temperature", temperature)
    check.device(op, "temperature", temperature, "hidden", device)
    if temperature.dim() > 0:
        check.shape(op, "temperature", temperature, targets.shape, "that of targets")
    if temperature.requires_grad:
        raise ValueError(
            f"{op}: temperature gets no gradient; pass temperature.detach(), or divide before"
        )
    if check.may_read(temperature) and not bool(((temperature > 0) & temperature.isfinite()).all()):
        raise ValueError(f"{op}: temperature must hold finite numbers > 0; got {temperature}")
    return LogitRule(temperature.expand(targets.shape).reshape(-1), softcap)


def check_targets(op: str, targets: torch.Tensor, vocabulary: int, ignore_index: int) -> None:
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(
            f"{op}: ignore_index must be an int; got {ignore_index!r} "
            f"({type(ignore_index).__name__})"
        )
    if not check.may_read(targets):
        return
    bad = ((targets < 0) | (targets >= vocabulary)) & (targets != ignore_index)
    if bool(bad.any()):
        raise ValueError(
            f"{op}: targets must lie in 0..{vocabulary - 1} or be ignore_index = {ignore_index}; "
            f"got {int(targets[bad][0])} ({int(bad.sum())} out of range)"
        )
