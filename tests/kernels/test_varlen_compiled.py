"""varlen under torch.compile: no graph is broken, the values are the same, bad ones are refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_kernels import varlen

from .interpreter import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="says nothing of the kernels")

FUNCTIONS = {
    "lengths": lambda x, cu, sizes, keep, n, cap: varlen.lengths(cu),
    "cu_seqlens_from": lambda x, cu, sizes, keep, n, cap: varlen.cu_seqlens_from(sizes),
    "sequence_ids": lambda x, cu, sizes, keep, n, cap: varlen.sequence_ids(cu, len(x)),
    "pack": lambda x, cu, sizes, keep, n, cap: varlen.pack(1.0 * keep, mask=keep),
    "pack, sized": lambda x, cu, sizes, keep, n, cap: varlen.pack(1.0 * keep, sizes, total=n),
    "unpack": lambda x, cu, sizes, keep, n, cap: varlen.unpack(x, cu),
    "unpack, sized": lambda x, cu, sizes, keep, n, cap: varlen.unpack(x, cu, length=9),
    "cut": lambda x, cu, sizes, keep, n, cap: varlen.cut(x, cu, cap),
    "cut, sized": lambda x, cu, sizes, keep, n, cap: varlen.cut(x, cu, 99, total=n),
    "targets": lambda x, cu, sizes, keep, n, cap: varlen.next_token_targets(x.long(), cu),
    "align": lambda x, cu, sizes, keep, n, cap: varlen.align_to_tokens(x, cu),
}


def traced(function):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.draw(3)
@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(0, 8), min_size=2, max_size=4), cap=st.integers(0, 5))
def test_the_same_values_in_one_graph(name, sizes, cap):
    cu = torch.tensor([0, *itertools.accumulate(sizes)], dtype=torch.int32)
    x, rows = torch.randn(sum(sizes)), torch.tensor(sizes)
    arguments = (x, cu, rows, torch.arange(9) < rows[:, None], sum(sizes), cap)
    want, got = FUNCTIONS[name](*arguments), traced(FUNCTIONS[name])(*arguments)
    several = isinstance(want, tuple)
    for a, b in zip(want if several else [want], got if several else [got], strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def cu(*entries):
    return torch.tensor(entries, dtype=torch.int32)


BAD = [
    (lambda: varlen.sequence_ids(cu(1, 3), 3), "cu_seqlens must start with 0"),
    (lambda: varlen.lengths(cu(0, 3, 2)), "cu_seqlens must never fall"),
    (lambda: varlen.unpack(torch.rand(4), cu(0, 3), length=3), "cu_seqlens must end at"),
    (lambda: varlen.unpack(torch.rand(4), cu(0, 4), length=3), "length must be at least"),
    (lambda: varlen.pack(torch.rand(2, 3), torch.tensor([1, 2]), total=4), "total must be"),
    (lambda: varlen.pack(torch.rand(2, 3), torch.tensor([1, 4]), total=5), "lengths must be"),
    (lambda: varlen.cu_seqlens_from(torch.tensor([1, -1])), "lengths must be >= 0"),
]


@pytest.mark.draw(3)
@pytest.mark.parametrize("call, message", BAD, ids=[message for _, message in BAD])
def test_bad_values_are_refused_in_a_graph_too(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    with pytest.raises(RuntimeError, match=message):
        traced(call)()
