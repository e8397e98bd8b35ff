"""One call of ``linear_logprob``: what every function from the API to a kernel is given."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from siri_kernels.linear_logprob.screen.options import Screen
from siri_kernels.linear_logprob.types import LogitRule
from siri_kernels.linear_logprob.vocab_parallel import Shard

_SAVED_BY_AUTOGRAD: Any = None


class HeadCall(NamedTuple):
    """The checked arguments of one call, flattened to T tokens.

    Attributes:
        hidden: [T, D], any strides.
        weight: [V, D], any strides; with ``shard`` this rank's part of the vocabulary.
        targets: [T] int64.
        bias: [V], or None.
        rule: softcap and temperature.
        ignore_index: targets with this value are masked.
        gemm_dtype: dtype in which ``hidden`` and ``weight`` are multiplied.
        tail: largest relative L1 error of the logit gradient that backward may make.
        entries: top entries that forward saves of each token (see
            :mod:`siri_kernels.linear_logprob.top_entries`). 0: none, backward recomputes all.
        triton: whether the Triton kernels compute; else PyTorch's operations.
        shard: this rank's place in a vocabulary-parallel head; None: ``weight`` is whole.
        screen: of forward; None: every logit is exact.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    bias: torch.Tensor | None
    rule: LogitRule
    ignore_index: int
    gemm_dtype: torch.dtype
    tail: float
    entries: int
    triton: bool
    shard: Shard | None = None
    screen: Screen | None = None

    @property
    def accumulator(self) -> torch.dtype:
        """The dtype of logits, sums and accumulated gradients."""
        return accumulator_of(self.gemm_dtype)

    @property
    def hidden_grad_dtype(self) -> torch.dtype:
        """The dtype of this rank's gradient of ``hidden``: a shard's is one term of a sum."""
        return self.hidden.dtype if self.shard is None else self.accumulator

    def unmasked(self) -> torch.Tensor:
        """[T] bool: the tokens whose target is not ``ignore_index``."""
        return self.targets != self.ignore_index

    def local(self) -> HeadCall:
        """The call with targets relative to the first id of this rank's shard."""
        if self.shard is None:
            return self
        vocabulary = len(self.weight)
        ignored = self.ignore_index - self.shard.rank * vocabulary
        ignored = (ignored + 2**63) % 2**64 - 2**63  # int64 wraps around, as targets do
        targets = self.shard.local(self.targets, vocabulary)
        return self._replace(targets=targets, ignore_index=ignored)

    def select(self, index: torch.Tensor | None) -> HeadCall:
        """The call of the tokens ``index`` (None: all of them)."""
        if index is None:
            return self
        # index_select copies rows whole; hidden[index] takes four times as long on a CPU.
        return self._replace(
            hidden=self.hidden.index_select(0, index),
            targets=self.targets.index_select(0, index),
            rule=self.rule.select(index),
        )

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The tensors that autograd saves: ``hidden``, ``weight``, ``targets``, ``bias``."""
        return self.hidden, self.weight, self.targets, self.bias

    def without_tensors(self) -> HeadCall:
        """The call without them: autograd watches over those that it saves itself."""
        none = _SAVED_BY_AUTOGRAD
        return self._replace(hidden=none, weight=none, targets=none, bias=none)

    def with_tensors(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> HeadCall:
        """The call with the tensors that autograd saved, in the order of :meth:`tensors`.

        Args:
            hidden: [T, D].
            weight: [V, D].
            targets: [T] int64.
            bias: [V], or None.
        """
        return self._replace(hidden=hidden, weight=weight, targets=targets, bias=bias)


def accumulator_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype of logits, sums and gradients accumulated from inputs of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32
