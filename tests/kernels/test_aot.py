"""Every Triton kernel compiles for every GPU generation, on a machine without one."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 compiles nothing", allow_module_level=True)

from siri_kernels import aot


@pytest.mark.parametrize("part", aot.PARTS, ids=lambda part: part.name)
def test_a_kernel_compiles(part):
    kernel, types, constants, options = next(v for v in aot.variants())
    result = aot.compile_variant(kernel, types, constants, options, part)
    assert 0 < result.registers <= 512 and 0 <= result.shared <= part.shared
    assert result.tensor_core == 0


def test_faults_are_named():
    part = aot.PARTS[0]
    good = aot.Result("k", {}, part, 32, 0, 1024, 4, True)
    assert good.faults() == []
    bad = good._replace(spills=8, shared=part.shared + 1, tensor_core=0)
    assert [fault.split()[0] for fault in bad.faults()] == ["spills", str(part.shared + 1), "no"]
    assert bad._replace(matrix=False, spills=0, shared=0).faults() == []


def test_an_argument_that_nobody_describes_is_an_error():
    kernel, types, constants, options = next(v for v in aot.variants())
    types = dict(list(types.items())[1:])
    with pytest.raises(ValueError, match="nothing is said of"):
        aot.compile_variant(kernel, types, constants, options, aot.PARTS[0])


def test_check_says_which_variant_has_a_fault(monkeypatch, capsys):
    part = aot.PARTS[1]._replace(shared=-1)
    monkeypatch.setattr(aot, "PARTS", (part,))
    assert aot.main(["--check", "--kernel", "batch_kernel"]) == 1
    assert "FAULT" in capsys.readouterr().out
    assert aot.main(["--kernel", "batch_kernel"]) == 0


def test_every_variant_is_compiled_for_every_part(monkeypatch, capsys):
    """Here without the compiler; ``make aot`` compiles them all and stops at a fault."""
    compiled = []

    def instead(kernel, types, constants, options, part):
        compiled.append((kernel.__name__, str(constants), str(types), part.name))
        return aot.Result(kernel.__name__, constants, part, 32, 0, 1024, 4, True)

    monkeypatch.setattr(aot, "compile_variant", instead)
    assert aot.main(["--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    want = len(aot.PARTS) * len(list(aot.variants()))
    assert len(lines) == 1 + want and len(set(compiled)) == want
