"""Options that are NumPy's scalars, in a graph: a number, or refused in one line with a remedy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_kernels import group_advantages, linear_logprob, policy_loss, selective_logprob

torch.manual_seed(0)
HIDDEN, WEIGHT, TARGETS = torch.randn(3, 4), torch.randn(6, 4), torch.tensor([0, 5, 2])
CU = torch.tensor([0, 2, 5], dtype=torch.int32)
LOGPROBS, OLD, REF = -torch.rand(5), -torch.rand(5), -torch.rand(5)
ADVANTAGES, REWARDS = torch.randn(2), torch.rand(4)


def loss(**options):
    return policy_loss(
        LOGPROBS, OLD, ADVANTAGES, CU, ref_logprobs=REF, entropy=-LOGPROBS, **options
    ).loss


TAKEN = {
    "temperature": lambda v: linear_logprob(HIDDEN, WEIGHT, TARGETS, temperature=v).logprobs,
    "softcap": lambda v: linear_logprob(HIDDEN, WEIGHT, TARGETS, softcap=v).logprobs,
    "selective temperature": lambda v: (
        selective_logprob(HIDDEN @ WEIGHT.T, TARGETS, temperature=v).logprobs
    ),
    "eps": lambda v: group_advantages(REWARDS, 2, eps=v).advantages,
    **{
        name: lambda v, name=name: loss(**{name: v})
        for name in ("clip_low", "clip_high", "kl_coef", "kl_limit", "entropy_coef", "denominator")
    },
}
REFUSED = {
    "tail": lambda v: linear_logprob(HIDDEN, WEIGHT, TARGETS, tail=v).logprobs,
    "ignore_index": lambda v: linear_logprob(HIDDEN, WEIGHT, TARGETS, ignore_index=v).logprobs,
    "correction": lambda v: group_advantages(REWARDS, 2, correction=v).advantages,
    "groups": lambda v: group_advantages(REWARDS, v).advantages,
}


@pytest.mark.draw(3)
@pytest.mark.parametrize("name", TAKEN)
@settings(max_examples=3, derandomize=True)
@given(
    kind=st.sampled_from([np.float32, np.float64, np.float16]),
    value=st.floats(0.0625, 0.9375, width=16),
)
def test_taken_as_eager_takes_it(name, kind, value):
    torch._dynamo.reset()
    call, option = TAKEN[name], kind(value)
    traced = torch.compile(call, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(option), call(option), rtol=1e-6, atol=0)
    other = kind(value / 2)  # not a constant of the graph
    torch.testing.assert_close(traced(other), call(other), rtol=1e-6, atol=0)


@pytest.mark.draw(4)
@pytest.mark.parametrize("name", TAKEN)
def test_out_of_range_is_said_as_in_eager(name):
    torch._dynamo.reset()
    call, option = TAKEN[name], np.float64("nan")
    with pytest.raises(ValueError) as eager:
        call(option)
    with pytest.raises(ValueError) as traced:
        torch.compile(call, fullgraph=True, backend="eager")(option)
    assert str(traced.value) == str(eager.value)


@pytest.mark.draw(4)
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("kind", [np.float64, np.int64])
def test_refused_in_one_line(name, kind):
    torch._dynamo.reset()
    traced = torch.compile(REFUSED[name], fullgraph=True, backend="eager")
    says = f"{name} must be .*pass a Python number"
    with pytest.raises((TypeError, ValueError), match=says) as e:
        traced(kind(1))
    assert "\n" not in str(e.value)


def test_softcap_keeps_its_gradient_and_is_no_constant_of_the_graph():
    torch._dynamo.reset()
    hidden = HIDDEN.clone().requires_grad_()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    traced = torch.compile(
        lambda cap: linear_logprob(hidden, WEIGHT, TARGETS, softcap=cap).logprobs.sum(),
        fullgraph=True,
        backend=backend,
    )
    for cap in (0.5, 2.5, np.float64(0.5)):
        (got,) = torch.autograd.grad(traced(cap), hidden)
        (want,) = torch.autograd.grad(
            linear_logprob(hidden, WEIGHT, TARGETS, softcap=float(cap)).logprobs.sum(), hidden
        )
        torch.testing.assert_close(got, want)
    # The number, the same as any number, NumPy's.
    assert len(graphs) <= 3
