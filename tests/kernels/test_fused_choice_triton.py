"""Which calls take the fused kernel, and which of them two programs to a tile of the weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from siri_kernels.linear_logprob.triton import fused, measured
from siri_kernels.linear_logprob.types import LogitRule

from .interpreter import direct
from .test_fused_triton import head_call

pytestmark = direct


@pytest.mark.parametrize("gpu", ["NVIDIA H200", "NVIDIA H200 NVL", "NVIDIA H100", "NVIDIA B200"])
@pytest.mark.parametrize("version", ["3.6.0", "3.60.0", "3.7.1"])
def test_only_what_was_measured_is_chosen(gpu, version, monkeypatch):
    monkeypatch.setattr(fused, "refusal", lambda call: None)
    monkeypatch.setattr(fused, "ENABLED", None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
    monkeypatch.setattr(fused.triton, "__version__", version)
    fused._least_tokens.cache_clear()
    known = "H200" in gpu and version == "3.6.0"

    def call(tokens, entries=1024, **changed):
        this = head_call(1, 8, 4, torch.bfloat16, 1.0, 1.0, 0)
        hidden = this.hidden.expand(tokens, 8)
        return this._replace(hidden=hidden, entries=entries, **changed)

    try:
        assert fused.takes(call(2048)) == known and not fused.takes(call(2047))
        assert fused.takes(call(2048, 0)) == known and not fused.takes(call(2047, 0))
        for options in ({"bias": torch.zeros(4)}, {"rule": LogitRule(1.0, 30.0)}):
            assert not fused.takes(call(1 << 20, **options))
        monkeypatch.setattr(fused, "ENABLED", True)
        assert fused.takes(call(1)) and fused.takes(call(1, bias=torch.zeros(4)))
        monkeypatch.setattr(fused, "ENABLED", False)
        assert not fused.takes(call(1 << 20))
    finally:
        fused._least_tokens.cache_clear()


class OnGPU:
    """In the place of ``hidden``: so many tokens on a GPU."""

    device = torch.device("cuda", 0)

    def __init__(self, tokens):
        self.tokens = tokens

    def __len__(self):
        return self.tokens


@pytest.mark.parametrize("can", [False, True])
def test_programs_share_tiles_where_that_was_measured_faster(can, monkeypatch):
    gpu = "NVIDIA H300"
    lines = [
        measured.Measured(kernel, gpu, "9.9", True, False, tokens, "")
        for kernel, tokens in (("forward", 100), ("forward, multicast", 200))
    ]
    monkeypatch.setattr(measured, "MEASURED", lines)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
    monkeypatch.setattr(fused.triton, "__version__", "9.9.1")
    monkeypatch.setattr(fused, "plain", lambda device: False)
    monkeypatch.setattr(fused.fused_kernels, "CLUSTERS", can)
    fused._least_tokens.cache_clear()
    this = head_call(1, 8, 4, torch.bfloat16, 1.0, 1.0, 0)._replace(entries=1024)

    def together(tokens, **changed):
        return fused.programs_together(this._replace(hidden=OnGPU(tokens), **changed))

    try:
        assert (together(199), together(200)) == (1, 1 + can)
        assert together(200, entries=0) == together(200, bias=torch.zeros(4)) == 1
        for switch, most in ((True, 1 + can), (False, 1)):
            monkeypatch.setattr(fused, "MULTICAST", switch)
            assert together(1) == together(200) == most
    finally:
        fused._least_tokens.cache_clear()


def test_every_measured_line_names_its_results():
    root = Path(__file__).resolve().parents[2]
    for line in measured.MEASURED:
        assert line.kernel in ("forward", "forward, multicast", "gradient")
        if (root / "bench").is_dir():
            assert line.gpu in (root / line.source).read_text(encoding="utf-8"), line
