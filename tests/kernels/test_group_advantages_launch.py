"""A launch of known kinds takes the machine code that Triton itself would take."""

from __future__ import annotations

import random

import pytest
import torch

from siri_kernels.aot.parts import PARTS
from siri_kernels.aot.record import driver_of

from .interpreter import INTERPRETED

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    INTERPRETED or torch.version.hip is not None, reason="about launches of compiled kernels"
)
OPTIONS = {
    "baseline": ("mean", "none"),
    "scale": ("group_std", "batch_std", "none"),
    "singleton": ("zero", "verl"),
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.int64)


@pytest.fixture
def machine(monkeypatch):
    """A stand-in for a GPU, and the machine code and arguments of what is launched on it."""
    from triton.compiler import CompiledKernel
    from triton.runtime.jit import JITFunction

    from siri_kernels import _launch as launch
    from siri_kernels.group_advantages import triton_kernels as kernels

    launched, looks = [], []

    class Code(CompiledKernel):
        """Machine code that notes its launches."""

        function = packed_metadata = None

        def __init__(self, key):
            self.key = key

        def _init_handles(self):
            pass

        def launch_metadata(self, grid, stream, *arguments):
            return None

        @property
        def run(self):
            return lambda x, y, z, stream, function, packed, metadata, enter, leave, *arguments: (
                launched.append((self.key, (x, y, z), shown(arguments)))
            )

    def compile_(self, key, signature, device, constants, options, attributes, warmup):
        looks.append(key)
        code = self.device_caches[device][0][key] = Code(key)
        return code

    monkeypatch.setattr(JITFunction, "_do_compile", compile_)
    monkeypatch.setattr(launch, "_compiled", {})
    for kernel in (kernels.group_kernel, kernels.scan_kernel, kernels.batch_kernel):
        kernel.device_caches.clear()
    with driver_of(PARTS[1]):
        yield launched, looks
    for kernel in (kernels.group_kernel, kernels.scan_kernel, kernels.batch_kernel):
        kernel.device_caches.clear()


def shown(arguments):
    """Arguments of a launch; of tensors what is the same for another call."""
    return [(a.dtype, a.shape) if isinstance(a, torch.Tensor) else a for a in arguments]


def some_call():
    """A drawn call of Triton's implementation, which can be made again."""
    from siri_kernels.group_advantages import triton

    size = random.choice((1, 8, 16, 5000))
    total = size * random.choice((1, 3, 64))
    offset = random.choice((0, 1))
    rewards = torch.zeros(total + offset, dtype=random.choice(DTYPES))[offset:]
    options = [random.choice(values) for values in OPTIONS.values()]
    groups, count = size, None
    if random.random() < 0.4:
        groups, count = torch.arange(total) // size, total // size
        groups = torch.cat([groups[:offset], groups])[offset:]
    eps, correction = random.choice((0.0, 1e-6)), random.choice((0, 1))
    return lambda: triton.group_advantages(
        rewards, groups, *options[:2], eps, correction, options[2], count
    )


def test_the_code_and_the_arguments_are_those_of_triton(machine, monkeypatch):
    from siri_kernels import _launch as launch

    launched, _ = machine
    calls = [some_call() for _ in range(60)]
    for call in calls + calls:
        call()
    known = list(launched)
    launched.clear()
    monkeypatch.setattr(launch, "_KINDS_SUFFICE", False)
    monkeypatch.setattr(launch, "_compiled", {})
    for call in calls + calls:
        call()
    assert launched == known and len({key for key, *_ in known}) > 10


def test_a_second_launch_asks_triton_for_nothing(machine, monkeypatch):
    from triton.runtime.jit import JITFunction

    launched, looks = machine
    run, asked = JITFunction.run, []

    def watched(self, *arguments, **options):
        asked.append(self.__name__)
        return run(self, *arguments, **options)

    watched.__module__ = run.__module__  # Triton's own, as the launch sees it
    monkeypatch.setattr(JITFunction, "run", watched)
    call = some_call()
    call()
    first = len(asked)
    call()
    assert first == len(asked) == len(looks) and len(launched) == 2 * first


def test_a_hook_sees_every_launch(machine):
    from siri_kernels.group_advantages import triton_kernels as kernels

    seen = []
    kernels.group_kernel.add_pre_run_hook(lambda *_, **__: seen.append(1))
    try:
        from siri_kernels.group_advantages import triton

        rewards = torch.zeros(16)
        for _ in range(3):
            triton.group_advantages(rewards, 4, "mean", "none", 0.0, 0, "zero", None)
    finally:
        kernels.group_kernel.pre_run_hooks.clear()
    assert len(seen) == 3
