"""The real verl 0.9.1; run by ``make test-verl`` in the environment of scripts/verl.sh."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch

# Not collected elsewhere: `make test` has no verl. Asked for by name there, pytest finds nothing
# and fails. Entry points are what is tested, so a verl on the path alone is not enough.
try:
    importlib.metadata.distribution("TransferQueue")
except importlib.metadata.PackageNotFoundError:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def fresh_random_inputs(request: pytest.FixtureRequest) -> None:
    """Each test draws its own numbers, the same ones in every run."""
    torch.manual_seed(sum(map(ord, request.node.nodeid)))
