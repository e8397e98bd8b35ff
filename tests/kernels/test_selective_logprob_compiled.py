"""selective_logprob under torch.compile: one operator in the graph, the same bits as without."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from siri_kernels import selective_logprob
from siri_kernels.linear_logprob import custom_op_selective


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def traced(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    vocabulary=st.integers(1, 400),
    temperature=st.sampled_from(["number", "one", "row", "token"]),
    results=st.sampled_from([(0,), (1,), (0, 1)]),
    strided=st.booleans(),
)
def test_one_graph_and_the_same_bits(seed, dtype, vocabulary, temperature, results, strided):
    torch.compiler.reset()
    counters.clear()
    torch.manual_seed(seed)
    logits = (3 * torch.randn(2, 5, vocabulary, 2)).to(dtype)[..., 0]
    logits[0, 0, : vocabulary // 2] = float("-inf")
    logits = logits if strided else logits.contiguous()
    targets = torch.randint(vocabulary, (2, 5))
    targets[1, ::2], targets[0, 0] = -100, vocabulary - 1
    size = {"number": None, "one": (), "row": (2, 1), "token": (2, 5)}[temperature]
    t = 0.7 if size is None else torch.rand(size) + 0.5

    def call(logits, t):
        out = selective_logprob(logits * 1.0, targets, temperature=t)
        return [out[i] for i in results]

    found = []
    for run in (call, traced(call)):
        leaf = logits.detach().requires_grad_()
        out = run(leaf, t)
        torch.autograd.backward([x.sum() for x in out])
        found.append([*out, leaf.grad])
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_another_number_of_tokens_or_temperature_does_not_compile_again():
    def call(logits, targets, temperature):
        return selective_logprob(logits, targets, temperature=temperature).logprobs

    graph = traced(call)
    for turn in range(6):
        x, y, t = torch.randn(4 + turn, 30), torch.randint(30, (4 + turn,)), 0.5 + 0.1 * turn
        torch.testing.assert_close(graph(x, y, t), call(x, y, t), rtol=0, atol=0)
    assert counters["stats"]["unique_graphs"] <= 2


GOOD = {"logits": torch.randn(2, 3, 7), "targets": torch.tensor([[0, 6, -100], [2, 1, 3]])}
REFUSED = [
    *({"temperature": t} for t in (0, -1.5, float("nan"), True, None, "1", torch.zeros(2, 1))),
    *({"temperature": torch.ones(s)} for s in ((3,), (2,), (2, 3, 1))),
    *({"ignore_index": i} for i in (1.5, True, None, 10**30)),
    *({"targets": GOOD["targets"] + n} for n in (7, -200)),
    {"targets": GOOD["targets"].int()},
    {"targets": GOOD["targets"][:1]},
    {"logits": GOOD["logits"].long()},
    {"logits": torch.tensor(1.0)},
    {"backend": "cuda"},
    {"backend": 3},
]


@pytest.mark.draw(6)
@pytest.mark.parametrize("change", REFUSED, ids=str)
def test_the_same_refusals(change):
    def call():
        return selective_logprob(**{**GOOD, **change}).logprobs

    with pytest.raises((TypeError, ValueError)) as eager:
        call()
    with pytest.raises(eager.type) as graph:
        traced(call)()
    assert str(graph.value) == str(eager.value)


def test_the_operators_are_well_formed():
    """PyTorch's own checks: schema, fake kernels, autograd, dynamic shapes."""
    logits, targets = torch.randn(4, 9, requires_grad=True), torch.tensor([0, 8, -100, 3])
    for temperature in (torch.tensor(0.7, dtype=torch.float64), torch.rand(4) + 0.5):
        given = (logits, targets, temperature, -100, False)
        torch.library.opcheck(custom_op_selective.selective_logprob, given)
