"""Writing results: JSON with device, versions, commit and settings, and Markdown made from it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
MEASURING = ("device", "inputs", "measure", "memory", "real")


def environment() -> dict[str, Any]:
    """Device, cores, versions and commit of this run."""
    import torch  # here: the runner of a GPU run reads this module without torch

    found = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }
    if torch.cuda.is_available():
        found |= {"driver": _driver(), "cuda": torch.version.cuda}
    return found


def commit() -> str:
    """The commit of this tree, with "-dirty" if it is changed; or that there is no repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return "no git here"
    return done.stdout.strip() or "no repository here"


def slug(name: str) -> str:
    """A folder's name made of a device's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of these packages."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _driver() -> str:
    """The NVIDIA driver's version, where the system has it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    match = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", text)
    return match[1] if match else "unknown"


def _cpu_name() -> str:
    """The processor's name, where the system has it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def source(*more: Path) -> str:
    """A fingerprint of the measured code and of the bench, committed or not.

    Args:
        more: further files of this project that it covers.
    """
    digest = hashlib.sha256()
    folders = ("siri_kernels", "bench/peers", "bench/rows")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.[pch]*")]
    files = [path for path in files if path.suffix in (".py", ".c", ".h")]
    files += [ROOT / "bench" / f"{name}.py" for name in MEASURING]
    files += more
    for path in sorted(files):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def write(folder: Path, name: str, measured: dict[str, Any], table: str) -> None:
    """Write ``NAME.json`` and ``NAME.md``, and print the table.

    Args:
        folder: of both.
        name: of both.
        measured: keys of the JSON, besides those of :func:`environment`.
        table: the Markdown.
    """
    result = {**environment(), **measured}
    save(folder / f"{name}.json", result)
    (folder / f"{name}.md").write_text(table, encoding="utf-8")
    print(table)


def save(path: Path, result: dict[str, Any]) -> None:
    """Write JSON; an interrupted run leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
