"""The fused gradient kernel compiled for sm_90 on any machine: what it takes, and the order that
keeps its slots and its tile for the copy out safe."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from .interpreter import INTERPRETED

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="Triton was told to interpret, not to compile")
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)(.*)")
FLAGS = ("BIAS", "SOFTCAP", "SLOPE")
OPTIONS = list(itertools.product((False, True), repeat=3))


def compiled(dtype: str, options: tuple[bool, ...]) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon._runtime import GluonASTSource

    from siri_kernels.linear_logprob.triton import fused, fused_kernels
    from siri_kernels.linear_logprob.triton import fused_gradient_kernels as k

    element = {"bf16": gl.bfloat16, "fp16": gl.float16}[dtype]

    def box(*shape: int) -> str:
        layout = gl.NVMMASharedLayout.get_default_for(list(shape), element)
        return f"tensordesc<{dtype}{list(shape)},{layout!r}>"

    types = {
        "x_desc": box(fused.HALF, fused.STEP),
        "w_desc": box(fused.IDS, fused.STEP),
        "dz_desc": box(fused.HALF, fused.IDS),
        "targets": "*i32",
        **dict.fromkeys(("rule", "bias"), "*fp32"),
        **dict.fromkeys(k.SIZES, "i32"),
        **dict.fromkeys(k.NUMBERS, "fp32"),
    }
    constants = {
        "HALF": fused.HALF, "IDS": fused.IDS, "STEP": fused.STEP, "GROUP": fused_kernels.GROUP,
        "STAGES": k.STAGES, "CONSUMER_REGISTERS": fused_kernels.CONSUMER_REGISTERS,
        "PRODUCER_REGISTERS": fused_kernels.PRODUCER_REGISTERS,
        **dict(zip(FLAGS, options, strict=True)),
    }  # fmt: skip
    names = k.fused_gradient_kernel.arg_names
    source = GluonASTSource(
        fn=k.fused_gradient_kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=constants,
        attrs={
            (names.index(name),): [["tt.divisibility", 16]] for name in ("targets", "rule", "bias")
        },
    )
    target = GPUTarget("cuda", 90, 32)
    return triton.compile(source, target=target, options={"num_warps": 4, "enable_fp_fusion": True})


@pytest.mark.draw(6)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda x: "-".join(map(str, x)))
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_registers_memory_and_the_order_of_releases(dtype, options):
    from siri_kernels.aot.compiler import _nvidia

    made = compiled(dtype, options)
    bias, softcap, slope = options
    registers, stack, code = _nvidia(made.asm["cubin"])
    # Three groups of four warps: 65 536 registers are 168 a thread, lent from producer to others.
    # Nothing spills on the plain path; with options it depends on the version, up to 14 of them.
    assert registers <= 168 and stack <= (56 if any(options) else 0)
    assert made.metadata.shared <= 227 * 1024
    found = [INSTRUCTION.match(line) for line in code.splitlines()]
    steps = [(m[1], m[2]) for m in found if m]
    kinds = [name for name, _ in steps]
    # 12 instructions a logit of two warpgroups on the plain path, 16 with options.
    most = 14000 if softcap else 4800 if bias or slope else 3500
    assert len(kinds) < most, len(kinds)
    assert any("GMMA" in name for name in kinds) and any("UTMALDG" in name for name in kinds)
    assert not any(name.startswith("STG") for name in kinds)  # only the copies write
    order = [
        name
        for name in kinds
        if name.startswith(
            ("WARPGROUP.DEPBAR", "BAR.SYNC", "SYNCS.ARRIVE.TRANS64.A1T0", "STSM", "FENCE.VIEW",
             "UTMASTG", "DEPBAR", "UTMACMDFLUSH")
        )
    ]  # fmt: skip
    # A slot is released when the products that read it are waited for and all four warps are there.
    releases = [i for i, name in enumerate(order) if name.startswith("SYNCS")]
    assert len(releases) >= 4  # two a warpgroup
    for i in releases:
        assert order[i - 1].startswith("BAR") and order[i - 2].startswith("WARPGROUP"), order[:i]
    # The tile for the copy is written when all four warps know that the copy before has read it;
    # and copied when all four have written it and fenced.
    begins = [i for i, n in enumerate(order) if n == "STSM.16.M88.4" and "STSM" not in order[i - 1]]
    assert len(begins) == 2
    for i in begins:
        assert order[i - 1].startswith("BAR") and order[i - 2].startswith("DEPBAR"), order
        rest = [name for name in order[i:] if not name.startswith("STSM")][:3]
        assert order[i : i + 16] == ["STSM.16.M88.4"] * 16, order
        assert [name.split(".")[0] for name in rest] == ["FENCE", "BAR", "UTMASTG"], order
