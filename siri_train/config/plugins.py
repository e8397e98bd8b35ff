"""``plugins`` of a recipe: a user's modules, imported before the other keys are looked at.

A module adds to the registries when it is imported: a schedule shape (`siri_train.schedule`), a
reward or a verifier (`siri_train.rewards`), an alarm (`siri_train.monitor.alarms`), an objective
(`siri_kernels.policy_loss.formulas`). A plug-in is a program: importing it runs its code.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from siri_train.registry import NameTaken, kept_on_error

_MODULE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def load_plugin(module: str) -> str:
    """Import a module that adds to registries. One that is imported already stays as it is.

    Args:
        module: its dotted name. It is found as any import is: installed, or in a folder of
            PYTHONPATH.

    Returns:
        The name.

    Raises:
        ValueError: in one line: it is no name of a module, there is no such module, it fails on
            import, or it adds a name that is taken. The registries are as before then.
    """
    if not _MODULE.fullmatch(module):
        raise ValueError("takes the dotted name of a Python module, as my_package.rewards")
    if module in sys.modules:
        return module
    importlib.invalidate_caches()  # it may be younger than the last look into its folder
    try:
        with _forgotten_on_error(module), kept_on_error(), _objectives_kept():
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"there is no module {error.name!r} to import for {module!r}; install its package, "
                "or put the folder that holds it on PYTHONPATH"
            ) from error
        raise ValueError(_failed(module, error)) from error
    except NameTaken as error:
        raise ValueError(f"{module}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever a user's code does
        raise ValueError(_failed(module, error)) from error
    return module


Plugin = Annotated[str, AfterValidator(load_plugin)]


@contextmanager
def _objectives_kept() -> Iterator[None]:
    """The registry of objectives, a plain dictionary of ``siri_kernels``, loses no entry."""
    from siri_kernels.policy_loss.formulas import OBJECTIVES

    before = dict(OBJECTIVES)
    try:
        yield
        for name, entry in before.items():
            if OBJECTIVES.get(name) is not entry:
                raise NameTaken(f"the objective {name!r} exists already; give yours another name")
    except BaseException:
        OBJECTIVES.clear()
        OBJECTIVES.update(before)
        raise


@contextmanager
def _forgotten_on_error(module: str) -> Iterator[None]:
    """A module whose entries were refused is imported anew the next time."""
    try:
        yield
    except BaseException:
        sys.modules.pop(module, None)
        raise


def _failed(module: str, error: BaseException) -> str:
    """That a module fails on import, why, and in which line."""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({Path(error.filename).name}, line {error.lineno})"
        reason = error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "importlib" not in f.filename and f.filename != __file__]
        place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
        reason = " ".join(str(error).split())
    reason = reason if len(reason) <= 200 else f"{reason[:197]}..."
    kind = type(error).__name__
    said = f"{kind}: {reason}" if reason else kind
    return f"{module} fails on import: {said}{place}; correct it, or take it out of plugins"
