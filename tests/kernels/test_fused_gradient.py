"""The gradient of recomputed tokens through the fused kernel: without a GPU the kernel is the same
arithmetic in PyTorch, and tiles, blocks and products around it are the real ones; on a Hopper GPU
the kernel is too."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.types import LogitRule, SoftmaxStats

from .interpreter import DEVICE, INTERPRETED

pytest.importorskip("triton")
from siri_kernels.linear_logprob.triton import arguments, dense_backward, fused, fused_gradient

REAL = DEVICE == "cuda" and torch.cuda.get_device_capability() == (9, 0)
pytestmark = pytest.mark.skipif(
    INTERPRETED or (DEVICE == "cuda" and not REAL), reason="without a GPU, or on Hopper"
)
IDS, BLOCK = fused.IDS, fused_gradient.BLOCK
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def arithmetic(grid, hidden, weight, out, *given, BIAS, SOFTCAP, SLOPE):
    """What :mod:`siri_kernels.linear_logprob.triton.fused_gradient_kernels` writes, in PyTorch."""
    targets, rule, bias, rows, vocabulary, width, blocks, first_tile, tiles, stride, *caps = given
    assert hidden.shape == (rows, width) and weight.shape == (vocabulary, width)
    assert rule.stride() == (stride, 1) and bias.data_ptr() % 16 == rule.data_ptr() % 16 == 0
    assert 1 <= grid[0] <= blocks * tiles and (blocks - 1) * BLOCK < rows <= blocks * BLOCK
    ids = torch.arange(first_tile * IDS, (first_tile + tiles) * IDS)
    place = out[: blocks * BLOCK, : tiles * IDS]  # whole blocks and tiles are written
    assert place.shape == (blocks * BLOCK, tiles * IDS)
    place.fill_(float("nan"))
    place = place[:rows, ids < vocabulary]
    ids = ids[ids < vocabulary]
    assert ids.numel(), "a launch beyond the vocabulary"
    scale, top, head, offset, slope = rule[:, :, None]
    z = hidden.float() @ weight[ids].float().T
    if BIAS:
        z = z + bias[ids]
    if SOFTCAP:
        z = torch.where(z == -math.inf, z, caps[0] * torch.tanh(z * caps[1]))
    y = ((z - top) * scale).clamp(min=-200) if SLOPE or SOFTCAP else (z - top) * scale
    grad = torch.exp2(y) * (offset + y * slope if SLOPE else offset)
    grad = torch.where(ids == targets[:, None], head, grad)
    if SOFTCAP:
        grad = grad * (1 - (z * caps[1]).clamp(min=-1).square())
    out[:rows, : len(ids)] = grad.to(out.dtype)


class Kernel:
    """Launched as the kernel is."""

    def __getitem__(self, grid):
        return functools.partial(arithmetic, grid)


def add_product(out, a, b, first=False):
    """A CPU has no product of 16-bit factors with fp32 results."""
    product = a.float() @ b.float()
    return out.copy_(product if first else out + product)


@pytest.fixture(autouse=True)
def places(monkeypatch):
    """Memory that nobody wrote is NaN; without a GPU, the arithmetic in the kernel's place."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        out = empty(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(fused_gradient, "takes", lambda call: True)
    if not REAL:
        made = lambda *boxes_and_flags: (Kernel(), boxes_and_flags[:3], boxes_and_flags[3])  # noqa: E731
        monkeypatch.setattr(fused_gradient, "operands", made)
        monkeypatch.setattr(fused, "multiprocessors", lambda device: 5)
        monkeypatch.setattr(dense_backward, "add_product", add_product)


class Sparse:
    """In the place of the entries of other tokens: adds what it is given."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias

    def write(self, d_weight, d_bias, start, stop, weight_base, bias_base):
        if d_weight is not None:
            assert weight_base.dtype == torch.float32
            d_weight[start:stop] = weight_base + self.weight[start:stop]
        if d_bias is not None:
            d_bias[start:stop] = bias_base + self.bias[start:stop]


def head(rows, vocabulary, width, dtype, options, spread, seed):
    """A call on a shard, float64's gradient of its raw logits, and what ``recompute`` takes.

    The shard is the second half of a vocabulary; some targets are in the first.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = functools.partial(torch.randn, generator=generator)
    hidden = normal(rows, width).to(dtype)
    hidden[:, 0] = 100  # sums of float16's gradients with their factor are beyond its range
    weight = (spread * normal(2 * vocabulary, width) / width**0.5).to(dtype)
    weight[:, 0] = 0
    targets = torch.randint(0, 2 * vocabulary, (rows,), generator=generator)
    bias = softcap = None
    temperature = 0.7
    if "bias" in options:
        bias = normal(2 * vocabulary).to(dtype)
        bias[torch.rand(2 * vocabulary, generator=generator) < 0.05] = -math.inf
        bias[targets] = 0.5
    if "softcap" in options:
        softcap = 3.0
    if "per row" in options:
        temperature = torch.rand(rows, generator=generator) + 0.5
    upstream = normal(rows), normal(rows) if "entropy" in options else None
    raw = hidden.double() @ weight.double().T
    z = raw if bias is None else raw + bias.double()
    capped = z if softcap is None else softcap * torch.tanh(z / softcap)
    capped = torch.where(z == -math.inf, z, capped)
    column = temperature[:, None].double() if "per row" in options else temperature
    log = (capped / column).log_softmax(1).clamp(min=-1e4)
    p, at = log.exp(), targets[:, None]
    logprobs, entropy = log.gather(1, at)[:, 0], -(p * log).sum(1)
    dz = (torch.zeros_like(p).scatter_(1, at, 1.0) - p) * upstream[0][:, None]
    if upstream[1] is not None:
        dz = dz - upstream[1][:, None] * p * (log + entropy[:, None])
    dz = dz / column
    if softcap is not None:
        dz = dz * (1 - (capped / softcap).clamp(min=-1).square())
    top = capped.amax(1)
    log_sum = ((capped - top[:, None]) / column).exp().sum(1).log()
    stats = SoftmaxStats(*(x.float().to(DEVICE) for x in (logprobs, entropy, top, log_sum)))
    here = slice(vocabulary, 2 * vocabulary)
    place = [x.to(DEVICE) for x in (hidden, weight[here], targets - vocabulary)]
    rule = LogitRule(temperature.to(DEVICE) if "per row" in options else temperature, softcap)
    bias = None if bias is None else bias[here].to(DEVICE)
    call = HeadCall(*place, bias, rule, -100, dtype, 0.0, 0, True)
    call = arguments.prepared(call)
    up = [None if x is None else x.to(DEVICE) for x in upstream]
    return call, dz[:, here], dense_backward.kernel_rule(stats, *up, rule.temperature)


def check(got, exact, squares, dtype):
    """One rounding of a result, those of what it is a sum of, and float16's least step."""
    gap = (got.double().cpu() - exact).norm()
    step = 2.0**-24 * exact.numel() ** 0.5 if dtype == torch.float16 else 1e-12
    allowed = exact.norm() / 2 + squares.sum().sqrt()
    assert gap <= (ROUNDING[dtype] + 1e-5) * allowed + step


@pytest.mark.draw(2)
@pytest.mark.parametrize("part", range(4))
@settings(max_examples=30, deadline=None, phases=(Phase.generate,))
@given(
    rows=st.sampled_from([1, 64, 65, 129, 300]),
    vocabulary=st.sampled_from([3, 255, 256, 257, 1000, 1500]),
    width=st.sampled_from([8, 64, 72, 200]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    options=st.sets(st.sampled_from(["bias", "softcap", "per row", "entropy"])),
    spread=st.sampled_from([0.1, 1.0, 6.0]),
    tokens=st.sampled_from([128, 16384]),
    tiles=st.integers(1, 7),
    sparse=st.booleans(),
    unsplit=st.sampled_from([1, 2**30]),
    seed=st.integers(0, 1000),
)
def test_every_tiling_gives_what_float64_gives(
    part, rows, vocabulary, width, dtype, options, spread, tokens, tiles, sparse, unsplit, seed
):
    call, dz, rule = head(rows, vocabulary, width, dtype, options, spread, seed)
    exact = {
        "hidden": dz @ call.weight.double().cpu(),
        "weight": dz.T @ call.hidden.double().cpu(),
        "bias": dz.sum(0),
    }
    squares = {
        "hidden": dz.square() @ call.weight.double().cpu().square(),
        "weight": dz.T.square() @ call.hidden.double().cpu().square(),
        "bias": dz.square(),
    }
    d_weight = torch.empty_like(call.weight).fill_(math.nan)
    d_bias = None if call.bias is None else torch.empty_like(call.bias).fill_(math.nan)
    others = None
    if sparse:
        others = Sparse(
            torch.randn(d_weight.shape, device=DEVICE), torch.randn(vocabulary, device=DEVICE)
        )
        exact["weight"] = exact["weight"] + others.weight.double().cpu()
        exact["bias"] = exact["bias"] + others.bias.double().cpu()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_gradient, "TOKENS", tokens)
        patch.setattr(fused_gradient, "GRADIENTS", tiles * IDS * BLOCK)
        patch.setattr(dense_backward, "UNSPLIT", unsplit)
        got = dense_backward.recompute(call, rule, True, d_weight, d_bias, others)
    results = {"hidden": got, "weight": d_weight} | ({} if d_bias is None else {"bias": d_bias})
    for name, result in results.items():
        check(result, exact[name], squares[name], dtype)


@settings(max_examples=100, deadline=None)
@given(
    blocks=st.integers(1, 128),
    tiles=st.integers(1, 1200),
    width=st.sampled_from([8, 896, 1536, 3584, 8192]),
    programs=st.integers(1, 160),
    most=st.integers(-1, 1300),
)
def test_a_launch_has_at_least_a_tile_and_not_too_many(blocks, tiles, width, programs, most):
    these = fused_gradient.tiles_of_launch(blocks, tiles, width, programs, most)
    assert 1 <= these <= max(1, min(most, tiles))


@pytest.mark.parametrize("width", [1536, 3584])
def test_a_launch_fills_whole_rounds_of_132_multiprocessors(width):
    blocks, across = 128, width // 256
    these = fused_gradient.tiles_of_launch(blocks, 594, width, 132, 36)
    assert blocks * these % 132 == 0 and 2 * these * across % 132 == 0 and 594 % these == 0
    assert these * IDS * width >= dense_backward.UNSPLIT  # written in 16 bits at once


def test_what_it_takes(monkeypatch):
    monkeypatch.undo()  # the real ``takes``
    call, _, _ = head(5, 7, 16, torch.bfloat16, {"bias", "softcap", "per row"}, 1.0, 0)
    monkeypatch.setattr(fused, "refusal", fused.unfit)  # whatever the device
    monkeypatch.setattr(fused_gradient, "_least_tokens", lambda device, options: 6)
    for switch, ours, taken in (
        (True, None, True), (False, None, False), (None, None, False),
        (False, True, True), (True, False, False), (None, True, True),
    ):  # fmt: skip
        monkeypatch.setattr(fused, "ENABLED", switch)
        monkeypatch.setattr(fused_gradient, "ENABLED", ours)
        assert fused_gradient.takes(call) is taken
    monkeypatch.setattr(fused_gradient, "_least_tokens", lambda device, options: 5)
    monkeypatch.setattr(fused_gradient, "ENABLED", None)
    monkeypatch.setattr(fused, "ENABLED", None)
    assert fused_gradient.takes(call)
    monkeypatch.setattr(fused_gradient, "ENABLED", True)
    wide = call.weight.float()
    for changed in (
        {"weight": wide},
        {"gemm_dtype": torch.float32},
        {"hidden": call.hidden[:, 1:9]},
    ):
        assert not fused_gradient.takes(call._replace(**changed))
