"""``policy_loss``, eager: the tensors are checked, then a backend computes loss and gradients."""

from __future__ import annotations

import torch

from siri_kernels import varlen
from siri_kernels._backend import resolve_backend
from siri_kernels._device import device_of
from siri_kernels.policy_loss import compiled, objectives, portable
from siri_kernels.policy_loss.types import LossInputs, LossOptions
from siri_kernels.policy_loss.validate import OP, check_inputs


def compute(
    inputs: LossInputs, options: LossOptions, backend: str | None
) -> portable.LossAndGradient:
    """Check the tensors; compute loss, gradients and metrics by "triton" or on any device.

    Args:
        inputs: unchecked.
        options: checked.
        backend: None, "triton" or "portable"; None on a CPU may take the compiled loop.
    """
    resolved = resolve_backend(OP, backend, inputs.logprobs)
    check_inputs(inputs, options, values=False)
    logprobs = inputs.logprobs
    total = logprobs.size(0)
    if backend is None and compiled.takes(inputs, options):
        loop = compiled.chosen()
        result = None if loop is None else compiled.policy_loss(inputs, options, loop)
        if result is not None:
            return result
    with torch.no_grad():
        varlen.check_cu_seqlens(inputs.cu_seqlens, total, op=OP)
        in_kernel = options.objective in objectives.BY_HAND
        if resolved == "triton" and in_kernel and inputs.dtype == torch.float32 and total:
            from siri_kernels.policy_loss import triton as launch  # Triton may not be installed

            with device_of(logprobs):
                return launch.policy_loss(inputs, options)
        return portable.policy_loss(inputs, options)  # float64, a formula, or no tokens
