"""linear_logprob under torch.compile: one operator in the graph, the same bits as without."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from siri_kernels import linear_logprob, take_backward_stats
from siri_kernels.linear_logprob import custom_op
from siri_kernels.linear_logprob.top_entries import TopEntries

from .helpers import gradients, leaves
from .test_linear_logprob_sparse import zipf_head


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def both_ways(function, inputs, *rest, up):
    """Outputs and gradients without and with the compiler."""
    graph = torch.compile(function, fullgraph=True, backend="aot_eager")
    for run in (function, graph):
        out = run(*inputs, *rest)
        yield [*out, *gradients(out, inputs, up)]


@pytest.mark.draw(3)
@pytest.mark.parametrize(
    "dtype, vocabulary", [(torch.float32, 9000), (torch.bfloat16, 9000), (torch.float64, 300)]
)
@pytest.mark.parametrize("options", ["plain", "all"])
def test_whole_graphs_and_the_same_bits(dtype, vocabulary, options):
    hidden, weight, targets = zipf_head(24, vocabulary, 0.5, dtype)
    hidden, targets = hidden.view(4, 6, -1), targets.view(4, 6)
    targets[1, ::2] = -100
    inputs, extra = leaves(hidden, weight), {}
    if options == "all":
        inputs += leaves(torch.randn(vocabulary).to(dtype))
        extra = {"temperature": torch.rand(4, 6) + 0.5, "softcap": 15.0, "tail": 0.05}

    def function(hidden, weight, bias=None):
        return linear_logprob(hidden * 1.0, weight, targets, bias=bias, **extra)

    up = torch.randn(4, 6), torch.randn(4, 6)
    up[0][2], up[1][2] = 0, 0
    take_backward_stats()
    eager, traced = both_ways(function, inputs, up=up)
    for a, b in zip(eager, traced, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert float(take_backward_stats().dense_row_frac) < 1 or vocabulary == 300


def test_another_number_of_tokens_or_temperature_does_not_compile_again():
    _, weight, _ = zipf_head(1, 9000, None)
    (weight,) = leaves(weight)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(hidden, targets, temperature):
        out = linear_logprob(hidden, weight, targets, temperature=temperature)
        return (out.logprobs + out.entropy).sum()

    graphs = []
    for tokens in (20, 31, 44, 57):
        targets = torch.randint(9000, (tokens,))
        temperature = torch.rand(()) + 0.5
        loss(torch.randn(tokens, 48), targets, temperature).backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [1, 2, 2, 2]  # the second time the size becomes a variable


def test_only_one_output_or_input():
    hidden, weight, targets = zipf_head(20, 9000, 0.5)
    for which in (0, 1):

        def one(hidden, which=which):
            return linear_logprob(hidden, weight, targets)[which : which + 1]

        eager, traced = both_ways(one, leaves(hidden), up=[torch.randn(20)])
        assert all(torch.equal(a, b) for a, b in zip(eager, traced, strict=True))


def test_autocast_is_seen():
    hidden, weight, targets = zipf_head(20, 9000, 0.5)
    inputs = leaves(hidden.bfloat16(), weight)

    def function(hidden, weight):
        with torch.autocast("cpu", torch.bfloat16):
            return linear_logprob(hidden, weight, targets)

    eager, traced = both_ways(function, inputs, up=[torch.randn(20), torch.randn(20)])
    for a, b in zip(eager, traced, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_values_are_checked_when_the_graph_runs():
    hidden, weight, targets = zipf_head(20, 300, None)
    graph = torch.compile(linear_logprob, fullgraph=True, backend="aot_eager")
    graph(hidden, weight, targets)
    with pytest.raises(ValueError, match="targets must lie in 0..299 or be ignore_index"):
        graph(hidden, weight, targets + 300)
    for bad in ({"temperature": -1.0}, {"softcap": -1.0}, {"tail": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            graph(hidden, weight, targets, **bad)
    with pytest.raises(Exception, match="weight must have shape"):
        graph(hidden, weight[0], targets)


def test_operators_are_well_formed(monkeypatch):
    """PyTorch's own checks: schema, fake kernels, autograd, dynamic shapes."""

    def empty(rows, entries, like, dtype):  # free places are compared too
        places = like.new_zeros(rows, entries)
        return TopEntries(places.int(), places.to(dtype), like.new_zeros(rows, dtype=torch.int32))

    monkeypatch.setattr(TopEntries, "empty", empty)
    hidden, weight, targets = zipf_head(10, 300, 0.5)
    inputs, temperature = leaves(hidden, weight), torch.full((), 0.7, dtype=torch.float64)
    for entries in (0, 16):
        arguments = (*inputs, targets, None, temperature, None, -100, torch.float32, 0.1, entries)
        for screen in (("", 0.0, False, 0), ("int8", 1e-4, True, 1)):
            torch.library.opcheck(custom_op.linear_logprob, (*arguments, False, *screen))
