"""Calls of every public function, each tensor argument in turn with strides of its own.

A tensor that is not contiguous holds something else between its elements: NaN, or an integer that
is allowed but wrong, so that a kernel which takes it for contiguous gives another result.
"""

from __future__ import annotations

from typing import Any

import torch

from siri_kernels import group_advantages, linear_logprob, policy_loss, selective_logprob

from .interpreter import DEVICE

KINDS = ("step", "column", "offset", "expanded")


def strided(x: torch.Tensor, kind: str) -> torch.Tensor:
    """The values of ``x`` (expanded: of its first row) with strides of this kind."""
    fill: Any = float("nan") if x.is_floating_point() else 1
    if x.dim() == 0:
        return torch.stack([x.new_full((), fill), x])[1]
    if kind == "expanded":
        return x[:1].expand(x.shape)
    if kind == "step":
        between = x.new_full((*x.shape, 2), fill)
        between[..., 0] = x
        return between[..., 0]
    if kind == "offset":
        around = x.new_full(tuple(n + 3 for n in x.shape), fill)
        inside = around[tuple(slice(1, 1 + n) for n in x.shape)]
        return inside.copy_(x)
    if x.dim() > 1:
        return x.t().contiguous().t()
    matrix = x.new_full((len(x), 3), fill)
    matrix[:, 1] = x
    return matrix[:, 1]


def linear_inputs(vocabulary: int, tokens: int = 9, width: int = 16) -> dict[str, torch.Tensor]:
    """A softmax that is sure of its targets, so that few entries are within the error bound."""
    weight = torch.randn(vocabulary, width)
    targets = torch.randint(1, vocabulary, (tokens,))
    hidden = 1.5 * weight[targets] + 0.1 * torch.randn(tokens, width)
    return {
        "hidden": hidden,
        "weight": weight,
        "targets": targets,
        "bias": torch.randn(vocabulary),
        "temperature": torch.rand(tokens) + 0.5,
        "of logprobs": torch.randn(tokens),
        "of entropy": torch.randn(tokens),
    }


def selective_inputs(vocabulary: int) -> dict[str, torch.Tensor]:
    given = linear_inputs(vocabulary)
    logits = given.pop("hidden") @ given.pop("weight").t() + given.pop("bias")
    return {"logits": logits, **given}


def advantage_inputs() -> dict[str, torch.Tensor]:
    return {"rewards": torch.rand(24), "groups": torch.randint(0, 5, (24,))}


def loss_inputs(per_token: bool) -> dict[str, torch.Tensor]:
    total, sequences = 40, 4
    return {
        "logprobs": -torch.rand(total),
        "old_logprobs": -torch.rand(total),
        "advantages": torch.randn(total if per_token else sequences),
        "cu_seqlens": torch.tensor([0, 7, 7, 30, total], dtype=torch.int32),
        "mask": torch.rand(total) < 0.8,
        "rollout_logprobs": -torch.rand(total),
        "ref_logprobs": -torch.rand(total),
        "entropy": torch.rand(total),
        "denominator": torch.tensor(17.0),
    }


def _results(out: Any, upstream: list[torch.Tensor], leaves: list[torch.Tensor]) -> list[Any]:
    grads = torch.autograd.grad(list(out), leaves, upstream)
    return [*(o.detach() for o in out), *grads]


def call_linear(backend: str, given: dict[str, torch.Tensor]) -> list[Any]:
    names = ("hidden", "weight", "bias")
    leaves = {name: given[name].detach().requires_grad_() for name in names}
    rest = {name: given[name] for name in ("targets", "temperature")}
    out = linear_logprob(**leaves, **rest, backend=backend)
    return _results(out, [given["of logprobs"], given["of entropy"]], list(leaves.values()))


def call_selective(backend: str, given: dict[str, torch.Tensor]) -> list[Any]:
    logits = given["logits"].detach().requires_grad_()
    rest = {name: given[name] for name in ("targets", "temperature")}
    out = selective_logprob(logits, **rest, backend=backend)
    return _results(out, [given["of logprobs"], given["of entropy"]], [logits])


def call_advantages(backend: str, given: dict[str, torch.Tensor], **options: Any) -> list[Any]:
    return list(group_advantages(**given, **options, backend=backend))


def call_loss(backend: str, given: dict[str, torch.Tensor]) -> list[Any]:
    leaves = {n: given[n].detach().requires_grad_() for n in ("logprobs", "entropy")}
    out = policy_loss(
        **{**given, **leaves},
        ratio="sequence",
        rollout_correction="mis",
        off_policy_threshold=0.1,
        kl_coef=0.1,
        entropy_coef=0.01,
        backend=backend,
    )
    grads = torch.autograd.grad(out.loss, list(leaves.values()))
    return [out.loss.detach(), *out.metrics.values(), *grads]


def assert_strides_change_nothing(
    call: Any, backend: str, given: dict[str, torch.Tensor], name: str, kind: str
) -> None:
    """Results and gradients of ``call`` with argument ``name`` strided, and contiguous."""
    given = {n: x.to(DEVICE) for n, x in given.items()}
    given[name] = strided(given[name], kind)
    got = call(backend, given)
    want = call(backend, {n: x.contiguous().clone() for n, x in given.items()})
    for a, b in zip(got, want, strict=True):
        assert b.isfinite().all()
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def cases(small: bool) -> list[Any]:
    """(function, its inputs, name of the argument, kind), the draw of kinds fixed.

    ``small``: every kind of every argument; else those with top entries, a kind for each argument.
    """
    found: list[Any] = []
    if not small:
        # Each row's last token: a column of ids, as a trainer hands it over.
        draw = ("step", "column", "column", "step", "offset", "expanded", "column")
        names = linear_inputs(8192)
        return [
            (call_linear, linear_inputs, 8192, name, kind)
            for name, kind in zip(names, draw, strict=True)
        ]
    for kind in KINDS:
        for name in linear_inputs(96):
            found.append((call_linear, linear_inputs, 96, name, kind))
        for name in selective_inputs(96):
            found.append((call_selective, selective_inputs, 96, name, kind))
        for name in advantage_inputs():
            for options in ({}, {"num_groups": 6}, {"scale": "batch_std"}):
                call = _with(call_advantages, options)
                found.append((call, advantage_inputs, None, name, kind))
        for per_token in (False, True):
            for name in loss_inputs(per_token):
                if (name, kind) != ("cu_seqlens", "expanded"):  # its values differ
                    found.append((call_loss, loss_inputs, per_token, name, kind))
    return found


def _with(call: Any, options: dict[str, Any]) -> Any:
    def chosen(backend: str, given: dict[str, torch.Tensor]) -> list[Any]:
        return call(backend, given, **options)

    chosen.__name__ = "_".join([call.__name__, *options])
    return chosen


def check(case: Any, backend: str) -> None:
    """One of ``cases``."""
    call, inputs, argument, name, kind = case
    given = inputs() if argument is None else inputs(argument)
    assert_strides_change_nothing(call, backend, given, name, kind)


def label(case: Any) -> str:
    """The name of a case in pytest's output."""
    call, _, argument, name, kind = case
    return f"{call.__name__}-{argument}-{name}-{kind}".replace(" ", "_")
