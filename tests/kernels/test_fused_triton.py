"""The fused forward pass: without a GPU its kernel is the same arithmetic in PyTorch, and the join,
the partition and everything around them are the real ones; on a Hopper GPU the kernel is too."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from siri_kernels.linear_logprob import top_entries
from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.online_softmax import finish
from siri_kernels.linear_logprob.top_entries import TopEntries
from siri_kernels.linear_logprob.triton import arguments, fused
from siri_kernels.linear_logprob.triton.forward import target_logits
from siri_kernels.linear_logprob.types import LogitRule

from .interpreter import DEVICE, direct

pytestmark = direct
REAL = DEVICE == "cuda" and torch.cuda.get_device_capability() == (9, 0)
IDS = fused.IDS
NAN = float("nan")


def in_quarters(tile):
    """The tile's rows as the kernel leaves them in scratch, [rows, 4, IDS / 4]."""
    return tile.view(len(tile), IDS // 8, 4, 2).transpose(1, 2).reshape(len(tile), 4, IDS // 4)


def arithmetic(grid, hidden, weight, *given, TOP_ENTRIES, BIAS, SOFTCAP, PER_ROW):
    """The results of :mod:`siri_kernels.linear_logprob.triton.fused_kernels`, in PyTorch."""
    pointers, scalars, (programs,) = given[:9], given[9:], grid
    targets, floors, part_max, part_sum, part_dev, part_bits, target_logit, scratch, bias = pointers
    rows, vocabulary, _, _, first_tile, splits, each, stride, scale, masked, log2_eps = scalars[:11]
    softcap, inverse_softcap = scalars[11:]
    assert 1 <= programs <= fused.multiprocessors(hidden.device)
    z = hidden.float() @ weight.float().T
    z += bias[:vocabulary] if BIAS else 0
    if SOFTCAP:
        z = torch.where(z == -torch.inf, z, softcap * torch.tanh(z * inverse_softcap))
    by = scale if PER_ROW else torch.tensor(scale, dtype=torch.float32)
    raw = BIAS or PER_ROW
    unit = by if raw else torch.ones(())  # of the maxima
    large = torch.finfo(torch.float32).max
    for split in range(splits):
        top, total = torch.full((rows,), -large if raw else -1.0e30), torch.zeros(rows)
        dev, bits = torch.zeros(rows), torch.zeros(rows, 4, dtype=torch.int32)
        for within in range(each):
            first = (first_tile + split * each + within) * IDS
            tile = torch.full((rows, IDS), masked)
            there = min(max(vocabulary - first, 0), IDS)
            tile[:, :there] = z[:, first : first + there]
            inside = ((targets >= first) & (targets < first + IDS)).nonzero()[:, 0]
            at = (targets[inside] - first).long()
            target_logit[inside] = tile[inside, at]
            tile[inside, at] = masked
            best = in_quarters(torch.where(tile.isnan(), -torch.inf, tile)).amax(2)
            tops = best.amax(1) if raw else best.amax(1) * by
            shift = torch.maximum(top, tops)
            if raw:
                centred = ((tile - shift[:, None]) * by.expand(rows)[:, None]).clamp(min=-1000)
            else:
                centred = tile * by - shift[:, None]
            exp, step = torch.exp2(centred), ((top - shift) * unit).clamp(min=-1000)
            dev = (dev + step * total) * torch.exp2(step) + (centred * exp).sum(1)
            total, top = total * torch.exp2(step) + exp.sum(1), shift
            if TOP_ENTRIES:
                bound = torch.fmax(floors, shift * unit + total.log2()) + log2_eps
                bound = torch.fmax(bound, torch.tensor(-large))
                matters = best * by.expand(rows)[:, None] >= bound[:, None]
                held = scratch.view(rows, stride, 4, IDS // 4)
                held[:, split * each + within][matters] = in_quarters(tile)[matters]
                bits |= matters.int() << within
        part_max[split], part_sum[split], part_dev[split] = top, total, dev
        if TOP_ENTRIES:
            part_bits[split] = bits


class Kernel:
    """Launched as the kernel is."""

    def __getitem__(self, grid):
        return functools.partial(arithmetic, grid)


@pytest.fixture(autouse=True)
def places(monkeypatch):
    """Memory that nobody wrote is NaN; without a GPU, the arithmetic in the kernel's place."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        out = empty(*args, **kwargs)
        return out.fill_(NAN) if out.is_floating_point() else out

    monkeypatch.setattr(torch, "empty", poisoned)
    if not REAL:
        monkeypatch.setattr(
            fused,
            "operands",
            lambda hidden, weight, options, together: (Kernel(), (hidden, weight), options),
        )


def head_call(rows, width, vocabulary, dtype, temperature, spread, seed, bias=None, softcap=None):
    """A head with a Zipf tail, targets of which some are ignored and some another shard's.

    Args:
        rows: T.
        width: D.
        vocabulary: V.
        dtype: of the head.
        temperature: a number, or "per token".
        spread: standard deviation of the logits.
        seed: of the numbers.
        bias: None, "some", or "masks": a fifth of the ids cannot be sampled.
        softcap: a number, or None.
    """
    torch.manual_seed(seed)
    hidden = torch.randn(rows, width).to(dtype)
    hidden[:, 0] = 1
    weight = spread * torch.randn(vocabulary, width) / width**0.5
    weight[:, 0] -= torch.arange(1, vocabulary + 1).log()
    targets = torch.randint(0, vocabulary, (rows,))
    targets[torch.rand(rows) < 0.1] = -100
    targets[torch.rand(rows) < 0.1] = vocabulary + 5
    place = [x.to(DEVICE) for x in (hidden, weight.to(dtype), targets)]
    if temperature == "per token":
        temperature = torch.rand(rows).add(0.5).to(DEVICE)
    added = None
    if bias is not None:
        added = torch.randn(vocabulary)
        if bias == "masks":
            added[1:][torch.rand(vocabulary - 1) < 0.2] = -math.inf
        added = added.to(DEVICE, dtype)
    rule = LogitRule(temperature, softcap)
    return arguments.prepared(HeadCall(*place, added, rule, -100, dtype, 1e-2, 32, True))


def check(this, most):
    """State and top entries against float64."""
    rows, vocabulary = len(this.hidden), len(this.weight)
    top = TopEntries.empty(rows, most, this.hidden, torch.float32)
    estimate = target_logits(this)
    saved, plain = fused.online_softmax(this, top, estimate), fused.online_softmax(this, None, None)
    temperature = by = this.rule.temperature
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.cpu()
        by = temperature.double()[:, None]
    raw = (this.hidden.double() @ this.weight.double().T).cpu()
    if this.bias is not None:
        raw += this.bias.double().cpu()
    if (cap := this.rule.softcap) is not None:
        raw = torch.where(raw == -math.inf, raw, cap * torch.tanh(raw / cap))
    z, targets = raw / by, this.targets.cpu()
    inside = (targets >= 0) & (targets < vocabulary)
    at = torch.arange(rows), targets.where(inside, 0)
    lse = z.logsumexp(1)
    finite = z.where(z > -math.inf, 0)
    # Rounding is of the products, not of their sum: a logit near 0 may be of large ones.
    products = (this.hidden.double().abs() @ this.weight.double().abs().T).cpu()
    size = 2e-6 * (1 + finite.abs().amax(1)) + 2**-22 * (products / by).amax(1)
    for state in (saved, plain):
        got = finish(type(state)(*(x.cpu() for x in state)), temperature)
        others = z.clone()
        others[at] = torch.where(inside, -math.inf, others[at])
        log_sum = state.max.cpu().double() / temperature + state.sum.cpu().double().log()
        rest = others.logsumexp(1)
        alone = rest == -math.inf  # the target is the only id
        assert ((log_sum - rest).abs() <= size)[~alone].all() and (log_sum[alone] < -1e29).all()
        assert (state.target_logit.cpu()[~inside] == -math.inf).all()
        want = z[at] - lse
        seen = inside & (want > -math.inf)  # a masked target has probability 0
        assert ((got.logprobs - want).abs() <= size)[seen].all()
        assert (got.logprobs[inside & ~seen] == -math.inf).all()
        logprobs = z.log_softmax(1)
        entropy = -(logprobs.exp() * logprobs.where(logprobs > -math.inf, 0)).sum(1)
        assert ((got.entropy - entropy).abs() <= 4 * size)[seen].all()
    ids, logits, found = (x.cpu() for x in top[:3])
    for row in range(rows):
        count = min(int(found[row]), most)
        mine = ids[row, :count].tolist()
        assert mine == sorted(set(mine)), "in id order, once each"
        assert not inside[row] or int(targets[row]) not in mine
        gap = (logits[row, :count].double() - raw[row, mine]).abs()
        largest = raw[row][raw[row] > -math.inf].abs().max()
        assert (gap <= 2e-6 * (1 + largest) + 2**-22 * products[row, mine]).all()
        sure = z[row] >= lse[row] + top_entries.LOG_EPS + 1e-3
        if inside[row]:
            sure[targets[row]] = False
        else:
            continue  # its bound counts id 0's logit as a target's, as in the unfused form
        if found[row] <= most:
            assert set(sure.nonzero()[:, 0].tolist()) <= set(mine)
        else:
            assert count == most


@pytest.mark.draw(1)
@pytest.mark.parametrize("part", range(2))
@settings(max_examples=5, deadline=None, phases=(Phase.generate,))
@given(
    rows=st.sampled_from([1, 5, 64, 65, 127, 128, 129, 300]),
    vocabulary=st.sampled_from([1, 7, 255, 256, 257, 1000, 2600]),
    width=st.sampled_from([8, 64, 72, 200]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    temperature=st.sampled_from([1.0, 0.6, 1.7, "per token"]),
    bias=st.sampled_from([None, None, "some", "masks"]),
    softcap=st.sampled_from([None, None, 5.0]),
    spread=st.sampled_from([0.1, 1.0, 8.0]),
    tiles=st.integers(1, 12),
    programs=st.sampled_from([1, 2, 3]),
    together=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_every_partition_gives_what_float64_gives(
    part, rows, vocabulary, width, dtype, temperature, bias, softcap, spread, tiles, programs,
    together, seed,
):  # fmt: skip
    if REAL and not fused.fused_kernels.CLUSTERS:
        together = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "SCRATCH", tiles * rows * IDS)
        patch.setattr(fused, "programs_together", lambda call: together)
        patch.setattr(fused, "multiprocessors", lambda device: programs)
        this = head_call(rows, width, vocabulary, dtype, temperature, spread, seed, bias, softcap)
        assert fused.unfit(this) is None
        check(this, 32)


@pytest.mark.draw(1)
@pytest.mark.parametrize("part", range(2))
@settings(max_examples=3, deadline=None, phases=(Phase.generate,))
@given(
    rows=st.sampled_from([1, 127, 128, 129]),
    vocabulary=st.sampled_from([1, 7, 256, 257, 800]),
    width=st.sampled_from([8, 72]),
    # The interpreter multiplies bfloat16 as the integers that hold it.
    dtype=st.sampled_from([torch.float16, torch.bfloat16][: 1 + REAL]),
    temperature=st.sampled_from([0.6, "per token"]),
    bias=st.sampled_from([None, "some", "masks"]),
    softcap=st.sampled_from([None, 5.0]),
    spread=st.sampled_from([0.1, 8.0]),
    tiles=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_the_plain_kernel_gives_what_float64_gives(
    part, rows, vocabulary, width, dtype, temperature, bias, softcap, spread, tiles, seed
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "operands", lambda *given: fused.plain_operands(*given[:3]))
        patch.setattr(fused, "plain", lambda device: True)
        patch.setattr(fused, "SCRATCH", tiles * rows * IDS)
        patch.setattr(fused, "multiprocessors", lambda device: 2)
        check(
            head_call(rows, width, vocabulary, dtype, temperature, spread, seed, bias, softcap), 32
        )


@pytest.mark.draw(2)
@pytest.mark.parametrize(
    ("temperature", "bias", "softcap", "dtype"),
    [
        (1.0, None, None, torch.float16),
        (0.6, "masks", None, torch.bfloat16),
        (0.6, None, 5.0, torch.bfloat16),
        ("per token", None, None, torch.bfloat16),
        ("per token", "some", 5.0, torch.float16),
    ],
)
def test_each_option_gives_what_float64_gives(temperature, bias, softcap, dtype, monkeypatch):
    rows, vocabulary = (300, 2600) if REAL else (30, 1000)
    monkeypatch.setattr(fused, "SCRATCH", 3 * rows * IDS)
    monkeypatch.setattr(fused, "TOKENS_TOP_ENTRIES", 128 if REAL else 16)
    monkeypatch.setattr(fused, "multiprocessors", lambda device: 2)
    check(head_call(rows, 200, vocabulary, dtype, temperature, 1.0, 5, bias, softcap), 32)


@settings(max_examples=200, deadline=None)
@given(
    blocks=st.integers(1, 200),
    tiles=st.integers(1, 1200),
    programs=st.integers(1, 160),
    most=st.integers(1, 1300),
)
def test_a_partition_fits(blocks, tiles, programs, most):
    splits, each = fused.partition(blocks, tiles, programs, most)
    assert 1 <= each <= fused.MOST_EACH and 1 <= splits and splits * each <= most


def test_a_row_that_is_not_finite_is_so_alone(monkeypatch):
    monkeypatch.setattr(fused, "multiprocessors", lambda device: 2)
    this = head_call(70, 64, 600, torch.bfloat16, 1.0, 1.0, 0)
    clean = fused.online_softmax(this, None, None)
    this.hidden[11, 3] = NAN
    top = TopEntries.empty(70, 32, this.hidden, torch.float32)
    broken = fused.online_softmax(this, top, target_logits(this))
    others = torch.arange(70, device=this.hidden.device) != 11
    for a, b in zip(clean, broken, strict=True):
        assert torch.allclose(a[others], b[others], rtol=1e-5)
    assert finish(broken).logprobs[11].isnan() and top.found[11] == 0


@pytest.mark.parametrize("what", ["extreme", "dtype", "mixed", "stride", "column"])
def test_what_it_cannot_take_goes_the_other_way(what):
    this = head_call(20, 64, 600, torch.bfloat16, 1.0, 1.0, 0)
    hidden, weight = this.hidden, this.weight
    changed = {
        "extreme": this._replace(rule=LogitRule(1e-7, None)),
        "dtype": this._replace(gemm_dtype=torch.float32),
        "mixed": this._replace(weight=weight.float()),
        "stride": this._replace(hidden=torch.zeros(20, 65, dtype=hidden.dtype)[:, :64]),
        "column": this._replace(weight=weight.T.contiguous().T),
    }[what]
    assert fused.unfit(this) is None
    assert fused.unfit(changed)
    assert fused.refusal(changed) and not fused.takes(changed)


@pytest.mark.skipif(not REAL, reason="needs a Hopper GPU")
def test_runs_repeat_on_a_gpu(monkeypatch):
    this = head_call(700, 1536, 20_000, torch.bfloat16, 1.0, 1.0, 0)
    first = None
    for _ in range(20):
        top = TopEntries.empty(700, 128, this.hidden, torch.float32)
        state = fused.online_softmax(this, top, target_logits(this))
        filled = torch.arange(128, device=DEVICE) < top.found[:, None]
        got = [*state, top.found, top.ids * filled, top.logits.where(filled, 0)]
        first = first or got
        assert all(torch.equal(a, b) for a, b in zip(got, first, strict=True))
