"""The kernels of 8-bit rows and of the weight's copy, compiled for every GPU on any machine."""

from __future__ import annotations

import pytest
import torch

from .interpreter import INTERPRETED

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")

import triton

from siri_kernels.aot.calls import Call, tensor
from siri_kernels.aot.compiler import report
from siri_kernels.aot.limits import faults_of
from siri_kernels.aot.parts import PARTS
from siri_kernels.aot.variants import recorded
from siri_kernels.linear_logprob.screen_triton import rows, weight

pytestmark = pytest.mark.skipif(INTERPRETED, reason="Triton was told to interpret, not to compile")
FNUZ = torch.float8_e4m3fnuz
# Registers of a thread at most, what was measured and 15 % more. A program of rows_kernel has 8
# warps on NVIDIA's GPUs and 4 on AMD's, which leaves it 255 and 512.
REGISTERS = {
    "fingerprint_kernel": 150,
    "sums_kernel": 175,
    "mean_kernel": 85,
    "numbers_kernel": 128,
    "outliers_kernel": 50,
    "rows_kernel": {"cuda": 255, "hip": 512},
}
# The rows of a weight spill on sm_80 where there is a mean too: very wide ones, and those of fp8,
# which that GPU does not have.
SPILLS = {("sm_80", 8192): 320, ("sm_80", 896): 48}
if triton.__version__.startswith("3.6"):
    SPILLS |= {("sm_80", 1536): 16, ("gfx942", 8192): 84}
CASES = [
    (1536, torch.bfloat16, "int8"),
    (896, torch.float32, "fp8"),
    (97, torch.float16, "int8"),
    (1001, torch.bfloat16, "fp8"),
    (16, torch.bfloat16, "int8"),
    (4096, torch.bfloat16, "int8"),
    (8192, torch.bfloat16, "int8"),
    (16384, torch.bfloat16, "int8"),
]
QUICK = [(CASES[0], "sm_90"), (CASES[1], "gfx942"), (CASES[3], "sm_80"), (CASES[2], "sm_100")]
SLOW = [(case, p.name) for case in CASES for p in PARTS if (case, p.name) not in QUICK]


@pytest.mark.parametrize(
    ("case", "name"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.costly) for case in SLOW)]
)
def test_registers_stack_and_shared_memory(case, name, monkeypatch):
    width, dtype, kind = case
    (part,) = [part for part in PARTS if part.name == name]
    if part.backend == "hip":
        monkeypatch.setattr(rows, "takes_tf32", lambda device: False)
        monkeypatch.setattr(rows, "WARPS", 4)
        if kind == "fp8":
            monkeypatch.setattr(rows, "code_dtype", lambda *given: FNUZ)

    def make(gpu):
        count = 4096 if width % 16 == 0 else 4099
        head, hidden = (tensor(count, width, dtype=dtype) for _ in range(2))
        mean = weight.kept_copy(head, dtype, kind).mean
        index = tensor(1024, dtype=torch.int64)
        rows.hidden_rows(hidden, index, dtype, kind, mean)
        rows.hidden_rows(hidden, index, dtype, kind, None)

    variants = recorded([part], [Call("rows", make)]).values()
    assert {variant.name for variant in variants} == set(REGISTERS)
    assert sum(variant.name == "rows_kernel" for variant in variants) == 3
    for variant in variants:
        made = report(variant)
        most = REGISTERS[made.kernel]
        most = most if isinstance(most, int) else most[part.backend]
        assert made.registers <= most, made.line()
        stack = SPILLS.get((part.name, width), 0) if made.kernel == "rows_kernel" else 0
        assert made.stack <= stack, made.line()
        assert not faults_of(made._replace(stack=0)), made.line()  # shared memory, hazards
        if made.kernel == "rows_kernel" and width % 16 == 0:
            assert max(made.counts.loads) == 16, made.line()
    weight.release_copies()


def test_the_products_are_those_of_tensor_cores(monkeypatch):
    from siri_kernels.aot.compiler import compiled

    def make(gpu):
        hidden, index = tensor(4096, 1536, dtype=torch.bfloat16), tensor(64, dtype=torch.int64)
        rows.hidden_rows(hidden, index, torch.bfloat16, "int8", None)

    for part, text in zip(PARTS, ("mma.sync", "wgmma", "tcgen05.mma", "v_mfma"), strict=True):
        if part.backend == "hip":
            monkeypatch.setattr(rows, "takes_tf32", lambda device: False)
        (variant,) = recorded([part], [Call("rows", make)]).values()
        asm = compiled(variant).asm
        assert text in asm.get("ptx", asm.get("amdgcn", "")), part.name
