"""Whether the packages of the extra ``train`` are installed; imports nothing but Python's own."""

from __future__ import annotations

import re
from importlib import metadata

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def missing_packages(extra: str = "train") -> list[str]:
    """Packages that an extra of siri-kernels names and that are not installed.

    Args:
        extra: of ``pyproject.toml``.

    Returns:
        Their names, in the order of the extra. Empty also where siri-kernels itself is not
        installed, as in a tree on ``PYTHONPATH``: then nothing says what is needed.
    """
    try:
        required = metadata.requires("siri-kernels") or []
    except metadata.PackageNotFoundError:
        return []
    of_extra = re.compile(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""")
    missing = []
    for line in required:
        condition = line.partition(";")[2]
        if not of_extra.search(condition) or "platform_system" in condition:
            continue  # what a platform lacks has a substitute
        name = _NAME.match(line)
        assert name is not None, line
        try:
            metadata.distribution(name[0])
        except metadata.PackageNotFoundError:
            missing.append(name[0])
    return missing
