"""The fused kernel compiled for sm_90 on any machine: what it takes, and the order that keeps its
slots safe."""

from __future__ import annotations

import re
from typing import Any

import pytest

from .interpreter import INTERPRETED

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="Triton was told to interpret, not to compile")
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)(.*)")


def compiled(
    dtype: str,
    top_entries: bool,
    bias: bool = False,
    softcap: bool = False,
    per_row: bool = False,
    together: int = 1,
) -> Any:
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource

    from siri_kernels.linear_logprob.triton import fused
    from siri_kernels.linear_logprob.triton import fused_kernels as k

    boxes = fused.kernel_boxes({"bf16": torch.bfloat16, "fp16": torch.float16}[dtype], together)
    types = {
        **{
            name: f"tensordesc<{dtype}{box},{form!r}>"
            for name, (box, form) in zip(("x_desc", "w_desc"), boxes, strict=True)
        },
        **dict.fromkeys((*k.POINTERS, *k.ALIGNED), "*fp32"),
        **dict.fromkeys(("targets", "part_bits"), "*i32"),
        **dict.fromkeys(k.SIZES, "i32"),
        **dict.fromkeys(k.NUMBERS, "fp32"),
        "scale": "*fp32" if per_row else "fp32",
    }
    chosen = {"TOP_ENTRIES": top_entries, "BIAS": bias, "SOFTCAP": softcap, "PER_ROW": per_row}
    constants = fused.kernel_constants(chosen, together)
    names = k.fused_kernel.arg_names
    source = GluonASTSource(
        fn=k.fused_kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={name: value for name, value in constants.items() if name in names},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in k.ALIGNED},
    )
    options = {name: value for name, value in constants.items() if name not in names}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


# Bytes of stack and instructions at most: of Triton 3.6 and 3.7, then of newer ones, for which the
# registers do not suffice; 15 % more than was measured.
LIMITS = {
    "": ((0, 5500), (48, 9200)),
    "bias": ((0, 6600), (48, 10_200)),
    "per_row": ((0, 6200), (48, 9700)),
    "softcap": ((8, 15_500), (130, 17_100)),
    "per_row softcap": ((8, 16_200), (130, 17_600)),
    "bias softcap": ((320, 16_100), (330, 18_200)),  # a model that has both is not known
    "bias per_row softcap": ((320, 16_300), (330, 18_300)),
}
CASES = [("", "bf16", False), ("", "fp16", True), ("bias", "bf16", True), ("per_row", "bf16", True)]
SLOW = [("", "fp16", False), ("", "bf16", True)]
SLOW += [(name, "bf16", False) for name in LIMITS if name]
SLOW += [(name, "fp16", True) for name in LIMITS if name]


@pytest.mark.parametrize(
    ("options", "dtype", "top_entries"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.costly) for case in SLOW)],
)
def test_registers_memory_and_the_order_of_releases(options, dtype, top_entries):
    made = compiled(dtype, top_entries, **dict.fromkeys(options.split(), True))
    check(made, options, top_entries)


# Options are not compiled again for two programs: they change nothing of what these share.
@pytest.mark.parametrize(("dtype", "top_entries"), [("bf16", True), ("fp16", False)])
def test_two_programs_share_tiles_of_the_weight(dtype, top_entries):
    """From Triton 3.8 on; ``make test-newest`` has it."""
    from siri_kernels.linear_logprob.triton import fused_kernels

    newer = tuple(map(int, triton.__version__.split(".")[:2])) > (3, 7)
    assert fused_kernels.CLUSTERS == newer
    if not newer:
        pytest.skip("this Triton cannot have warps of their own tasks in a cluster")
    made = compiled(dtype, top_entries, together=2)
    check(made, "", top_entries)
    ptx = made.asm["ptx"]
    assert ".reqnctapercluster 2" in ptx
    # One copy to both; arrivals at the first's barriers, which count both; a meeting at the end.
    copies = re.findall(r"cp\.async\.bulk\.tensor\S*", ptx)
    assert [".multicast::cluster" in name for name in copies] == [False, False, True]
    assert len(re.findall(r"mbarrier\.arrive\.shared::cluster", ptx)) == 1
    counts = re.findall(r"mbarrier\.init\S* \[%r\d+\], (\d+)", ptx)
    assert counts == ["1", "2", "2"] * (len(counts) // 3) and len(counts) >= 9
    # Every warp takes part where programs meet: as many arrivals at each as there are groups.
    arrivals, waits = (len(re.findall(rf"barrier\.cluster\.{k}", ptx)) for k in ("arrive", "wait"))
    assert arrivals == waits >= 4


def check(made, options, top_entries):
    """What the kernel takes, and the order of its releases."""
    from siri_kernels.aot.compiler import _nvidia

    registers, stack, code = _nvidia(made.asm["cubin"])
    newer = tuple(map(int, triton.__version__.split(".")[:2])) > (3, 7)
    most_stack, most = LIMITS[options][newer]
    # Three groups of four warps: 65 536 registers are 168 a thread, lent from producer to others.
    assert registers <= 168
    assert stack <= most_stack, stack
    assert made.metadata.shared <= 227 * 1024
    found = [INSTRUCTION.match(line) for line in code.splitlines()]
    steps = [(m[1], m[2]) for m in found if m]
    kinds = [name for name, _ in steps]
    # 7 instructions a logit on the common path; twice that would not hide behind the products.
    assert len(kinds) < most, len(kinds)
    assert any("GMMA" in name for name in kinds) and any("UTMALDG" in name for name in kinds)
    if top_entries:  # pairs of logits, addresses of a register and a constant
        stores = [rest for name, rest in steps if name.startswith("STG.E.64")]
        assert len(stores) >= 128 and sum("+0x" in rest for rest in stores) > 100
    # A slot is released when the products that read it are waited for and all four warps are there.
    order = [
        name
        for name in kinds
        if name.startswith(("WARPGROUP.DEPBAR", "BAR.SYNC", "SYNCS.ARRIVE.TRANS64.A1T0"))
    ]
    releases = [i for i, name in enumerate(order) if name.startswith("SYNCS")]
    assert len(releases) >= 4  # two a warpgroup
    for i in releases:
        assert order[i - 1].startswith("BAR") and order[i - 2].startswith("WARPGROUP"), order[:i]
