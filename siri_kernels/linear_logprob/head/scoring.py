"""The call of a ``LogprobHead``: logits, or log-probs and entropy of targets."""

from __future__ import annotations

from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import nn

from siri_kernels.linear_logprob.api import linear_logprob
from siri_kernels.linear_logprob.head.uncast import pack, unpack
from siri_kernels.linear_logprob.types import LogprobOutput


class ScoringHead(nn.Linear):
    """The computation of ``LogprobHead``, the only class that is used directly.

    Attributes:
        cast_hidden: see ``LogprobHead``.
    """

    cast_hidden = False

    def __call__(self, *args: Any, **options: Any) -> Any:
        """As any module; a tensor of temperatures is kept from casts of arguments (FSDP)."""
        if "temperature" in options:
            options["temperature"] = pack(options["temperature"])
        return super().__call__(*args, **options)

    @overload
    def forward(self, hidden: torch.Tensor) -> torch.Tensor: ...

    @overload
    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor, **options: Any
    ) -> LogprobOutput: ...

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor | None = None, **options: Any
    ) -> torch.Tensor | LogprobOutput:
        """Log-probs and entropy of ``targets``; without targets, logits.

        Args:
            hidden: [..., D].
            targets: [...] int64, or None.
            **options: keyword arguments of :func:`siri_kernels.linear_logprob` but ``bias``.

        Raises:
            TypeError: options without targets, or a bias.
        """
        if targets is None:
            if options:
                raise TypeError(
                    f"LogprobHead: targets are missing; without them no options are taken, got "
                    f"{sorted(options)}"
                )
            return F.linear(hidden, self.weight, self.bias)
        if "bias" in options:
            raise TypeError("LogprobHead: bias is the head's own; it takes no other")
        if "temperature" in options and isinstance(hidden, torch.Tensor):
            options["temperature"] = unpack(options["temperature"], hidden.device)
        if self.cast_hidden and not torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(self.weight.dtype)
        return linear_logprob(hidden, self.weight, targets, bias=self.bias, **options)
