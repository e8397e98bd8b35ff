"""The context in which kernels are launched is entered only where it changes something."""

from __future__ import annotations

import random
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from siri_kernels._device import device_of


def on_gpu(index):
    """As much of a tensor on a GPU as the context looks at."""
    return SimpleNamespace(
        is_cuda=True, device=torch.device("cuda", index), get_device=lambda: index
    )


@pytest.mark.parametrize("initialised", [False, True])
def test_another_gpu_is_made_the_current_one(monkeypatch, initialised):
    entered = []
    current, other = random.sample(range(8), 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", lambda d: entered.append(d) or nullcontext())
    for index in (current, other, current):
        with device_of(on_gpu(index)):
            pass
    # Before CUDA is used there is no current one to ask for.
    expected = [other] if initialised else [current, other, current]
    assert [device.index for device in entered] == expected


def test_nothing_is_entered_on_a_cpu(monkeypatch):
    monkeypatch.delattr(torch.cuda, "device")
    with device_of(torch.randn(3)):
        pass
