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


def _index_of_one_element() -> None:
    """Triton 3.6 takes ``int()`` of an array [1], which NumPy >= 2.4 refuses; 3.7 squeezes first,
    and so does this."""
    from triton.runtime import interpreter

    patch = getattr(interpreter, "_patch_lang_tensor", None)
    if patch is None:
        return

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patched


def _masks_of_a_scalar_comparison() -> None:
    """A scalar's comparison has the type of what it compares, so that beside a block it becomes
    integers; Triton 3.9 refuses these as a mask. Here it stays boolean."""
    import numpy as np
    from triton import language
    from triton.runtime import interpreter

    splat = interpreter.InterpreterBuilder.create_splat

    def boolean(self, ret_ty, arg):
        if arg.data.dtype == np.bool_:
            arg = interpreter.TensorHandle(arg.data, language.int1)
        return splat(self, ret_ty, arg)

    interpreter.InterpreterBuilder.create_splat = boolean


if INTERPRETED:
    _index_of_one_element()
    _masks_of_a_scalar_comparison()
    _replace_language_once()
