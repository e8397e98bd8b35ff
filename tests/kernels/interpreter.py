"""Where the tests of Triton kernels run: on a GPU where there is one, else in the interpreter.

Triton has to be told before it is imported. Without a GPU such a file is therefore skipped, and
``test_interpreted.py`` runs all of them in one fresh process.
"""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
direct = pytest.mark.skipif(
    not INTERPRETED and DEVICE == "cpu",
    reason="run by test_interpreted.py, or with TRITON_INTERPRET=1",
)


def _replace_language_once() -> None:
    """Halves the interpreter's time, and changes nothing else.

    A launch replaces the functions of ``triton.language``. So does, again, every call of one
    kernel function by another during that launch (triton 3.7), which here finds them replaced.
    """
    from triton import language
    from triton.runtime import interpreter

    patch, replaced = getattr(interpreter, "_patch_lang", None), set()
    if patch is None or not hasattr(interpreter, "_LangPatchScope"):
        return  # another version of Triton: slow, and right

    class Scope(interpreter._LangPatchScope):
        def restore(self):
            super().restore()
            replaced.clear()

    def patched(fn):
        seen = {id(v) for v in fn.__globals__.values() if v is language or v is language.core}
        if seen <= replaced:
            return Scope()
        scope = patch(fn)
        scope.__class__ = Scope
        replaced.update(seen)
        return scope

    interpreter._patch_lang = patched


if INTERPRETED:
    _replace_language_once()
