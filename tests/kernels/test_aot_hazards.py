"""Races that the interpreter, which has one thread, cannot show: found in the compiled kernels."""

from __future__ import annotations

import os
import re

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 compiles nothing", allow_module_level=True)

import triton
import triton.language as tl

from siri_kernels.aot import hazards, variants
from siri_kernels.aot.compiler import compiled
from siri_kernels.aot.parts import PARTS
from siri_kernels.aot.record import specialised
from siri_kernels.aot.variants import recorded

SM_90 = PARTS[1]


@triton.jit
def late_load_kernel(values, state, stride, BLOCK: tl.constexpr):
    """A row's state is loaded by every thread after the last barrier and stored by one."""
    row = tl.program_id(0)
    x = tl.load(values + row * stride + tl.arange(0, BLOCK))
    new = tl.sum(x)
    new += tl.load(state + row)
    tl.store(state + row, new)


@triton.jit
def early_load_kernel(values, state, stride, BLOCK: tl.constexpr):
    """The same, mended: the barriers of the sum are between."""
    row = tl.program_id(0)
    before = tl.load(state + row)
    x = tl.load(values + row * stride + tl.arange(0, BLOCK))
    tl.store(state + row, before + tl.sum(x))


@triton.jit
def read_back_kernel(values, state, stride, BLOCK: tl.constexpr):
    """What one thread has stored is loaded by all."""
    row = tl.program_id(0)
    x = tl.load(values + row * stride + tl.arange(0, BLOCK))
    tl.store(state + row, tl.sum(x))
    tl.store(values + row * stride + tl.arange(0, BLOCK), x * tl.load(state + row))


@triton.jit
def shifted_kernel(values, state, stride, BLOCK: tl.constexpr):
    """Each thread loads what another stores."""
    place = values + tl.program_id(0) * stride + tl.arange(0, BLOCK)
    tl.store(place, tl.load(place + 1) * 2)


@triton.jit
def loop_kernel(values, state, stride, BLOCK: tl.constexpr):
    """A turn's load by all may come before or after the store of the turn before."""
    row = tl.program_id(0)
    for start in range(0, stride, BLOCK):
        x = tl.load(values + row * stride + start + tl.arange(0, BLOCK))
        tl.store(state + row, tl.load(state + row) + tl.sum(x))


@triton.jit
def in_place_kernel(values, state, stride, BLOCK: tl.constexpr):
    """Each thread loads and stores its own."""
    row = tl.program_id(0)
    for start in range(0, stride, BLOCK):
        place = values + row * stride + start + tl.arange(0, BLOCK)
        x = tl.load(place)
        tl.store(place, x * 2.0)


@triton.jit
def small_tile_kernel(values, state, stride, BLOCK: tl.constexpr):
    """Fewer values than threads: several hold the same one, one stores it."""
    place = values + tl.program_id(0) * stride + tl.arange(0, 16)
    x = tl.load(place)
    tl.store(place, x / tl.sum(x))


def ptx(kernel, block=1024, warps=4):
    values, state = torch.empty(64, 4096), torch.empty(64)
    constants = {"BLOCK": block, "num_warps": warps}
    variant = specialised(kernel, SM_90, (values, state, 4096), constants)
    return compiled(variant).asm["ptx"]


@pytest.mark.parametrize("warps", [4, 8])
def test_a_load_by_all_before_a_store_by_one_is_found(warps):
    found = hazards.find(ptx(late_load_kernel, warps=warps))
    assert len(found) == 1 and found[0].index("load of") < found[0].index("store of")
    assert "param_1" in found[0]


@pytest.mark.parametrize("warps", [4, 8])
def test_a_hazard_from_one_turn_of_a_loop_to_the_next_is_found(warps):
    found = hazards.find(ptx(loop_kernel, warps=warps))
    assert any(f.index("store of") < f.index("load of") for f in found)
    assert all("param_1" in f for f in found)


def test_copies_of_a_value_in_other_warps_may_be_new():
    """A warp that is late loads what the first has stored; within one warp all have loaded."""
    assert hazards.find(ptx(small_tile_kernel, warps=4))
    assert hazards.find(ptx(small_tile_kernel, warps=1)) == []


@pytest.mark.parametrize("kernel", [early_load_kernel, in_place_kernel])
@pytest.mark.parametrize("warps", [1, 4, 8])
def test_kernels_that_are_right_have_none(kernel, warps):
    assert hazards.find(ptx(kernel, warps=warps)) == []


def test_a_load_by_all_after_a_store_by_one_is_found():
    found = hazards.find(ptx(read_back_kernel))
    assert any(re.match(r"no barrier between store of \S+param_1 .* load of", f) for f in found)


def test_a_load_of_what_a_neighbour_stores_is_found():
    found = hazards.find(ptx(shifted_kernel))
    assert found and all("param_0" in f for f in found)


def without(text, line):
    lines = text.splitlines()
    lines[line] = ""
    return "\n".join(lines)


def barriers(text):
    return [i for i, line in enumerate(text.splitlines()) if re.match(r"\s+bar\.sync", line)]


@pytest.mark.parametrize("warps", [4, 8])
def test_every_barrier_that_is_deleted_is_missed(warps):
    text = ptx(early_load_kernel, warps=warps)
    assert barriers(text) and hazards.find(text) == []
    for line in barriers(text):
        assert hazards.find(without(text, line)), line


def test_a_warp_barrier_orders_one_warp_only():
    text = ptx(early_load_kernel)
    (first, *_) = barriers(text)
    lines = text.splitlines()
    lines[first] = "\tbar.warp.sync \t-1;"
    assert hazards.find("\n".join(lines))
    # A store and a load by other lanes of the same warp.
    one = re.sub(r"\.reqntid \d+", ".reqntid 32", "\n".join(lines))
    assert hazards.find(one) == []


def library_variants():
    """A handful: each kernel of the losses and advantages, once."""
    names = ("group_advantages(how=few ids, size=8", "group_advantages(how=equal, size=8")
    chosen = [c for c in variants.all_calls() if c.name.startswith(names)][-6:]
    chosen += [c for c in variants.all_calls() if c.name.startswith("policy_loss")][:2]
    return recorded([SM_90], chosen).values()


def test_the_librarys_kernels_have_none_and_need_their_barriers():
    found = {}
    for variant in library_variants():
        found.setdefault(variant.name, variant)
    assert len(found) >= 5
    for name, variant in found.items():
        text = compiled(variant).asm["ptx"]
        assert hazards.find(text) == [], name
        missed = [line for line in barriers(text)[:6] if not hazards.find(without(text, line))]
        assert missed == [], name
