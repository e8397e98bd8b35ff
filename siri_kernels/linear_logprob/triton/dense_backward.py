"""Dense backward in Triton: gradients from logits recomputed over the whole vocabulary."""

from __future__ import annotations

import functools

import torch
import triton

from siri_kernels._launch import launch
from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.online_softmax import GradientRule, gradient_rule
from siri_kernels.linear_logprob.triton import arguments, fused_gradient, kernels
from siri_kernels.linear_logprob.triton.forward import LOGITS, Products
from siri_kernels.linear_logprob.triton.kernel_math import LN_2
from siri_kernels.linear_logprob.triton.sparse_backward import WeightGradient
from siri_kernels.linear_logprob.types import SoftmaxStats

# Results of a product that fill the largest GPUs twice: tiles of 128 x 256 on 132 to 160
# multiprocessors.
UNSPLIT = 10 * 2**20


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


class LogitGradients:
    """Gradients of raw logits, a block of tokens times a tile of ids at a time.

    By a product that stores the logits in fp32, and a kernel over them.

    Args:
        call: whose tokens are all computed.
        rule: of the same tokens, as :func:`kernel_rule` gives it.
        factor: [1] that gradients are multiplied by, or None.
        most_ids: of a tile, or one block of the kernels.
        dtype: of the gradients; None: the one that the products take.

    Attributes:
        tokens: the blocks.
        hidden: their rows of ``hidden``, as the products take them.
    """

    def __init__(
        self,
        call: HeadCall,
        rule: GradientRule,
        factor: torch.Tensor | None,
        most_ids: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        products = self.products = Products(call, most_ids=most_ids)
        self.call, self.tokens, self.hidden = call, products.tokens, products.hidden
        self.starts, self.tile = products.starts, products.tile
        self.operand = products.operand
        if dtype is None:
            dtype = call.gemm_dtype if products.mixed else torch.float32
        self.buffer = torch.empty_like(products.buffer, dtype=dtype)
        columns = (
            arguments.scale(call),
            call.targets,
            rule.max,
            rule.at_target,
            rule.offset,
            rule.offset if rule.slope is None else rule.slope,
        )
        self.columns = [
            [arguments.of_tokens(column, tokens) for column in columns] for tokens in self.tokens
        ]
        self.factor = rule.offset if factor is None else factor
        self.ids = min(kernels.IDS, triton.next_power_of_2(products.ids))
        self.constants = {
            "SOME": False,
            "SLOPE": rule.slope is not None,
            "FACTOR": factor is not None,
            "BLOCK": self.ids,
            "num_warps": kernels.WARPS,
            **arguments.constants(call),
        }

    def gradient(self, block: int, start: int, tile: torch.Tensor) -> torch.Tensor:
        """The gradient of a block's raw logits, which the next call overwrites.

        Args:
            block: its number.
            start: first id of the tile.
            tile: [n, D], its rows of ``weight``.
        """
        raw, n = self.products.raw(block, tile), len(tile)
        out = self.buffer[: raw.numel()].view(raw.shape)
        launch(
            kernels.gradient_kernel,
            (len(raw), triton.cdiv(n, self.ids)),
            raw,
            out,
            arguments.pointer(self.call.bias, raw),
            *self.columns[block],
            self.factor,
            self.call.targets,  # not read: no token is left out
            start,
            n,
            n,
            n,
            *arguments.softcap(self.call),
            WHOLE=n % self.ids == 0,
            **self.constants,
        )
        return out


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
    fused = fused_gradient.takes(call)
    made = fused_gradient.FusedGradients if fused else LogitGradients
    # Elsewhere than on a GPU, and of this form, factors of the products are fp32.
    factor = fp16_factor(call, rule) if fused or call.hidden.is_cuda else None
    # A tile of the gradient of weight may be held in fp32: not more of it than of the logits.
    gradients = made(call, rule, factor, most_ids=LOGITS // width)
    d_hidden = None
    if need_hidden:
        d_hidden = torch.empty(total, width, dtype=torch.float32, device=device)
    whole = factor is None and sparse is None and len(gradients.tokens) == 1
    held = torch.empty(0, dtype=torch.float32, device=device)
    for start in gradients.starts():
        tile = gradients.tile(start)
        n, d_tile, d_bias_tile, place = len(tile), None, None, None
        for block, tokens in enumerate(gradients.tokens):
            dz = gradients.gradient(block, start, tile)
            if d_hidden is not None:
                add_product(d_hidden[tokens], dz, tile, first=start == 0)
            if d_weight is not None:
                if d_tile is None:
                    place = d_weight[start : start + n]
                    if whole and rounds_once(dz, place):
                        d_tile = place
                    else:
                        held = held if len(held) else held.new_empty(n, width)
                        d_tile = held[:n]
                add_product(d_tile, dz.t(), gradients.hidden[block], first=block == 0)
            if d_bias is not None:
                part = dz.sum(0, dtype=torch.float32)
                d_bias_tile = part if d_bias_tile is None else d_bias_tile.add_(part)
        if factor is not None:
            for sums in (d_tile, d_bias_tile):
                if sums is not None:
                    sums.div_(factor)
        if d_weight is not None and d_tile is not None and d_tile is not place:
            d_weight[start : start + n] = d_tile
        if d_bias is not None and d_bias_tile is not None:
            d_bias[start : start + n] = d_bias_tile
        if sparse is not None:
            sparse.write(d_weight, d_bias, start, start + n, d_tile, d_bias_tile)
    if d_hidden is not None and factor is not None:
        d_hidden.div_(factor)
    return d_hidden


def rounds_once(factor: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether a product with this factor may be written to ``out`` without an fp32 result.

    A product is split along what it sums over where its results do not fill the GPU. Then cuBLAS
    may add up parts that are rounded already.

    Args:
        factor: one of the product's.
        out: its result.
    """
    if factor.dtype != out.dtype:
        return False
    return out.dtype == torch.float32 or out.numel() >= UNSPLIT


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
        out: [n, m] float32; or in the factors' dtype, where :func:`rounds_once` holds.
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


def fp16_factor(call: HeadCall, rule: GradientRule) -> torch.Tensor | None:
    """[1] power of two that brings the largest finite logit gradient to about 2**10.

    cuBLAS's 16-bit products take 16-bit factors, and fp16's range needs the help. None for others.
    """
    if call.gemm_dtype != torch.float16:
        return None
    size = rule.at_target.abs() + rule.offset.abs()
    if rule.slope is not None:
        size = size + rule.slope.abs()
    largest = torch.where(size.isfinite(), size, 0).max().clamp(1e-30, 1e30)
    return torch.exp2(10 - largest.log2().ceil())[None]
