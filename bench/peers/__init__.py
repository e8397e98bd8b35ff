"""The registry of peers: every file of this folder that has a ``PEER`` takes part.

Tables, cases, the parts of a GPU run, versions and remedies are read from there; CONTRIBUTING says
how to add one. Labels do not depend on what is installed, so that missing peers
are listed with the reason. ``scripts/peers.sh`` installs those that run on a CPU.
"""

from __future__ import annotations

import importlib
import pkgutil

from bench.peers.base import Contender, Entry, GpuPart, Missing, Peer, Where

# They import torch and have no part of a GPU run of their own: they are in every one.
BASELINES = ("siri", "pytorch", "restated")


def registered(baselines: bool = True) -> list[Peer]:
    """All peers in their order; without the baselines torch is not imported."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [
        importlib.import_module(f"{__name__}.{name}")
        for name in names
        if baselines or name not in BASELINES
    ]
    peers = [module.PEER for module in modules if hasattr(module, "PEER")]
    return sorted(peers, key=lambda peer: peer.order)


def entries(table: str, case: str = "all", *, bare: bool = False) -> dict[str, Entry]:
    """Contenders of a table by label, installed or not.

    Args:
        table: "head", "scalar", "loss" or "advantages".
        case: of the table "head": "all", "few", "sweep" or "growth".
        bare: those of the part ``losses`` of a GPU run instead of those of the grid.
    """
    return {
        entry.label: entry
        for peer in registered()
        for entry in peer.entries
        if table in entry.tables
        and (entry.bare if bare else entry.grid)
        and (case == "all" or case in entry.cases)
    }


def found(given: dict[str, Entry], where: Where) -> tuple[dict[str, Contender], dict[str, str]]:
    """Those that can run here, and of the others the reason."""
    here: dict[str, Contender] = {}
    missing: dict[str, str] = {}
    for name, entry in given.items():
        if name in where.without:
            missing[name] = "left out by --without"
            continue
        try:
            here[name] = entry.make(where)
        except (ImportError, OSError, RuntimeError, Missing) as error:
            text = str(error).strip().splitlines() or ["no message"]
            kind = "" if isinstance(error, Missing) else f"{type(error).__name__}: "
            missing[name] = kind + text[0]
    return here, missing


def gpu_parts() -> dict[str, GpuPart]:
    """Parts of a GPU run by name, in their order."""
    parts = [part for peer in registered(baselines=False) for part in peer.parts]
    return {part.name: part for part in sorted(parts, key=lambda part: part.order)}


def packages() -> tuple[str, ...]:
    """Distributions whose versions belong to a result."""
    peers = registered(baselines=False)
    names = [*(peer.package for peer in peers), *(name for peer in peers for name in peer.also)]
    return tuple(name for name in names if name)


def remedy(module: str) -> str | None:
    """How to get a module that a part of a GPU run needs; None where no peer says."""
    remedies = (peer.remedy(module) for peer in registered(baselines=False))
    return next((text for text in remedies if text), None)
