"""A DTensor among the arguments is refused by name and with a remedy, whichever argument it is, in
an eager call and while ``torch.compile`` traces it."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from siri_kernels import group_advantages, linear_logprob, policy_loss, selective_logprob, varlen

torch.manual_seed(0)
CU = torch.tensor([0, 2, 5], dtype=torch.int32)
TOKENS = {n: -torch.rand(5) for n in ("logprobs", "old_logprobs", "ref_logprobs", "entropy")}
CALLS = {
    linear_logprob: {
        "hidden": torch.randn(3, 4),
        "weight": torch.randn(6, 4),
        "targets": torch.tensor([0, 5, 2]),
        "bias": torch.randn(6),
        "temperature": torch.ones(3),
    },
    selective_logprob: {
        "logits": torch.randn(3, 6),
        "targets": torch.tensor([0, 5, 2]),
        "temperature": torch.ones(3),
    },
    policy_loss: {
        **TOKENS,
        "rollout_logprobs": -torch.rand(5),
        "advantages": torch.randn(2),
        "cu_seqlens": CU,
        "mask": torch.ones(5, dtype=torch.bool),
        "denominator": torch.tensor(3.0),
    },
    group_advantages: {"rewards": torch.rand(4), "groups": torch.tensor([0, 0, 1, 1])},
    varlen.pack: {"padded": torch.rand(2, 3), "mask": torch.ones(2, 3, dtype=torch.bool)},
}
ARGUMENTS = [(call, name) for call, given in CALLS.items() for name in given]


@pytest.fixture(scope="module")
def placed():
    from torch.distributed.tensor import Replicate, distribute_tensor, init_device_mesh

    if dist.is_initialized():
        pytest.skip("this process has a process group already")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    yield lambda tensor: distribute_tensor(tensor, mesh, [Replicate()])
    dist.destroy_process_group()


@pytest.mark.parametrize("call, name", ARGUMENTS, ids=lambda x: getattr(x, "__name__", x))
@pytest.mark.parametrize("backend", ["portable", "reference", None])
def test_refused_by_name(call, name, backend, placed):
    if call is varlen.pack and backend is not None:
        pytest.skip("takes no backend")
    options = {} if backend is None else {"backend": backend}
    call(**CALLS[call], **options)
    with pytest.raises(TypeError, match=rf"{name} must be a plain .*{name}\.full_tensor\(\)"):
        call(**{**CALLS[call], name: placed(CALLS[call][name])}, **options)


@pytest.mark.draw(6)
@pytest.mark.parametrize("call, name", ARGUMENTS, ids=lambda x: getattr(x, "__name__", x))
def test_refused_by_name_while_traced(call, name, placed):
    if call is varlen.pack:
        pytest.skip("has no operator")
    torch._dynamo.reset()
    traced = torch.compile(
        lambda given: call(**{**CALLS[call], name: given}), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(TypeError, match=rf"{name} must be a plain .*{name}\.full_tensor\(\)"):
        traced(placed(CALLS[call][name]))
