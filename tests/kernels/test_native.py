"""Compiling a C file in the background, and which form of the policy loss a process chooses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from siri_kernels import _native, policy_loss
from siri_kernels.policy_loss import compile_loop, compiled

REAL = _native.library_path(compiled.SOURCE)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder in place of the user's, and a process that has not chosen yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(compiled.VARIABLE, raising=False)
    monkeypatch.setattr(compiled, "_choice", "open")
    monkeypatch.setattr(compiled, "_asked", False)
    monkeypatch.setattr(_native, "_running", {})
    _native._compiler.cache_clear()
    yield tmp_path / "siri_kernels"
    for compiler in _native._running.values():
        compiler.wait(_native.LONGEST)
    _native._compiler.cache_clear()


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Makes a compiler of shell commands; it finds the path of its result in $made."""

    def make(commands):
        path = tmp_path / "fake-cc"
        last = 'for made; do if [ "$before" = -o ]; then break; fi; before=$made; done\n'
        path.write_text(f"#!/bin/sh\n{last}{commands}\n")
        path.chmod(0o700)
        monkeypatch.setenv("CC", str(path))
        _native._compiler.cache_clear()

    return make


@pytest.fixture
def library():
    """A library that is right, made by the real compiler."""
    if _native.load(compiled.SOURCE, wait=True) is None:
        pytest.skip("no C compiler, or no folder for what it makes")
    return REAL


def call():
    ends = torch.tensor([0, 2, 5], dtype=torch.int32)
    logprobs = torch.linspace(-1, 1, 5, requires_grad=True)
    out = policy_loss(logprobs, torch.zeros(5), torch.tensor([1.0, -2.0]), ends)
    return out.loss.detach(), torch.autograd.grad(out.loss, logprobs)[0]


def test_the_first_call_waits_for_nothing_and_the_process_keeps_its_choice(
    library, cache, compiler, tmp_path
):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    compiler(f'read line < "{gate}"; cp "{library}" "$made"')
    assert compiled.in_use() == "open"
    first = call()  # would not come back if it waited for the compiler
    assert compiled.in_use() == "blocked"
    gate.write_text("go\n")
    (running,) = _native._running.values()
    assert running.wait(_native.LONGEST) == 0
    assert compiled.in_use() == "blocked" and all(map(torch.equal, call(), first))
    compile_loop()  # its program asks for the loop: it chooses again, as the next process does
    assert all(map(torch.allclose, call(), first)) and compiled.in_use() == "compiled"


def test_a_program_that_asked_at_its_start_waits(library, cache, compiler):
    compiler(f'cp "{library}" "$made"')
    compile_loop()
    compile_loop()
    assert len(_native._running) == 1 and compiled.in_use() == "open"
    call()
    assert compiled.in_use() == "compiled"
    assert [path.suffix for path in cache.iterdir()] == [".so"], "nothing else is left"


@pytest.mark.parametrize(
    "commands", ["exit 1", 'echo no library > "$made"', 'touch "$made"; kill $$', "exit 0"]
)
def test_a_compiler_that_fails_means_the_blocked_form(commands, cache, compiler, monkeypatch):
    compiler(commands)
    compile_loop()
    call()
    assert compiled.in_use() == "blocked"
    monkeypatch.setattr(compiled, "_choice", "open")
    monkeypatch.setenv(compiled.VARIABLE, "1")
    with pytest.raises(RuntimeError, match=f"{compiled.VARIABLE}=1, but loop.c cannot be"):
        call()


def test_a_library_that_computes_something_else_is_not_used(cache, tmp_path, monkeypatch):
    if not _native._compiler():
        pytest.skip("no C compiler")
    wrong = tmp_path / "loop.c"
    wrong.write_text("int siri_policy_loss(void) { return 0; }\n")
    monkeypatch.setattr(compiled, "SOURCE", wrong)
    compile_loop()
    loss, _ = call()
    assert compiled.in_use() == "blocked" and loss.isfinite()


def test_no_compiler_no_folder_and_a_folder_of_others(cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        patch.delenv("CC", raising=False)
        _native._compiler.cache_clear()
        assert _native.library_path(compiled.SOURCE) is None
        compile_loop(wait=True)
        assert compiled.in_use() == "blocked"
    _native._compiler.cache_clear()
    cache.mkdir(exist_ok=True)
    cache.chmod(0o777)
    assert _native.library_path(compiled.SOURCE) is None
    cache.rmdir()
    cache.write_text("a file")
    assert _native.library_path(compiled.SOURCE) is None
    monkeypatch.setattr(compiled, "_choice", "open")
    compile_loop(wait=True)
    assert compiled.in_use() == "blocked"


def test_the_variable_forbids_it(library, cache, monkeypatch):
    monkeypatch.setenv(compiled.VARIABLE, "0")
    compile_loop(wait=True)
    call()
    assert compiled.in_use() == "blocked" and not _native._running


def test_the_name_depends_on_source_and_compiler(cache, compiler, tmp_path, monkeypatch):
    compiler("exit 1")
    first = _native.library_path(compiled.SOURCE)
    assert first is not None and first == _native.library_path(compiled.SOURCE)
    source = tmp_path / "loop.c"
    source.write_bytes(compiled.SOURCE.read_bytes() + b"\n")
    assert _native.library_path(source) != first
    compiler("exit 2 # another one")
    assert _native.library_path(compiled.SOURCE) != first
    monkeypatch.setenv("CC", os.environ["CC"] + " -O3")
    second = _native.library_path(compiled.SOURCE)
    _native._compiler.cache_clear()
    assert _native.library_path(compiled.SOURCE) not in (first, second)


@pytest.mark.costly
def test_processes_that_compile_at_the_same_time_get_the_same_library(cache):
    if not _native._compiler() or shutil.which("sh") is None:
        pytest.skip("no C compiler")
    code = (
        "from siri_kernels.policy_loss import compile_loop, compiled\n"
        "compile_loop(wait=True); print(compiled.in_use())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(_native.__file__).parents[1])}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [p.communicate()[0].decode().strip() for p in started] == ["compiled", "compiled"]
    assert len(list(cache.iterdir())) == 1
