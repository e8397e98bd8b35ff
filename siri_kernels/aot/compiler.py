"""Compiles a variant and reads the result."""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from siri_kernels.aot import hazards, machine_code
from siri_kernels.aot.record import Variant
from siri_kernels.aot.report import Report


def compiled(variant: Variant) -> Any:
    """The kernel as Triton compiles it at a launch."""
    import triton
    from triton.compiler import ASTSource

    source = ASTSource(variant.kernel, variant.signature, variant.constants, variant.attributes)
    options = dict(vars(variant.options))
    return triton.compile(source, target=variant.part.target(), options=options)


def report(variant: Variant) -> Report:
    """Compiles ``variant`` and counts."""
    made, part, named = compiled(variant), variant.part, variant.named()
    found: tuple[str, ...] = ()
    if part.backend == "cuda":
        registers, stack, text = _nvidia(made.asm["cubin"])
        counts = machine_code.nvidia(text)
        found = tuple(hazards.find(made.asm["ptx"]))
    else:
        text = made.asm["amdgcn"]
        registers = _number(r"\.vgpr_count:\s+(\d+)", text)
        stack = max(
            4 * _number(r"\.vgpr_spill_count:\s+(\d+)", text),
            _number(r"\.private_segment_fixed_size:\s+(\d+)", text),
        )
        counts = machine_code.amd(text)
    names = variant.kernel.arg_names
    aligned = frozenset(
        names[path[0]]
        for path, attributes in variant.attributes.items()
        if ["tt.divisibility", 16] in [list(a) for a in attributes]
    )
    per_element = None
    elements = named.get("BLOCK", 0)
    if elements:
        threads = part.warp * variant.options.num_warps
        per_element = counts.path * threads / math.ceil(elements)
    return Report(
        variant.name,
        named,
        part,
        aligned,
        registers,
        stack,
        made.metadata.shared,
        counts,
        per_element,
        found,
    )


def _nvidia(cubin: bytes) -> tuple[int, int, str]:
    """Registers, stack and machine code of a cubin, from the tools that Triton ships."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)

        def tool(name: str, *arguments: str) -> str:
            command = [str(tools / name), *arguments, str(path)]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        usage = tool("cuobjdump", "--dump-resource-usage")
        return (
            _number(r"REG:(\d+)", usage),
            _number(r"STACK:(\d+)", usage) + _number(r"LOCAL:(\d+)", usage),
            tool("nvdisasm", "-c"),
        )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the compiler's report has no {pattern!r}")
    return int(found.group(1))
