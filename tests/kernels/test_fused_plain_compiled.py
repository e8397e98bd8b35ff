"""The fused kernel in plain Triton, compiled for sm_100 on any machine: its product accumulates in
tensor memory, and a program fits."""

from __future__ import annotations

import pytest

from .interpreter import INTERPRETED

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="Triton was told to interpret, not to compile")


@pytest.mark.parametrize(
    ("options", "dtype", "top_entries", "most_stack"),
    [
        ("", "bf16", False, 0),
        pytest.param("", "fp16", True, 80, marks=pytest.mark.costly),
        pytest.param("BIAS", "fp16", False, 0, marks=pytest.mark.costly),
        pytest.param("BIAS SOFTCAP PER_ROW", "bf16", True, 80, marks=pytest.mark.costly),
    ],
)
def test_registers_memory_and_tensor_memory(options, dtype, top_entries, most_stack):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from siri_kernels.aot.compiler import _nvidia
    from siri_kernels.linear_logprob.triton import fused, fused_plain

    kernel = fused_plain.fused_plain_kernel
    chosen = {name: name in options.split() for name in ("BIAS", "SOFTCAP", "PER_ROW")}
    constants = {
        "ROWS": 2 * fused.HALF, "IDS": fused.IDS, "STEP": fused.STEP, "GROUP": fused_plain.GROUP,
        "TOP_ENTRIES": top_entries, **chosen,
    }  # fmt: skip
    pointers = "floors part_max part_sum part_dev target_logit scratch bias".split()
    sizes = "rows vocabulary width row_blocks first_tile splits tiles_each stride".split()
    types = {
        **dict.fromkeys(pointers, "*fp32"),
        **dict.fromkeys(("targets", "part_bits"), "*i32"),
        **dict.fromkeys(sizes, "i32"),
        **dict.fromkeys(("masked", "log2_eps", "softcap", "inverse_softcap"), "fp32"),
        "scale": "*fp32" if chosen["PER_ROW"] else "fp32",
        "x_desc": f"tensordesc<{dtype}[{2 * fused.HALF}, {fused.STEP}]>",
        "w_desc": f"tensordesc<{dtype}[{fused.IDS}, {fused.STEP}]>",
    }
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: types.get(name, "constexpr") for name in names},
        constants,
        {(names.index(name),): [["tt.divisibility", 16]] for name in ("scratch", "bias")},
    )
    how = {"num_warps": fused_plain.WARPS, "num_stages": fused_plain.STAGES}
    made = triton.compile(source, target=GPUTarget("cuda", 100, 32), options=how)
    registers, stack, _ = _nvidia(made.asm["cubin"])
    assert registers <= 255
    assert stack <= most_stack, stack
    assert made.metadata.shared <= 227 * 1024
    assert "tcgen05.mma" in made.asm["ptx"]
    assert ("st.global.v4" in made.asm["ptx"]) == top_entries  # whole quarters of rows
