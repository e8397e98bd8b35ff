"""Uninitialised memory is NaN here, so that a value nobody wrote shows."""

from __future__ import annotations

import os

import pytest
import torch

# Some versions of PyTorch refuse cuBLAS's products in deterministic mode without it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def poisoned_empty():
    torch.set_num_threads(1)
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.fixture(autouse=True)
def fresh_random_inputs(request):
    """Each test draws its own numbers, the same ones in every run."""
    torch.manual_seed(sum(map(ord, request.node.nodeid)))
