"""What every launch is given: the rows, and what turns them into logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from siri_kernels.linear_logprob.triton.kernel_math import LOG2_E
from siri_kernels.linear_logprob.types import LogitRule


class Problem(NamedTuple):
    """The rows, and what turns them into logits. Kernels read everything 1-D as contiguous."""

    hidden: torch.Tensor  # [T, D], any strides
    weight: torch.Tensor  # [V, D], any strides
    targets: torch.Tensor  # [T]
    bias: torch.Tensor | None
    rule: LogitRule
    gemm_dtype: torch.dtype

    @staticmethod
    def of(
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        bias: torch.Tensor | None,
        rule: LogitRule,
        gemm_dtype: torch.dtype,
    ) -> Problem:
        """The only way in: whatever the strides of the 1-D tensors are."""
        if isinstance(rule.temperature, torch.Tensor):
            rule = LogitRule(rule.temperature.float().contiguous(), rule.softcap)
        bias = None if bias is None else bias.contiguous()
        return Problem(hidden, weight, targets.contiguous(), bias, rule, gemm_dtype)

    def options(self) -> dict[str, bool]:
        """Constants of the kernels that make logits of products."""
        return {"BIAS": self.bias is not None, **self.rule_options()}

    def rule_options(self) -> dict[str, bool]:
        return {
            "PER_ROW": isinstance(self.rule.temperature, torch.Tensor),
            "SOFTCAP": self.rule.softcap is not None,
        }

    def softcap(self) -> tuple[float, float]:
        """The softcap and its inverse."""
        cap = self.rule.softcap or 1.0
        return cap, 1.0 / cap

    def scale(self) -> float | torch.Tensor:
        """``log2(e) / temperature``: a number, or [T] float32."""
        t = self.rule.temperature
        return LOG2_E / t

    def some_bias(self, otherwise: torch.Tensor) -> torch.Tensor:
        """A pointer for the kernels, which read it only if there is a bias."""
        return otherwise if self.bias is None else self.bias

    def rows(self, index: torch.Tensor) -> Problem:
        return self._replace(
            hidden=self.hidden[index], targets=self.targets[index], rule=self.rule.rows(index)
        )


def row_part(value: Any, rows: slice) -> Any:
    """The rows of what there is one a row of; a number as it is."""
    return value[rows] if isinstance(value, torch.Tensor) else value
