"""Who takes part in the log-prob rows: each peer in a file, through its public call.

Names are fixed, whether installed or not, so that what is missing shows. ``scripts/peers.sh``
installs what a CPU can run.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from bench.peers import cce, liger, pytorch, quack, siri, trl, unsloth, verl
from bench.peers.base import Contender, Make, Missing, Where

# A log-prob per token, with any gradient coming back.
HEAD: dict[str, Make] = {
    "ours": siri.certified,
    "ours, tail=0": siri.exact,
    "eager": pytorch.eager,
    "eager, chunks": pytorch.chunks,
    "torch.compile": pytorch.compiled,
    "TRL": trl.logprob,
    "TRL, entropy too": trl.with_entropy,
    "verl, torch": verl.chunked,
    "verl, Triton": verl.triton,
    "Liger scaled CE": liger.scaled,
    "cut-cross-entropy": cce.filtered,
    "cut-cross-entropy, no filter": cce.unfiltered,
    "cut-cross-entropy, torch.compile": cce.compiled,
    "unsloth-zoo": unsloth.logprob,
}
# Only the sum over the tokens, whose gradient is known in advance: supervised training.
SCALAR: dict[str, Make] = {
    "ours": siri.certified,
    "ours, tail=0": siri.exact,
    "eager": pytorch.eager,
    "torch.compile": pytorch.compiled,
    "torch linear_cross_entropy": pytorch.native,
    "Liger FLCE": liger.scalar,
    "QuACK": quack.scalar,
    "cut-cross-entropy, torch.compile": cce.compiled,
}
PACKAGES = (
    "trl", "verl", "liger-kernel", "cut-cross-entropy", "quack-kernels", "unsloth-zoo",
    "nvidia-cutlass-dsl",
)  # fmt: skip


def found(makes: dict[str, Make], where: Where) -> tuple[dict[str, Contender], dict[str, str]]:
    """Those that can run here, and of the others the reason."""
    here: dict[str, Contender] = {}
    missing: dict[str, str] = {}
    for name, make in makes.items():
        if name in where.without:
            missing[name] = "left out by --without"
            continue
        try:
            here[name] = make(where)
        except (ImportError, OSError, RuntimeError, Missing) as error:
            text = str(error).strip().splitlines() or ["no message"]
            kind = "" if isinstance(error, Missing) else f"{type(error).__name__}: "
            missing[name] = kind + text[0]
    return here, missing


def versions() -> dict[str, str]:
    """Installed versions of the peers."""
    result = {}
    for package in PACKAGES:
        try:
            result[package] = version(package)
        except PackageNotFoundError:
            result[package] = "not installed"
    return result
