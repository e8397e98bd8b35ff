"""policy_loss and group_advantages under torch.compile: one operator each, the same bits as
without, no graph for another length or number, and the same refusals."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch._dynamo.utils import counters

from siri_kernels import group_advantages, linear_logprob, policy_loss
from siri_kernels._compiled import READS_ON_HOST
from siri_kernels.group_advantages import custom_op as advantage_operator
from siri_kernels.policy_loss import RolloutCorrection
from siri_kernels.policy_loss import custom_op as loss_operator
from siri_kernels.policy_loss.objectives import BY_HAND
from siri_kernels.policy_loss.validate import AGGREGATIONS, KL_ESTIMATORS, RATIOS

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def traced(function, fullgraph=True):
    return torch.compile(function, fullgraph=fullgraph, backend="aot_eager")


def batch(lengths=(3, 0, 9, 5), dtype=torch.float32):
    total = sum(lengths)
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    logprobs, old, ref, rollout = (-torch.rand(4, total)).to(dtype)
    return {
        "logprobs": logprobs.clone().requires_grad_(),
        "old_logprobs": old,
        "advantages": torch.randn(len(lengths)),
        "cu_seqlens": cu_seqlens,
        "mask": torch.rand(total) < 0.8,
        "rollout_logprobs": rollout,
        "ref_logprobs": ref,
        "entropy": torch.rand(total).requires_grad_(),
    }


def everything(out, given):
    grads = torch.autograd.grad(out.loss, (given["logprobs"], given["entropy"]))
    return [out.loss.detach(), *grads, *out.metrics.values()], list(out.metrics)


WAYS = list(itertools.product(BY_HAND, RATIOS))


@pytest.mark.draw(3)
@pytest.mark.parametrize("objective, ratio", WAYS)
def test_one_graph_and_the_same_bits(objective, ratio):
    at = WAYS.index((objective, ratio))
    given = batch(dtype=(torch.float32, torch.bfloat16, torch.float64)[at % 3])
    options = {
        "objective": objective,
        "ratio": ratio,
        "aggregation": AGGREGATIONS[at % 4],
        "denominator": (3, torch.tensor(5), 2.5)[at % 3],
        "kl_estimator": KL_ESTIMATORS[at % 3],
        "kl_coef": (0.1, 0)[at % 2],
        "kl_limit": (None, 0.3)[at % 2],
        "kl_unbiased": at % 4 == 0,
        "dual_clip": 3 if objective == "clip" else None,
        "entropy_coef": (0.0, 0.01)[at % 2],
        "rollout_correction": (None, "mis", RolloutCorrection("truncate", "geometric"))[at % 3],
        "off_policy_threshold": (None, 0.1)[at % 2],
    }

    def function(given):
        return policy_loss(**{**given, "logprobs": given["logprobs"] * 1.0}, **options)

    (eager, names), (got, traced_names) = (
        everything(run(given), given) for run in (function, traced(function))
    )
    assert names == traced_names
    for name, a, b in zip(["loss", "d_logprobs", "d_entropy", *names], eager, got, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), name
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_without_what_may_be_left_out():
    given = {n: batch()[n] for n in ("logprobs", "old_logprobs", "advantages", "cu_seqlens")}
    for run in (policy_loss, traced(policy_loss)):
        out = run(**given)
        (grad,) = torch.autograd.grad(out.loss, given["logprobs"])
        if run is policy_loss:
            want = out.loss, grad
    assert torch.equal(out.loss, want[0]) and torch.equal(grad, want[1])


@pytest.mark.parametrize("baseline, scale", [("mean", "group_std"), ("leave_one_out", "batch_std")])
def test_advantages(baseline, scale):
    options = {"baseline": baseline, "scale": scale}
    rewards, ids = torch.rand(12), torch.randint(0, 4, (12,))
    calls = [
        lambda r: group_advantages(r, 3, eps=1e-4, **options),
        lambda r: group_advantages(r, ids, num_groups=5, correction=0, **options),
    ]
    for call in calls:
        graph = traced(call)
        for a, b in zip(call(rewards), graph(rewards), strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_advantages_of_an_unknown_number_of_groups():
    rewards, ids = torch.rand(12), torch.randint(0, 4, (12,)) * 3
    graph = traced(lambda r, i: group_advantages(r, i).std.sum())
    assert torch.equal(graph(rewards, ids), group_advantages(rewards, ids).std.sum())


@pytest.mark.costly
def test_another_length_or_number_does_not_compile_again():
    weight = torch.randn(40, 8, requires_grad=True)

    def step(hidden, targets, old, rewards, cu_seqlens, count, temperature, coef, clip):
        out = linear_logprob(hidden, weight, targets, temperature=temperature)
        advantages = group_advantages(rewards, 2, eps=coef).advantages
        return policy_loss(
            out.logprobs,
            old,
            advantages,
            cu_seqlens,
            denominator=count,
            entropy=out.entropy,
            entropy_coef=coef,
            clip_high=clip,
        ).loss

    graph, graphs = traced(step), []
    for turn in range(9):
        tokens = 6 + turn
        given = (
            torch.randn(tokens, 8),
            torch.randint(40, (tokens,)),
            -torch.rand(tokens),
            torch.rand(4 + 2 * (turn % 2)),
            torch.tensor([0, 1, 2, 3, *[5] * (1 + 2 * (turn % 2) - 1), tokens], dtype=torch.int32),
            tokens + 0.5,
            0.5 + 0.01 * turn,
            0.01 * (turn + 1),
            0.3 + 0.01 * turn,
        )
        want, got = step(*given), graph(*given)
        grads = [torch.autograd.grad(loss, weight)[0] for loss in (want, got)]
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(grads[1], grads[0])
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[3] == graphs[-1] <= 3, graphs


def attempt(call):
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None


HEAD = {"hidden": torch.randn(2, 3, 4), "weight": torch.randn(7, 4)}
HEAD["targets"] = torch.tensor([[0, 6, -100], [2, 1, 3]])
LOSS = {n: x.detach() for n, x in batch().items()}
REWARDS = {"rewards": torch.rand(6), "groups": 3}
IDS = {"rewards": torch.rand(6), "groups": torch.tensor([0, 1, 2, 0, 1, 1])}
TEMPERATURES = [torch.ones(s) for s in ((), (1,), (1, 1), (2, 1), (1, 3), (2, 3), (3,), (2,))]
TEMPERATURES += [torch.ones(2, 3, 1), torch.tensor(NAN), torch.zeros(2, 1), torch.ones(2, 1).int()]
TEMPERATURES += [torch.ones((), requires_grad=True), 0, 2, -1.5, NAN, True, False, None, "1", [1.0]]
CASES = {
    "linear_logprob": [(linear_logprob, HEAD, {"temperature": t}) for t in TEMPERATURES]
    + [
        (linear_logprob, HEAD, change)
        for change in (
            *({"softcap": x} for x in (0, -1.0, True, "2", INF)),
            *({"tail": x} for x in (None, -1.0, NAN, "a")),
            *({"ignore_index": x} for x in (1.5, True, None, 10**30)),
            *({"targets": HEAD["targets"] + n} for n in (7, -200)),
            {"weight": torch.randn(7, 5)},
            {"targets": HEAD["targets"][:1]},
            {"backend": "cuda"},
        )
    ],
    "group_advantages": [
        (group_advantages, REWARDS, change)
        for change in (
            *({"groups": n} for n in (0, -1, 4, 2.0, True, None, 10**30)),
            *({"eps": x} for x in (-1.0, NAN, True, None, 10**400)),
            *({"correction": x} for x in (2, -1, True, "a", None)),
            *({"baseline": x} for x in ("median", None, 1)),
            {"scale": "std"},
            {"singleton": 0},
            {"num_groups": 2},
            {"rewards": torch.tensor([INF] * 6)},
            {"rewards": torch.rand(2, 3)},
            {"rewards": [1.0]},
            {"backend": "cuda"},
        )
    ]
    + [
        (group_advantages, IDS, change)
        for change in (
            *({"num_groups": n} for n in (2, 0, -1, 2.0, True, 2**31)),
            {"groups": IDS["groups"] - 1, "num_groups": 3},
            {"groups": IDS["groups"].int(), "num_groups": 3},
            {"groups": IDS["groups"][:2], "num_groups": 3},
        )
    ],
    "policy_loss": [
        (policy_loss, LOSS, change)
        for change in (
            *({"objective": x} for x in ("ppo", None, 3)),
            *({"clip_low": x} for x in (1.5, -1, NAN, True, "a", None)),
            *({"dual_clip": x} for x in (1.0, True, "3")),
            *({"delta": x} for x in (1.0, NAN)),
            *({"denominator": x} for x in (-1, NAN, True, "7", torch.tensor(-1.0), torch.ones(1))),
            *({"sapo_tau": x} for x in (1.0, (1.0,), (1.0, 0.0), (1.0, "a"), None)),
            *({"rollout_correction": x} for x in ("is", 2.0, RolloutCorrection(high=-1.0))),
            *({"kl_coef": x} for x in (-0.1, INF, None)),
            *({"kl_unbiased": x} for x in (1, None)),
            *({"entropy_coef": x} for x in (NAN, True)),
            {"kl_coef": 0.1, "ref_logprobs": None},
            {"entropy_coef": 0.1, "entropy": None},
            {"rollout_correction": "tis", "rollout_logprobs": None},
            {"rollout_correction": RolloutCorrection(mode="other")},
            {"aggregation": "token-sum-norm"},
            {"cu_seqlens": LOSS["cu_seqlens"].long()},
            {"cu_seqlens": LOSS["cu_seqlens"] + 1},
            {"advantages": torch.randn(3)},
            {"mask": LOSS["mask"].int()},
            {"mask": [True]},
            {"old_logprobs": None},
            {"logprobs": torch.randn(17, 1)},
            {"backend": "cuda"},
            {"backend": 3},
        )
    ],
}


# Each case is compiled anew: some of them here, all in the long lane.
ALL = [pytest.param(n, g, 1, marks=pytest.mark.slow) for n in CASES for g in (True, False)]


@pytest.mark.costly
@pytest.mark.parametrize("name, fullgraph, step", [*((n, True, 5) for n in CASES), *ALL])
def test_the_same_refusals(name, fullgraph, step):
    refused = 0
    for function, given, change in CASES[name][::step]:
        torch.compiler.reset()

        def call(function=function, given=given, change=change):
            return function(**{**given, **change})[0]

        want, got = attempt(call), attempt(traced(call, fullgraph))
        assert got == want, (change, want, got)
        refused += want is not None
    assert refused > 20 // step


def test_operators_are_well_formed():
    """PyTorch's own checks: schema, fake kernels, autograd, dynamic shapes."""
    given = batch()
    numbers = torch.tensor([0.2, 0.3, 1, 1, 7, 1, 0.1, 1, 0.01, 1, 1.05, 2, 0], dtype=torch.float64)
    there = [True, True, False, False, True, False, True, False, True]
    names = ("clip", "verl", "token", "token-mean", "k3", "truncate", "token", "")
    arguments = (*given.values(), None, numbers, there, False, *names)
    order = ["logprobs", "old_logprobs", "advantages", "cu_seqlens", "mask", "rollout_logprobs"]
    assert list(given) == [*order, "ref_logprobs", "entropy"]
    torch.library.opcheck(loss_operator.policy_loss, arguments)
    eps = torch.tensor([1e-6], dtype=torch.float64)
    rest = (eps, 1, "mean", "group_std", "zero", "")
    torch.library.opcheck(
        advantage_operator.group_advantages, (torch.rand(6), None, 3, None, *rest)
    )
    ids = torch.tensor([0, 1, 1, 0, 2, 2])
    torch.library.opcheck(advantage_operator.group_advantages, (torch.rand(6), ids, None, 3, *rest))


def test_an_operator_that_reads_on_the_host_says_so():
    operator = torch.ops.siri_kernels.linear_logprob_backward.default
    assert set(READS_ON_HOST) <= set(operator.tags)
    assert READS_ON_HOST or not hasattr(torch.Tag, "cudagraph_unsafe")
