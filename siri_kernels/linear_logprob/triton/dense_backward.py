"""Dense backward in Triton: gradients from logits recomputed over the whole vocabulary."""

from __future__ import annotations

import functools

import torch
import triton

from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.online_softmax import GradientRule, gradient_rule
from siri_kernels.linear_logprob.triton import arguments, kernels
from siri_kernels.linear_logprob.triton.forward import LOGITS, Products
from siri_kernels.linear_logprob.triton.kernel_math import LN_2
from siri_kernels.linear_logprob.triton.sparse_backward import WeightGradient
from siri_kernels.linear_logprob.types import SoftmaxStats


def kernel_rule(
    stats: SoftmaxStats,
    grad_logprobs: torch.Tensor,
    grad_entropy: torch.Tensor | None,
    temperature: float | torch.Tensor,
) -> GradientRule:
    """The rule as the kernels take it: contiguous tensors, and exponents of two.

    Args:
        stats: of the tokens.
        grad_logprobs: [T] gradient of the log-probs.
        grad_entropy: [T] gradient of the entropy, or None.
        temperature: a number, or [T].
    """
    top, at_target, offset, slope = gradient_rule(stats, grad_logprobs, grad_entropy, temperature)
    slope = None if slope is None else (slope * LN_2).contiguous()
    return GradientRule(top.contiguous(), at_target.contiguous(), offset.contiguous(), slope)


def recompute(
    call: HeadCall,
    rule: GradientRule,
    need_hidden: bool,
    d_weight: torch.Tensor | None,
    d_bias: torch.Tensor | None,
    sparse: WeightGradient | None,
) -> torch.Tensor | None:
    """Exact gradients of the call's tokens.

    Args:
        call: of tokens that are all computed, as
            :func:`siri_kernels.linear_logprob.triton.arguments.prepared` gives it.
        rule: of the same tokens, as :func:`kernel_rule` gives it.
        need_hidden: whether the gradient of ``hidden`` is needed.
        d_weight: [V, D], written; None: not needed.
        d_bias: [V], written; None: not needed.
        sparse: what other tokens add to these two, or None.

    Returns:
        The gradient [T, D] of ``hidden`` in float32, or None.
    """
    device, (total, width) = call.hidden.device, call.hidden.shape
    # A tile of the gradient of weight is held in fp32: not more of it than of the logits.
    products = Products(call, most_ids=LOGITS // width)
    # cuBLAS's 16-bit products take 16-bit factors; fp16's range needs help.
    out_dtype = call.gemm_dtype if products.mixed else torch.float32
    factor = _factor(rule) if out_dtype == torch.float16 else None
    d_hidden = None
    if need_hidden:
        d_hidden = torch.zeros(total, width, dtype=torch.float32, device=device)
    columns = (
        arguments.scale(call),
        call.targets,
        rule.max,
        rule.at_target,
        rule.offset,
        rule.offset if rule.slope is None else rule.slope,
    )
    blocks = [
        [arguments.of_tokens(column, tokens) for column in columns] for tokens in products.tokens
    ]
    ids = min(kernels.IDS, triton.next_power_of_2(products.ids))
    constants = {
        "SOME": False,
        "SLOPE": rule.slope is not None,
        "FACTOR": factor is not None,
        "BLOCK": ids,
        "num_warps": kernels.WARPS,
        **arguments.constants(call),
    }
    buffer = torch.empty(products.buffers[0].shape, dtype=out_dtype, device=device)
    d_tiles = torch.empty(products.ids if d_weight is not None else 0, width, device=device,
                          dtype=torch.float32)  # fmt: skip
    for start in products.starts():
        tile = products.tile(start)
        n = len(tile)
        d_tile, d_bias_tile = d_tiles[:n], None
        for block, (tokens, columns_of_block) in enumerate(
            zip(products.tokens, blocks, strict=True)
        ):
            raw = products.raw(block, tile)
            dz = buffer[: raw.numel()].view(raw.shape)
            kernels.gradient_kernel[(len(raw), triton.cdiv(n, ids))](
                raw,
                dz,
                arguments.pointer(call.bias, raw),
                *columns_of_block,
                rule.offset if factor is None else factor,
                call.targets,  # not read: no token is left out
                start,
                n,
                n,
                n,
                *arguments.softcap(call),
                WHOLE=n % ids == 0,
                **constants,
            )
            if d_hidden is not None:
                add_product(d_hidden[tokens], dz, tile)
            if d_weight is not None:
                add_product(d_tile, dz.t(), products.hidden[block], first=block == 0)
            if d_bias is not None:
                part = dz.sum(0, dtype=torch.float32)
                d_bias_tile = part if d_bias_tile is None else d_bias_tile.add_(part)
        if factor is not None:
            d_tile.div_(factor)
            if d_bias_tile is not None:
                d_bias_tile.div_(factor)
        if d_weight is not None:
            d_weight[start : start + n] = d_tile
        if d_bias is not None and d_bias_tile is not None:
            d_bias[start : start + n] = d_bias_tile
        if sparse is not None:
            sparse.write(d_weight, d_bias, start, start + n, d_tile, d_bias_tile)
    if d_hidden is not None and factor is not None:
        d_hidden.div_(factor)
    return d_hidden


@functools.cache
def adds_in_place(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of 16-bit factors can add to an fp32 tensor here, and does.

    Tried once for each device and dtype, whatever the version of PyTorch promises.
    """
    a = torch.ones(16, 16, dtype=dtype, device=device)
    out = torch.ones(16, 16, dtype=torch.float32, device=device)
    try:
        torch.addmm(out, a, a, out_dtype=out.dtype, out=out)
    except (RuntimeError, TypeError):
        return False
    return bool((out == 17).all())


def add_product(
    out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, first: bool = False
) -> torch.Tensor:
    """``out += a @ b`` in fp32.

    The product reads and writes ``out`` in its own last step where PyTorch has such a form; else
    the sum is a pass of its own.

    Args:
        out: [n, m] float32.
        a: [n, k].
        b: [k, m].
        first: ``out = a @ b`` instead.
    """
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out) if first else out.addmm_(a, b)
    if first:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    if adds_in_place(out.device, a.dtype):
        return torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    return out.add_(torch.mm(a, b, out_dtype=out.dtype))


def _factor(rule: GradientRule) -> torch.Tensor:
    """[1] power of two that brings the largest finite logit gradient to about 2**10."""
    size = rule.at_target.abs() + rule.offset.abs()
    if rule.slope is not None:
        size = size + rule.slope.abs()
    largest = torch.where(size.isfinite(), size, 0).max().clamp(1e-30, 1e30)
    return torch.exp2(10 - largest.log2().ceil())[None]
