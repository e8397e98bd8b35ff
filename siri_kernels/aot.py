"""``python -m siri_kernels.aot [--check]``: compiles every Triton kernel, without a GPU.

Prints registers, bytes of stack and local memory a thread (spills), shared memory and the
tensor-core instructions of each variant for each GPU generation. ``--check`` fails on a spill, on
more shared memory than the part has, and on a matrix kernel without tensor-core instructions.

A module of kernels says what to compile in ``aot_configs()``, which yields, a variant each,

    (kernel, types of its run-time arguments by name, constants by name)

and may add a dictionary with ``num_warps`` or ``num_stages``, and ``matrix=True`` where the kernel
must use tensor cores. Register the module in ``MODULES``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MODULES = (
    "siri_kernels.group_advantages.kernels",
    "siri_kernels.linear_logprob.kernels",
    "siri_kernels.linear_logprob.sparse_kernels",
    "siri_kernels.policy_loss.kernels",
)


class Part(NamedTuple):
    """A GPU generation."""

    name: str
    backend: str
    arch: int | str
    warp: int
    shared: int  # bytes a program may use


PARTS = (
    Part("sm_80", "cuda", 80, 32, 163 * 1024),
    Part("sm_90", "cuda", 90, 32, 227 * 1024),
    Part("sm_100", "cuda", 100, 32, 227 * 1024),
    Part("gfx942", "hip", "gfx942", 64, 64 * 1024),
)
TENSOR_CORE = re.compile(r"\b(?:HGMMA|HMMA|UTCHMMA|UTCQMMA|QGMMA|v_mfma_\w+)\b")


class Result(NamedTuple):
    """What the compiler made of one variant."""

    kernel: str
    constants: dict[str, Any]
    part: Part
    registers: int
    spills: int  # bytes a thread
    shared: int  # bytes a program
    tensor_core: int  # instructions
    matrix: bool

    def faults(self) -> list[str]:
        found = []
        if self.spills:
            found.append(f"spills {self.spills} bytes a thread")
        if self.shared > self.part.shared:
            found.append(f"{self.shared} bytes of shared memory, the part has {self.part.shared}")
        if self.matrix and not self.tensor_core:
            found.append("no tensor-core instruction")
        return found


def variants() -> Iterator[tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """All registered variants."""
    for name in MODULES:
        for kernel, types, constants, *options in importlib.import_module(name).aot_configs():
            yield kernel, types, constants, options[0] if options else {}


def compile_variant(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    options: dict[str, Any],
    part: Part,
) -> Result:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    missing = set(names) - set(types) - set(constants)
    if missing:
        raise ValueError(f"aot_configs of {kernel.__name__}: nothing is said of {sorted(missing)}")
    options, matrix = dict(options), bool(options.get("matrix"))
    options.pop("matrix", None)
    # Pointers are aligned, as PyTorch's allocations are.
    aligned: dict[Any, Any] = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if types.get(name, "").startswith("*")
    }
    signature = {name: types.get(name, "constexpr") for name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = GPUTarget(part.backend, part.arch, part.warp)
    compiled = triton.compile(source, target=target, options=options)
    if part.backend == "cuda":
        registers, spills, text = _nvidia(compiled.asm["cubin"])
    else:
        text = compiled.asm["amdgcn"]
        registers = _number(r"\.vgpr_count:\s+(\d+)", text)
        spills = 4 * _number(r"\.vgpr_spill_count:\s+(\d+)", text)
    used = len(TENSOR_CORE.findall(text))
    return Result(
        kernel.__name__,
        constants,
        part,
        registers,
        spills,
        compiled.metadata.shared,
        used,
        matrix,
    )


def _nvidia(cubin: bytes) -> tuple[int, int, str]:
    """Registers, spilled bytes and machine code of a cubin, from the tools that Triton ships."""
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m siri_kernels.aot", description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 on any fault")
    parser.add_argument("--part", choices=[p.name for p in PARTS], action="append")
    parser.add_argument("--kernel", help="only kernels with this in their name")
    given = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 compiles nothing; unset it")
    faults = 0
    for kernel, types, constants, options in variants():
        if given.kernel and given.kernel not in kernel.__name__:
            continue
        for part in PARTS:
            if given.part and part.name not in given.part:
                continue
            result = compile_variant(kernel, types, constants, options, part)
            wrong = result.faults()
            faults += bool(wrong)
            shown = " ".join(f"{k}={v}" for k, v in constants.items())
            print(
                f"{result.kernel:<20} {part.name:<7} registers {result.registers:>3}  "
                f"spills {result.spills:>3}  shared {result.shared:>6}  "
                f"tensor-core {result.tensor_core:>3}  {shown}"
                + (f"  FAULT: {'; '.join(wrong)}" if wrong else ""),
                flush=True,
            )
    print(f"{faults} of the variants have faults")
    return 1 if given.check and faults else 0


if __name__ == "__main__":
    sys.exit(main())
