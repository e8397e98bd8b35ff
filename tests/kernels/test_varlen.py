from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_kernels import linear_logprob, varlen

from .helpers import NoHostRead

ragged = st.lists(st.integers(0, 7), min_size=0, max_size=8)


def cu(*lengths):
    return varlen.cu_seqlens_from(torch.tensor(lengths, dtype=torch.int64))


def test_cu_seqlens_is_flash_attentions():
    out = cu(3, 0, 2)
    assert out.tolist() == [0, 3, 3, 5] and out.dtype == torch.int32
    assert varlen.lengths(out).tolist() == [3, 0, 2]
    assert varlen.sequence_ids(out, 5).tolist() == [0, 0, 0, 2, 2]
    assert cu().tolist() == [0]


@settings(max_examples=60, deadline=None)
@given(sizes=ragged, extra=st.integers(0, 2), deep=st.booleans())
def test_pack_and_unpack_are_inverse(sizes, extra, deep):
    width = max(sizes, default=0) + extra
    padded = torch.randn(len(sizes), width, *([3] if deep else []))
    packed = varlen.pack(padded, torch.tensor(sizes, dtype=torch.int32))
    rows = [padded[i, :n] for i, n in enumerate(sizes)]
    assert torch.equal(packed.values, torch.cat([*rows, padded.new_zeros(0, *padded.shape[2:])]))
    assert packed.cu_seqlens.tolist() == [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    known = varlen.pack(padded, torch.tensor(sizes, dtype=torch.int64), total=sum(sizes))
    assert torch.equal(known.values, packed.values)
    back = varlen.unpack(*packed, length=width, padding_value=-1)
    for i, n in enumerate(sizes):
        assert torch.equal(back[i, :n], padded[i, :n]) and (back[i, n:] == -1).all()
    assert varlen.unpack(*packed).shape[1] == max(sizes, default=0)


def test_pack_by_mask_takes_left_padding_and_holes():
    padded = torch.arange(8).view(2, 4)
    mask = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 1]], dtype=torch.bool)
    values, cu_seqlens = varlen.pack(padded, mask=mask)
    assert values.tolist() == [2, 3, 4, 7] and cu_seqlens.tolist() == [0, 2, 4]


def test_gradients_go_back_to_where_values_came_from():
    padded = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    sizes = torch.tensor([2, 0, 4])

    def there_and_back(x):
        packed = varlen.pack(x, sizes)
        short = varlen.cut(packed.values.sin(), packed.cu_seqlens, 3)
        shifted = varlen.align_to_tokens(short.values, short.cu_seqlens)
        return varlen.unpack(shifted, short.cu_seqlens, length=5)

    assert torch.autograd.gradcheck(there_and_back, padded)


@settings(max_examples=60, deadline=None)
@given(sizes=ragged, cap=st.integers(0, 8), each=st.booleans())
def test_cut(sizes, cap, each):
    caps = torch.randint(0, 8, (len(sizes),)) if each else cap
    per_sequence = caps.tolist() if each else [cap] * len(sizes)
    values = torch.randn(sum(sizes))
    out = varlen.cut(values, cu(*sizes), caps)
    parts = [p[:c] for p, c in zip(values.split(sizes), per_sequence, strict=True)] if sizes else []
    assert torch.equal(out.values, torch.cat([*parts, values[:0]]))
    assert varlen.lengths(out.cu_seqlens).tolist() == [len(p) for p in parts]
    assert out.cu_seqlens.dtype == torch.int32
    assert out.truncated.tolist() == [n > c for n, c in zip(sizes, per_sequence, strict=True)]
    assert torch.equal(values[out.kept], out.values)
    known = varlen.cut(values, cu(*sizes), caps, total=len(out.values))
    assert all(torch.equal(a, b) for a, b in zip(known, out, strict=True))


def test_with_known_sizes_nothing_is_read_on_the_host(monkeypatch):
    from siri_kernels import _checks

    monkeypatch.setattr(_checks, "may_read", lambda tensor: False)  # as on a GPU
    padded, lengths, cu_seqlens = torch.randn(3, 4), torch.tensor([4, 0, 2]), cu(4, 0, 2)
    with NoHostRead():
        packed = varlen.pack(padded, lengths, total=6)
        varlen.unpack(packed.values, packed.cu_seqlens, length=4)
        varlen.cut(packed.values, packed.cu_seqlens, 3, total=5)
        varlen.align_to_tokens(packed.values, cu_seqlens)
        varlen.next_token_targets(torch.zeros(6, dtype=torch.int64), cu_seqlens)


@settings(max_examples=60, deadline=None)
@given(sizes=ragged)
def test_next_token_alignment(sizes):
    tokens, cu_seqlens = torch.randint(0, 50, (sum(sizes),)), cu(*sizes)
    targets = varlen.next_token_targets(tokens, cu_seqlens)
    want = [t for row in tokens.split(sizes) for t in [*row[1:].tolist(), -100][: len(row)]]
    assert targets.tolist() == (want if sizes else [])
    # Shifted on by one, what stood at the predicting position stands at the token.
    aligned = varlen.align_to_tokens(targets, cu_seqlens, fill=-1)
    firsts = {start for start, n in zip(cu_seqlens.tolist(), sizes, strict=False) if n}
    for place, value in enumerate(aligned.tolist()):
        assert value == (-1 if place in firsts else tokens[place])


def test_logprobs_of_packed_sequences_as_of_each_alone():
    sizes, weight = [4, 1, 0, 6], torch.randn(20, 5)
    tokens, hidden = torch.randint(0, 20, (11,)), torch.randn(11, 5)
    targets = varlen.next_token_targets(tokens, cu(*sizes))
    got = varlen.align_to_tokens(linear_logprob(hidden, weight, targets).logprobs, cu(*sizes))
    log_softmax = torch.log_softmax(hidden @ weight.t(), -1)
    start = 0
    for n in sizes:
        for t in range(start, start + n):
            want = 0.0 if t == start else log_softmax[t - 1, tokens[t]].item()
            assert got[t].item() == pytest.approx(want, abs=1e-5)
        start += n


@pytest.mark.parametrize(
    "bad, kind, message",
    [
        ([0, 3, 5], TypeError, "int32 tensor|torch.Tensor, got list"),
        (torch.tensor([0, 5]), TypeError, "dtype int32; got .*int64"),
        (torch.zeros(0, dtype=torch.int32), ValueError, r"shape \[B\+1\]"),
        (torch.zeros(2, 2, dtype=torch.int32), ValueError, r"shape \[B\+1\]"),
        (torch.tensor([1, 5], dtype=torch.int32), ValueError, "start with 0; got 1"),
        (torch.tensor([0, 4, 3, 5], dtype=torch.int32), ValueError, "never fall; got 4 then 3 at"),
        (torch.tensor([0, 4], dtype=torch.int32), ValueError, "packed tokens, 5; got 4"),
    ],
)
def test_check_cu_seqlens(bad, kind, message):
    with pytest.raises(kind, match=message):
        varlen.check_cu_seqlens(bad, 5)
    with pytest.raises(kind, match=message):
        varlen.unpack(torch.randn(5), bad)


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (lambda: varlen.pack(torch.randn(3), torch.tensor([1])), ValueError, "padded must have"),
        (lambda: varlen.pack(torch.randn(2, 3)), ValueError, "exactly one of lengths and mask"),
        (
            lambda: varlen.pack(torch.randn(2, 3), torch.tensor([1, 4])),
            ValueError,
            "lengths must be in 0..3, the width of padded; got 4",
        ),
        (
            lambda: varlen.pack(torch.randn(2, 3), torch.tensor([-1, 2])),
            ValueError,
            "lengths must be in 0..3.*got -1",
        ),
        (
            lambda: varlen.pack(torch.randn(2, 3), torch.tensor([1.0, 2.0])),
            TypeError,
            "lengths must have dtype",
        ),
        (
            lambda: varlen.pack(torch.randn(2, 3), torch.tensor([1, 2, 3])),
            ValueError,
            r"lengths must have shape \[B\] = \[2\]",
        ),
        (
            lambda: varlen.pack(torch.randn(2, 3), mask=torch.ones(2, 3)),
            TypeError,
            "mask must have dtype bool",
        ),
        (
            lambda: varlen.pack(torch.randn(2, 3), torch.tensor([1, 2]), total=4),
            ValueError,
            "pack: total must be .*, 3; got 4",
        ),
        (lambda: varlen.unpack(torch.randn(5), cu(3, 2), length=2), ValueError, "sequence, 3; got"),
        (lambda: varlen.cut(torch.randn(5), cu(3, 2), -1), ValueError, "cap must be >= 0"),
        (lambda: varlen.cut(torch.randn(5), cu(3, 2), 1.5), TypeError, "cap must be an int"),
        (
            lambda: varlen.cut(torch.randn(5), cu(3, 2), 2, total=5),
            ValueError,
            "cut: total must be .*, 4; got 5",
        ),
        (
            lambda: varlen.next_token_targets(torch.zeros(5), cu(3, 2)),
            TypeError,
            "tokens must have dtype int64",
        ),
    ],
)
def test_refusals(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
