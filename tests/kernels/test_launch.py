"""Launches that skip Triton's look at the arguments, with a kernel that records instead of runs."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
from siri_kernels import _launch


class Machine:
    """Machine code: remembers what it was started with."""

    def __init__(self):
        self.started = []

    def __getitem__(self, grid):
        return lambda *arguments: self.started.append((grid, arguments))


class Kernel:
    """A ``JITFunction`` that compiles for each launch that it gets."""

    def __init__(self, constants=()):
        self.arg_names = ["x", "y", "n", "BLOCK", "FLAG"]
        self.params = [SimpleNamespace(is_constexpr=name in constants) for name in self.arg_names]
        self.pre_run_hooks = []
        self.compiled = []

    def run(self):
        raise AssertionError("only its module is looked at")

    def __getitem__(self, grid):
        def compile_and_launch(*arguments, **constants):
            self.compiled.append((grid, arguments, constants))
            return Machine()

        return compile_and_launch


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(_launch, "JITFunction", Kernel)
    monkeypatch.setattr(_launch, "CompiledKernel", Machine)
    monkeypatch.setattr(_launch, "_KINDS_SUFFICE", True)
    monkeypatch.setattr(_launch, "_compiled", {})
    monkeypatch.setattr(_launch, "_positional_constants", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def launched(kernel):
    """How often the kernel was compiled, and what its machine codes were started with."""
    codes = [code for code, _ in _launch._compiled.values()]
    return len(kernel.compiled), list(itertools.chain(*(code.started for code in codes)))


def test_a_launch_of_known_kinds_starts_the_machine_code():
    kernel, x = Kernel(), torch.zeros(8)
    for n in (17, 18, 33):
        _launch.launch(kernel, (n, 2), x, x, n, FLAG=True, BLOCK=4, num_warps=2)
    compiled, started = launched(kernel)
    assert compiled == 1
    # In the kernel's order, without the compiler's options; a grid of three.
    assert started == [((n, 2, 1), (x, x, n, 4, True)) for n in (18, 33)]


VARIANTS = {
    "dtype": {"x": torch.zeros(8, dtype=torch.int32)},
    "address": {"x": torch.zeros(9)[1:]},
    "one": {"n": 1},
    "multiple": {"n": 32},
    "64 bits": {"n": 2**31 + 1},
    "unsigned": {"n": 2**63 + 1},
    "float": {"n": 0.5},
    "constant": {"BLOCK": 8},
    "none": {"y": None},
    "option": {"num_warps": 4},
}


@pytest.mark.parametrize("what", VARIANTS)
def test_other_kinds_are_compiled_for(what):
    kernel = Kernel()
    usual = {"x": torch.zeros(8), "y": torch.zeros(8), "n": 17, "BLOCK": 4, "num_warps": 2}
    for given in (usual, {**usual, **VARIANTS[what]}, usual, {**usual, **VARIANTS[what]}):
        given = dict(given)
        arguments = [given.pop(name) for name in ("x", "y", "n")]
        _launch.launch(kernel, (3,), *arguments, FLAG=True, **given)
    compiled, started = launched(kernel)
    assert compiled == 2 and len(started) == 2
    for (_, got), given in zip(started, (usual, {**usual, **VARIANTS[what]}), strict=True):
        want = (*(given[name] for name in ("x", "y", "n", "BLOCK")), True)
        assert all(a is b for a, b in zip(got, want, strict=True))


def test_a_positional_constant_counts_by_its_value():
    kernel, x = Kernel(constants=("n",)), torch.zeros(8)
    for n in (17, 18, 17):
        _launch.launch(kernel, (1,), x, x, n, BLOCK=4, FLAG=True)
    assert launched(kernel)[0] == 2


def test_another_gpu_has_its_own_machine_code(monkeypatch):
    kernel, x = Kernel(), torch.zeros(8)
    for device in (0, 1, 0):
        monkeypatch.setattr(torch.cuda, "current_device", lambda d=device: d)
        _launch.launch(kernel, (1,), x, x, 17, BLOCK=4, FLAG=True)
    assert launched(kernel)[0] == 2


@pytest.mark.parametrize("why", ["hook", "replaced", "amd"])
def test_the_long_way(why, monkeypatch):
    kernel, x = Kernel(), torch.zeros(8)
    if why == "hook":
        kernel.pre_run_hooks.append(print)
    elif why == "amd":
        monkeypatch.setattr(_launch, "_KINDS_SUFFICE", False)
    else:
        run = type("run", (), {"__module__": "another"})()
        monkeypatch.setattr(Kernel, "run", run)
    for _ in range(3):
        _launch.launch(kernel, (1,), x, x, 17, BLOCK=4, FLAG=True)
    assert len(kernel.compiled) == 3 and not _launch._compiled
