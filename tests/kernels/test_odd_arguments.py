"""Arguments of another kind: each is refused by name, on one line, or taken for what it is.

Every argument of every public function meets every one of ``ODD``.
"""

from __future__ import annotations

import inspect
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from siri_kernels import group_advantages, linear_logprob, policy_loss, selective_logprob, varlen
from siri_kernels.policy_loss import RolloutCorrection

LOSS = {
    "logprobs": torch.tensor([-0.1, -0.2, -0.3, -0.4, -0.5]),
    "old_logprobs": torch.tensor([-0.5, -0.4, -0.3, -0.2, -0.1]),
    "advantages": torch.tensor([1.0, -1.0]),
    "cu_seqlens": torch.tensor([0, 2, 5], dtype=torch.int32),
    "rollout_logprobs": torch.full((5,), -0.2),
    "ref_logprobs": torch.full((5,), -0.3),
    "entropy": torch.ones(5),
}
HEAD = {"hidden": torch.ones(4, 3), "weight": torch.eye(7, 3), "targets": torch.arange(4)}
IDS = {"rewards": torch.arange(6.0), "groups": torch.tensor([0, 0, 0, 1, 1, 1])}
CU = {"cu_seqlens": LOSS["cu_seqlens"]}
CALLS = [
    (linear_logprob, HEAD),
    (selective_logprob, {"logits": torch.eye(4, 7), "targets": torch.arange(4)}),
    (group_advantages, {"rewards": torch.arange(6.0), "groups": 3}),
    (group_advantages, {**IDS, "num_groups": 2}),
    (policy_loss, LOSS),
    (varlen.check_cu_seqlens, {**CU, "total": 5}),
    (varlen.lengths, CU),
    (varlen.cu_seqlens_from, {"lengths": torch.tensor([2, 3])}),
    (varlen.sequence_ids, {**CU, "total": 5}),
    (varlen.pack, {"padded": torch.ones(2, 3), "lengths": torch.tensor([2, 3]), "total": 5}),
    (varlen.pack, {"padded": torch.ones(2, 3), "mask": torch.ones(2, 3).bool()}),
    (varlen.unpack, {"values": torch.ones(5), **CU, "length": 3}),
    (varlen.unpack, {"values": torch.arange(5), **CU}),
    (varlen.cut, {"values": torch.ones(5), **CU, "cap": 9, "total": 5}),
    (varlen.next_token_targets, {"tokens": torch.arange(5), **CU}),
    (varlen.align_to_tokens, {"values": torch.ones(5), **CU}),
]


def tensors():
    dense = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
        quantized = torch.quantize_per_tensor(torch.ones(5), 0.1, 0, torch.quint8)
        rows = dense.to_sparse_csr()
    return {
        "sparse": torch.tensor([1.0, 0.0, 2.0, 0.0, 3.0]).to_sparse(),
        "sparse integers": torch.tensor([0, 2, 5], dtype=torch.int32).to_sparse(),
        "sparse rows": rows,
        "nested": nested,
        "quantized": quantized,
        "meta": torch.ones(5, device="meta"),
        "complex": torch.ones(5, dtype=torch.complex64),
        "8 bits": torch.ones(5).to(torch.float8_e4m3fn),
        "integer mask": torch.ones(5, dtype=torch.int64),
        "byte mask": torch.ones(2, 3, dtype=torch.uint8),
        "0-d": torch.tensor(0.5),
        "0-d integer": torch.tensor(1),
        "0-d complex": torch.tensor(1j),
        "0-d sparse": torch.tensor(1.0).to_sparse(),
        "one": torch.ones(1),
        "empty": torch.ones(0),
        "five dimensions": torch.ones(1, 2, 1, 2, 1),
        "with gradient": torch.ones(5, requires_grad=True),
        "not a number": torch.full((5,), float("nan")),
    }


ODD = {
    **{repr(x)[:20]: x for x in (10**30, -(10**30), 10**400, 2**63, -(2**63) - 1, -1, 0, 2.5)},
    **{repr(x): x for x in (float("nan"), float("inf"), 1e308, True, "x", "", b"x", 1j, None)},
    **{repr(x): x for x in ((), [1, 2], (0.5, "a"), {}, {"a": 1}, Fraction(1, 3), Decimal(1))},
    "object": object(),
    "a function": lambda: 1,
    "a type": float,
    "two lines": "a\nb",
    "float32": np.float32(0.5),
    "int64": np.int64(1),
    "numpy bool": np.bool_(True),
    "numpy 0-d": np.array(1.0),
    "numpy": np.array([1, 2, 3, 4, 5]),
    "numpy names": np.array(["clip", "cispo"]),
    "a correction of names": RolloutCorrection(mode=1, level=None, high="2", low=[]),
    **tensors(),
}


@pytest.mark.parametrize("call, given", CALLS, ids=[call.__name__ for call, _ in CALLS])
def test_refused_by_name_or_taken(call, given):
    call(**given)
    names = [n for n in inspect.signature(call).parameters if n not in ("op", "backend")]
    refused = 0
    for name in [*names, "backend"]:
        if name not in inspect.signature(call).parameters:
            continue
        for kind, value in ODD.items():
            case = f"{call.__name__}({name}={kind})"
            try:
                call(**{**given, name: value})
            except (TypeError, ValueError) as error:
                refused += 1
                message = str(error)
                assert "\n" not in message and len(message) < 400, f"{case}: {message}"
                # A tensor of the right kind may be refused for what another one makes of it.
                mutual = name in ("total", "cap") or not isinstance(given.get(name), (int, float))
                own = name in message or (
                    mutual and any(f"{other} must" in message for other in names)
                )
                assert own, f"{case}: {message}"
            except Exception as error:
                pytest.fail(f"{case}: {type(error).__name__}: {error}")
    assert refused > 10 * len(names)


def test_a_correction_is_refused_by_its_field():
    good = RolloutCorrection()
    for field in ("mode", "level", "high", "low"):
        for kind, value in ODD.items():
            correction = RolloutCorrection(**{**vars(good), field: value})
            try:
                policy_loss(**LOSS, rollout_correction=correction)
            except (TypeError, ValueError) as error:
                assert f"rollout_correction.{field}" in str(error), (kind, error)


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int32, np.int64, Fraction])
def test_numbers_of_numpy_are_numbers(number):
    one, two = number(1), number(2)
    loss = policy_loss(**LOSS, kl_coef=one, clip_high=two, denominator=two, sapo_tau=(one, two))
    want = policy_loss(**LOSS, kl_coef=1.0, clip_high=2.0, denominator=2.0, sapo_tau=(1.0, 2.0))
    assert torch.equal(loss.loss, want.loss)
    out = linear_logprob(**HEAD, temperature=two, softcap=two, tail=one)
    assert torch.equal(out.logprobs, linear_logprob(**HEAD, temperature=2.0, softcap=2.0).logprobs)
    out = group_advantages(IDS["rewards"], 3, eps=one)
    assert torch.equal(out.advantages, group_advantages(IDS["rewards"], 3, eps=1.0).advantages)
    if not issubclass(number, np.integer):
        return
    size, ids = number(3), IDS["groups"]
    assert torch.equal(group_advantages(IDS["rewards"], size, eps=one).advantages, out.advantages)
    grouped = group_advantages(IDS["rewards"], ids, num_groups=two, correction=number(1), eps=one)
    assert torch.equal(grouped.advantages, out.advantages)
    assert float(linear_logprob(**HEAD, ignore_index=two).logprobs[2]) == 0
    targets = varlen.next_token_targets(torch.arange(5), **CU, ignore_index=-two)
    assert targets.tolist() == [1, -2, 3, 4, -2]
    cut = varlen.cut(torch.arange(5), **CU, cap=one, total=two)
    assert cut.values.tolist() == [0, 2]
