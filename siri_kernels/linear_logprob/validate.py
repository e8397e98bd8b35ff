"""Checks of the arguments of ``linear_logprob`` and ``selective_logprob``."""

from __future__ import annotations

import torch

from siri_kernels import _checks as check
from siri_kernels.linear_logprob.autograd import OP
from siri_kernels.linear_logprob.types import LogitRule


def check_tensors(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None
) -> torch.dtype:
    """Checks the tensors; the dtype in which ``hidden`` and ``weight`` are multiplied.

    Args:
        hidden: as the caller gave it, and so on.
        weight: the same.
        targets: the same.
        bias: the same.

    Raises:
        TypeError: not a tensor, or a wrong dtype.
        ValueError: a wrong shape or device.
    """
    check.tensor(OP, "hidden", hidden, holds_values=True)
    check.tensor(OP, "weight", weight)
    check.tensor(OP, "targets", targets)
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
    # Not torch.amp.is_autocast_available, which torch.compile of torch 2.11 cannot trace.
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)
    if autocast and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    if weight.dtype != hidden.dtype:
        raise TypeError(
            f"{OP}: weight must have the dtype of hidden, {hidden.dtype}, unless torch.autocast is "
            f"on; got {check.describe(weight)}. Cast the one of lower precision, as in "
            f"{_cast(hidden, weight)}, or call it under torch.autocast"
        )
    return hidden.dtype


def _cast(hidden: torch.Tensor, weight: torch.Tensor) -> str:
    """The cast to the wider of both dtypes, or of both where neither holds the other."""
    wide = torch.promote_types(hidden.dtype, weight.dtype)
    if wide == hidden.dtype:
        return f"weight.to({wide})"
    return f"hidden.to({wide})" + ("" if wide == weight.dtype else f" and weight.to({wide})")


def check_rule(
    op: str,
    temperature: float | torch.Tensor,
    softcap: float | None,
    targets: torch.Tensor,
    device: torch.device,
) -> LogitRule:
    """Checks temperature and softcap; the rule with one temperature, or a flat tensor of them.

    Args:
        op: the operation, for messages.
        temperature: as the caller gave it.
        softcap: the same.
        targets: the same.
        device: of the hidden states or logits.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, device or value.
    """
    if softcap is not None:
        softcap = check.number(op, "softcap", softcap, above=0)
    if not isinstance(temperature, torch.Tensor):
        return LogitRule(check.number(op, "temperature", temperature, above=0), softcap)
    per_token = tokens_temperature(op, temperature, targets, device)
    if check.may_read(temperature):
        good = (temperature > 0) & temperature.isfinite()
        if not bool(good.all()):
            raise ValueError(
                f"{op}: temperature must hold finite numbers > 0; got "
                f"{float(temperature[~good][0]):g}"
            )
    return LogitRule(per_token, softcap)


def tokens_temperature(
    op: str, temperature: torch.Tensor, targets: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """A tensor of temperatures as [T], one per token: of one element, or broadcast to the targets.

    It must have as many dimensions as the targets, so that no [L] is taken for one of each column.

    Args:
        op: the operation, for messages.
        temperature: as the caller gave it.
        targets: the same.
        device: of the hidden states or logits.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, or it requires a gradient.
    """
    check.tensor(op, "temperature", temperature)
    check.dtype(op, "temperature", temperature)
    check.device(op, "temperature", temperature, "hidden", device)
    if temperature.requires_grad:
        raise ValueError(
            f"{op}: temperature gets no gradient; pass temperature.detach(), or divide before"
        )
    if temperature.numel() == 1:
        temperature = temperature.reshape(())
    elif temperature.dim() != targets.dim() or not all(
        given in (1, wanted) for given, wanted in zip(temperature.shape, targets.shape, strict=True)
    ):
        raise ValueError(
            f"{op}: temperature must have shape that of targets, {list(targets.shape)}, with 1 in "
            f"place of any size, or one element; got {check.describe(temperature)}"
        )
    return temperature.expand(targets.shape).reshape(-1)


def check_targets(op: str, targets: torch.Tensor, vocabulary: int, ignore_index: int) -> int:
    """Checks the targets' values, where they may be read; ``ignore_index`` as Python's own int.

    Args:
        op: the operation, for messages.
        targets: [...] int64.
        vocabulary: number of ids, over all shards.
        ignore_index: as the caller gave it.

    Raises:
        TypeError: ``ignore_index`` is not an int.
        ValueError: a target out of range.
    """
    ignore_index = check.integer(op, "ignore_index", ignore_index)
    if not check.may_read(targets):
        return ignore_index
    bad = ((targets < 0) | (targets >= vocabulary)) & (targets != ignore_index)
    if bool(bad.any()):
        raise ValueError(
            f"{op}: targets must lie in 0..{vocabulary - 1} or be ignore_index = {ignore_index}; "
            f"got {int(targets[bad][0])} ({int(bad.sum())} out of range)"
        )
    return ignore_index
