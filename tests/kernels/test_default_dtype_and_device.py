"""The process's default dtype and device decide about nothing that the library makes.

A trainer may load its model under ``torch.set_default_dtype(torch.bfloat16)`` or ``with
torch.device(...)``. Here every public function runs under other defaults, and gives the same bits.
"""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path

import pytest
import torch

import siri_kernels
from siri_kernels import (
    group_advantages,
    linear_logprob,
    policy_loss,
    selective_logprob,
    take_backward_stats,
    varlen,
)
from siri_kernels.integrations._grpo import LOSS_TYPES, GrpoOptions, grpo_loss
from siri_kernels.policy_loss import RolloutCorrection
from siri_kernels.policy_loss.validate import AGGREGATIONS, KL_ESTIMATORS, OBJECTIVES, RATIOS

from .helpers import make_linear
from .interpreter import DEVICE, INTERPRETED

BACKENDS = ["triton"] if INTERPRETED else ["portable", "reference"]


def drawn(seed=0):
    """Inputs, all with their own dtype and device; made under the usual defaults."""
    torch.manual_seed(seed)
    tokens, lengths = 24, torch.tensor([3, 0, 13, 8], dtype=torch.int32)
    hidden, weight, targets = make_linear(tokens, 16, 8192, torch.float32, peak=4.0)
    targets[::5] = -100
    logprobs, old, ref, rollout = -torch.rand(4, tokens)
    given = {
        "hidden": hidden,
        "weight": weight,
        "targets": targets,
        "bias": torch.randn(8192) / 8,
        "temperature": torch.rand(tokens) + 0.7,
        "logits": 4 * torch.randn(tokens, 300),
        "chosen": torch.randint(300, (tokens,)),
        "logprobs": logprobs,
        "old": old,
        "ref": ref,
        "rollout": rollout,
        "entropy": torch.rand(tokens),
        "mask": torch.rand(tokens) < 0.8,
        "advantages": torch.randn(4),
        "lengths": lengths,
        "rewards": torch.rand(24) + 1000,
        "ids": torch.randint(0, 5, (24,)),
        "padded": -torch.rand(4, 6),
        "padded_old": -torch.rand(4, 6),
        "padded_mask": torch.rand(4, 6) < 0.7,
        "weights": torch.rand(4, 6) + 0.5,
        "up": torch.randn(tokens),
        "count": torch.tensor(7.7),
    }
    return {name: value.to(DEVICE) for name, value in given.items()}


def differentiated(function, *inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = [x for x in function(*inputs) if x.requires_grad]
    torch.autograd.backward([x.sum() for x in outputs])
    return [*outputs, *(x.grad for x in inputs)]


def head_calls(g, backend):
    take_backward_stats()  # whatever other tests left
    for tail in (0.0, 1e-2):
        for temperature in (0.7, g["temperature"]):
            options = {"tail": tail, "temperature": temperature, "backend": backend}
            yield differentiated(
                lambda h, w, b, o=options: linear_logprob(
                    h, w, g["targets"], bias=b, softcap=30.0, **o
                ),
                g["hidden"],
                g["weight"],
                g["bias"],
            )
            yield take_backward_stats() or ()
    yield differentiated(
        lambda x: selective_logprob(x, g["chosen"], temperature=0.7, backend=backend), g["logits"]
    )


def loss_calls(g, backend):
    for objective in OBJECTIVES:
        for ratio in RATIOS:
            for number, aggregation in enumerate(AGGREGATIONS):
                given = {
                    "kl_estimator": KL_ESTIMATORS[number % 3],
                    "denominator": (7.7, g["count"])[number % 2],
                    "dual_clip": 3.0 if objective == "clip" else None,
                    "rollout_correction": RolloutCorrection(
                        ("truncate", "mask", "reject")[number % 3],
                        ("token", "sequence", "geometric")[(number + 1) % 3],
                        1.01,
                    ),
                }

                kept = []

                def call(
                    logprobs,
                    entropy,
                    o=objective,
                    r=ratio,
                    a=aggregation,
                    given=given,
                    kept=kept,
                ):
                    out = policy_loss(
                        logprobs,
                        g["old"],
                        g["advantages"],
                        varlen.cu_seqlens_from(g["lengths"]),
                        objective=o,
                        ratio=r,
                        aggregation=a,
                        mask=g["mask"],
                        entropy=entropy,
                        entropy_coef=0.01,
                        ref_logprobs=g["ref"],
                        kl_coef=0.1,
                        kl_limit=0.3,
                        rollout_logprobs=g["rollout"],
                        off_policy_threshold=0.1,
                        backend=backend,
                        **given,
                    )
                    kept.extend(out.metrics.values())
                    return [out.loss]

                yield [*differentiated(call, g["logprobs"], g["entropy"]), *kept]


def advantage_calls(g, backend):
    for baseline in ("mean", "leave_one_out", "none"):
        for scale in ("group_std", "batch_std", "none"):
            options = {"baseline": baseline, "scale": scale, "backend": backend}
            for rewards in (g["rewards"], g["rewards"].long(), g["rewards"].double()):
                yield group_advantages(rewards, 4, **options)
                yield group_advantages(rewards, g["ids"], **options)
                yield group_advantages(rewards, g["ids"], num_groups=6, singleton="verl", **options)


def varlen_calls(g, backend):
    cu_seqlens = varlen.cu_seqlens_from(g["lengths"])
    yield [varlen.lengths(cu_seqlens), varlen.sequence_ids(cu_seqlens, 24)]
    yield varlen.pack(g["padded"], g["lengths"].clamp(max=6))
    yield varlen.pack(g["padded"], mask=g["padded_mask"])
    yield [varlen.unpack(g["logprobs"], cu_seqlens)]
    yield varlen.cut(g["logprobs"], cu_seqlens, 5)
    yield varlen.cut(g["logprobs"], cu_seqlens, g["lengths"] // 2)
    yield [varlen.next_token_targets(g["targets"], cu_seqlens)]
    yield [varlen.align_to_tokens(g["logprobs"], cu_seqlens)]


def grpo_calls(g, backend):
    if backend != BACKENDS[0] or DEVICE == "cuda" or INTERPRETED:
        return  # it takes no backend
    for kind in LOSS_TYPES:
        for level in RATIOS:
            options = GrpoOptions(kind, level=level, beta=0.1)
            kept = []

            def call(logprobs, options=options, kept=kept):
                out = grpo_loss(
                    options,
                    logprobs,
                    g["padded_mask"],
                    g["advantages"],
                    old=g["padded_old"],
                    ref=g["padded_old"] * 0.9,
                    weights=g["weights"],
                    denominator=g["count"],
                )
                kept.extend(out.metrics.values())
                return [out.loss]

            yield [*differentiated(call, g["padded"]), *kept]


CALLS = [head_calls, loss_calls, advantage_calls, varlen_calls, grpo_calls]


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


DEFAULTS = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "meta": lambda: torch.device("meta"),  # what forgets its device has no values there
}


@pytest.mark.draw(4)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("calls", CALLS)
def test_defaults_change_nothing(calls, backend):
    given = drawn()
    want = list(calls(given, backend))
    for name, default in DEFAULTS.items():
        with default():
            got = list(calls(given, backend))
        assert len(got) == len(want)
        for number, (a, b) in enumerate(zip(got, want, strict=True)):
            for x, y in zip(a, b, strict=True):
                where = f"{name}, call {number}"
                assert x.dtype == y.dtype and x.device == y.device, where
                assert torch.equal(x, y), where


# Functions that make a tensor of nothing, or of numbers.
FACTORIES = {"arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace"}
FACTORIES |= {"logspace", "normal", "ones", "rand", "randint", "randn", "randperm", "range"}
FACTORIES |= {"scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros"}


def forgetful(source):
    """Lines of the source that leave the dtype or device of a new tensor to the process."""
    for node in ast.walk(ast.parse(source)):
        if not (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "torch"
        ):
            continue
        named = {keyword.arg for keyword in node.keywords}
        if node.func.attr in FACTORIES and not ({"dtype", "device"} <= named or None in named):
            yield node.lineno
        numbers = [ast.unparse(a).lstrip("-").replace(".", "").isdigit() for a in node.args[1:]]
        if node.func.attr == "where" and len(numbers) == 2 and all(numbers):
            yield node.lineno


@pytest.mark.skipif(INTERPRETED, reason="says nothing of the kernels")
def test_every_factory_call_names_dtype_and_device():
    assert list(forgetful("torch.ones(3)\ntorch.where(x, -1.0, 1)\ntorch.where(x, y, 1)")) == [1, 2]
    root = Path(siri_kernels.__file__).parent
    files = [f for f in root.rglob("*.py") if f.relative_to(root).parts[0] != "aot"]
    found = [f"{f.relative_to(root)}:{line}" for f in files for line in forgetful(f.read_text())]
    assert not found
