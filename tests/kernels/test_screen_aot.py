"""The screened head's kernels ahead of time: for each GPU its own, and the host waits for none."""

from __future__ import annotations

import re

import pytest
import torch
from torch.overrides import TorchFunctionMode

from .interpreter import INTERPRETED

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")

from siri_kernels.aot.parts import PARTS
from siri_kernels.aot.record import FakeGPU, Recorder
from siri_kernels.aot.screened_calls import screened_calls
from siri_kernels.aot.variants import recorded

pytestmark = pytest.mark.skipif(INTERPRETED, reason="Triton was told to interpret, not to compile")
# What the products are in the compiler's text: of int8, of 8-bit floats, of bfloat16.
PRODUCTS = {
    "sm_80": (r"mma\.sync\S+\.s32\.s8\.s8\.s32", None, r"mma\.sync\S+bf16"),
    "sm_90": (r"wgmma\S+\.s32\.s8\.s8", r"wgmma\S+e4m3\.e4m3", r"wgmma\S+bf16\.bf16"),
    "sm_100": (r"mma\.sync\S+\.s32\.s8\.s8\.s32", r"tcgen05\.mma\S+f8f6f4", r"tcgen05\.mma\S+f16"),
    "gfx942": (r"v_mfma_i32\S+i8", r"v_mfma_f32\S+fp8_fp8", r"v_mfma_f32\S+bf16"),
}


def calls_of(name, **options):
    words = [f"{k}={v}" for k, v in options.items()]
    return [c for c in screened_calls() if c.parts == (name,) and all(w in c.name for w in words)]


def test_each_part_has_its_own_calls():
    names = {part.name for part in PARTS}
    assert {c.parts[0] for c in screened_calls()} == names
    assert not calls_of("sm_80", screen="fp8") and calls_of("sm_90", screen="fp8")
    variants = recorded(PARTS[:2], calls_of("sm_90")[:1] + calls_of("sm_80")[:1]).values()
    ids = {v.part.name: v.named()["IDS"] for v in variants if v.name == "screen_kernel"}
    assert ids == {"sm_80": 64, "sm_90": 256}
    amd = [v for v in recorded([PARTS[3]], calls_of("gfx942", screen="fp8")[:1]).values()]
    (signature,) = {str(v.signature) for v in amd if v.name == "screen_kernel"}
    assert "fp8e4b8" in signature


class HostReads(TorchFunctionMode):
    """Raises where the host reads a number of the GPU: fake tensors have none to give."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", str(func))
        assert name not in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__",
                            "cpu", "numpy", "nonzero", "masked_select", "unique"), name  # fmt: skip
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and name not in ("__get__",):
            given = [a for a in args if isinstance(a, torch.Tensor)]
            assert not any(a.is_cuda for a in given) or out.is_cuda, name
        return out


@pytest.mark.parametrize("name", [part.name for part in PARTS])
def test_the_host_reads_nothing_in_a_screened_forward(name):
    (part,) = [part for part in PARTS if part.name == name]
    for call in calls_of(name)[::3]:
        gpu, recorder = FakeGPU(part), Recorder([part])
        with gpu.active(), recorder.recording(call.name, part), HostReads():
            call.make(gpu)
        assert gpu.counts is None and recorder.launches >= 15


def test_a_read_is_found():
    gpu = FakeGPU(PARTS[1])
    gpu.counts = None
    with gpu.active():
        some = torch.ones(3, dtype=torch.float32, device="cuda")
        for read in (some.sum().item, some.tolist, lambda: int(some.sum())):
            with pytest.raises(RuntimeError, match="host reads"):
                read()
        for read in (some.nonzero, some.cpu, lambda: some.to("cpu"), lambda: bool(some.sum() > 0)):
            with pytest.raises(AssertionError), HostReads():
                read()


@pytest.mark.costly
@pytest.mark.parametrize("name", [part.name for part in PARTS])
def test_the_products_are_those_of_tensor_cores(name):
    from siri_kernels.aot.compiler import compiled

    (part,) = [part for part in PARTS if part.name == name]
    calls = [c for c in calls_of(name) if "tokens=16384" in c.name and "=bfloat16" in c.name]
    found = {}
    for variant in recorded([part], calls).values():
        if variant.name == "screen_kernel":
            found.setdefault("int8" if variant.named()["INTEGERS"] else "fp8", variant)
        elif variant.name == "exact_kernel":
            found.setdefault("exact", variant)
    for kind, product in zip(("int8", "fp8", "exact"), PRODUCTS[name], strict=True):
        assert (kind in found) == (product is not None)
        if product is not None:
            asm = compiled(found[kind]).asm
            assert re.search(product, asm.get("ptx") or asm["amdgcn"]), (name, kind)
