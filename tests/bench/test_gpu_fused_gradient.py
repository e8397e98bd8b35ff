"""The part about the fused gradient at the sizes of a rehearsal, without its kernel."""

from __future__ import annotations

import pytest

from bench.device import Cpu
from bench.gpu import plan
from bench.gpu.context import Context
from bench.gpu.parts import fused_gradient
from bench.gpu.records import Records, read

pytest.importorskip("triton")


def test_it_runs_puts_the_switch_back_and_times_both_forms(tmp_path, monkeypatch):
    from siri_kernels.linear_logprob.triton import fused_gradient as library

    monkeypatch.setattr(Cpu, "peak", lambda self, step: 0)
    monkeypatch.setattr(Cpu, "free", lambda self: None)
    records = Records(tmp_path / "first.jsonl", {"call": "first", "part": "x"})
    context = Context("x", records, 60.0, rehearse=True)
    before = library.ENABLED, library.GRADIENTS
    fused_gradient.run(context)
    assert not context.failures and (library.ENABLED, library.GRADIENTS) == before
    found = {r["key"]: r["value"] for r in read(tmp_path) if r["what"] == "number"}
    assert found["fused.ms.worst fused.32"] > 0 and found["fused.ms.worst apart.32"] > 0
    assert plan.BY_NAME["fused-gradient"].needs == (plan.FUSED_GRADIENT,)
    assert plan.there(plan.FUSED_GRADIENT)
