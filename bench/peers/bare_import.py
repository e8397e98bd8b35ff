"""Imports one module of a package whose ``__init__`` needs packages that are not installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


def make_importable(module: str) -> str:
    """Import ``module``, running its parents' ``__init__`` only if that works.

    Packages that bring kernels (verl, TRL) import their whole trainer first, and with it packages
    that a bare machine lacks. Where that fails, the parents are replaced by empty packages with the
    same folders, so that the kernels' own files can be read.

    Returns:
        Why it cannot be imported, empty if it can.
    """
    before, top = set(sys.modules), module.partition(".")[0]
    try:
        importlib.import_module(module)
        return ""
    except Exception:  # whatever a package does when it is imported
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == top:
                del sys.modules[name]
    try:
        sys.modules.pop(top, None)  # an empty package of an earlier call has no spec to find
        spec = importlib.util.find_spec(top)
        if spec is None or not spec.submodule_search_locations:
            return "not installed as a package"
        folder = Path(next(iter(spec.submodule_search_locations)))
        parts = module.split(".")
        for depth in range(1, len(parts)):
            name = ".".join(parts[:depth])
            empty = ModuleType(name)
            empty.__path__ = [str(folder.joinpath(*parts[1:depth]))]
            empty.__spec__ = ModuleSpec(name, None, is_package=True)
            sys.modules[name] = empty
        importlib.import_module(module)
    except Exception as error:  # the same
        text = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {text[:300]}"
    return ""
