"""The kernels of 8-bit rows and of the weight's copy, compiled for every GPU on any machine."""

from __future__ import annotations

import pytest
import torch

from .interpreter import INTERPRETED

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")

import triton

from siri_kernels.aot.calls import Call, tensor
from siri_kernels.aot.compiler import report
from siri_kernels.aot.parts import PARTS
from siri_kernels.aot.variants import recorded
from siri_kernels.linear_logprob.screen_triton import rows, weight

pytestmark = pytest.mark.skipif(INTERPRETED, reason="Triton was told to interpret, not to compile")
# The rows of a weight spill on sm_80 where there is a mean too: very wide ones, and those of fp8,
# which that GPU does not have.
SPILLS = {("sm_80", 8192): 320, ("sm_80", 896): 48}
if triton.__version__.startswith("3.6"):
    SPILLS |= {("gfx942", 8192): 84}
# Widths that ``python -m siri_kernels.aot --check`` does not compile.
CASES = [
    (896, torch.float32, "fp8"),
    (97, torch.float16, "int8"),
    (16, torch.bfloat16, "int8"),
    (4096, torch.bfloat16, "int8"),
    (8192, torch.bfloat16, "int8"),
    (16384, torch.bfloat16, "int8"),
]
QUICK = [(CASES[0], "gfx942"), (CASES[1], "sm_100")]
SLOW = [(case, p.name) for case in CASES for p in PARTS if (case, p.name) not in QUICK]


@pytest.mark.parametrize(
    ("case", "name"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.costly) for case in SLOW)]
)
def test_other_widths_fit(case, name):
    width, dtype, kind = case
    (part,) = [part for part in PARTS if part.name == name]

    def make(gpu):
        count = 4096 if width % 16 == 0 else 4099
        head, hidden = (tensor(count, width, dtype=dtype) for _ in range(2))
        mean = weight.kept_copy(head, dtype, kind).mean
        index = tensor(1024, dtype=torch.int64)
        rows.hidden_rows(hidden, index, dtype, kind, mean)
        rows.hidden_rows(hidden, index, dtype, kind, None)

    variants = recorded([part], [Call("rows", make, (name,))]).values()
    assert sum(variant.name == "rows_kernel" for variant in variants) == 3
    for variant in variants:
        made = report(variant)
        stack = SPILLS.get((name, width), 0) if made.kernel == "rows_kernel" else 0
        assert made.stack <= stack, made.line()
        # The other limits are those of usual widths.
        assert made.shared <= part.shared and not made.hazards, made.line()


def test_the_products_are_those_of_tensor_cores():
    from siri_kernels.aot.compiler import compiled

    def make(gpu):
        hidden, index = tensor(4096, 1536, dtype=torch.bfloat16), tensor(64, dtype=torch.int64)
        rows.hidden_rows(hidden, index, torch.bfloat16, "int8", None)

    for part, text in zip(PARTS, ("mma.sync", "wgmma", "tcgen05.mma", "v_mfma"), strict=True):
        (variant,) = recorded([part], [Call("rows", make, (part.name,))]).values()
        asm = compiled(variant).asm
        assert text in asm.get("ptx", asm.get("amdgcn", "")), part.name
