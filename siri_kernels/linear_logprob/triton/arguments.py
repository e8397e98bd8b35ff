"""Arguments of the kernels, made from a :class:`siri_kernels.linear_logprob.call.HeadCall`.

Kernels read everything of one dimension as contiguous.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.triton.kernel_math import LOG2_E
from siri_kernels.linear_logprob.types import LogitRule

GEMM = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def prepared(call: HeadCall) -> HeadCall:
    """The call as kernels take it.

    Targets are relative to the shard's first id, whatever has one dimension is contiguous, and
    temperatures are float32.
    """
    call, rule = call.local(), call.rule
    if isinstance(rule.temperature, torch.Tensor):
        rule = LogitRule(rule.temperature.float().contiguous(), rule.softcap)
    bias = None if call.bias is None else call.bias.contiguous()
    return call._replace(targets=call.targets.contiguous(), bias=bias, rule=rule)


def constants(call: HeadCall) -> dict[str, Any]:
    """Constants of the kernels that turn products into logits."""
    return {"BIAS": call.bias is not None, **rule_constants(call)}


def rule_constants(call: HeadCall) -> dict[str, Any]:
    """Constants of the kernels that are given logits."""
    return {
        "PER_ROW": isinstance(call.rule.temperature, torch.Tensor),
        "SOFTCAP": call.rule.softcap is not None,
    }


def softcap(call: HeadCall) -> tuple[float, float]:
    """The softcap and its inverse."""
    cap = call.rule.softcap or 1.0
    return cap, 1.0 / cap


def scale(call: HeadCall) -> float | torch.Tensor:
    """``log2(e) / temperature``: a number, or [T] float32."""
    return LOG2_E / call.rule.temperature


def pointer(tensor: torch.Tensor | None, otherwise: torch.Tensor) -> torch.Tensor:
    """``tensor``, or any other where a constant of the kernel says that there is none."""
    return otherwise if tensor is None else tensor


def of_tokens(value: Any, tokens: slice) -> Any:
    """The part of ``value`` [T, ...] that belongs to these tokens; a number as it is."""
    return value[tokens] if isinstance(value, torch.Tensor) else value
