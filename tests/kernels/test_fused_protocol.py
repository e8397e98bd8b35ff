"""The fused kernels' barriers: no interleaving deadlocks, overwrites a slot that is still read, or
reads one that is not full; and each planted fault is found."""

from __future__ import annotations

import random
from datetime import date
from pathlib import Path

import pytest

from .fused_protocol import fault, fault_outwards
from .fused_recording import recorded

pytest.importorskip("triton")
SOURCE = Path(__file__).parents[2] / "siri_kernels/linear_logprob/triton/fused_kernels.py"


def program(source, stages, steps, tiles, blocks=1, together=1):
    """The kernel's instructions for so many steps of a tile and tiles of a program."""
    from siri_kernels.linear_logprob.triton import fused

    constants = fused.kernel_constants(
        {"TOP_ENTRIES": True, "BIAS": False, "SOFTCAP": False, "PER_ROW": False}, together
    )
    constants = {k: v for k, v in constants.items() if k.isupper()} | {"STAGES": stages}
    sizes = {
        "rows": blocks * together * 128, "vocabulary": tiles * fused.IDS,
        "width": steps * fused.STEP, "row_blocks": blocks, "first_tile": 0, "splits": 1,
        "tiles_each": tiles, "stride": tiles,
    }  # fmt: skip
    return recorded(source, "fused_kernel", sizes, constants)


def gradient(stages, steps, tiles, blocks=1, old="", new=""):
    """The same of the gradient's kernel, with ``new`` for ``old``."""
    from siri_kernels.linear_logprob.triton import fused

    own = SOURCE.with_name("fused_gradient_kernels.py").read_text(encoding="utf-8")
    assert not old or own.count(old) == 1, "the kernel has changed: write this fault anew"
    constants = {
        "HALF": fused.HALF, "IDS": fused.IDS, "STEP": fused.STEP, "GROUP": 16, "BIAS": False,
        "SOFTCAP": False, "SLOPE": False, "STAGES": stages,
    }  # fmt: skip
    sizes = {
        "rows": blocks * 128, "vocabulary": tiles * fused.IDS, "width": steps * fused.STEP,
        "row_blocks": blocks, "first_tile": 0, "tiles": tiles,
    }  # fmt: skip
    source = SOURCE.read_text(encoding="utf-8") + own.replace(old, new)
    return recorded(source, "fused_gradient_kernel", sizes, constants)


def test_the_kernel_gives_these_actors():
    from siri_kernels.linear_logprob.triton import fused

    made = program(SOURCE.read_text(encoding="utf-8"), 3, 5, 2)
    *groups, producer = made.actors
    assert len(groups) == 2 and len(made.counts) == 6
    copies = [event for event in producer if event[0] == "copy"]
    assert len(copies) == 3 * 5 * 2
    assert sum(size for *_, size in copies) == (128 + fused.IDS) * 5 * fused.STEP * 2 * 2
    for group in groups:
        assert [event[0] for event in group].count("mma") == 5 * 2
        assert [event[0] for event in group].count("arrive") == 5 * 2
    assert groups[0] != groups[1]


@pytest.mark.parametrize(
    ("stages", "steps", "tiles", "blocks"),
    [
        (2, 1, 3, 2),
        (2, 3, 2, 1),
        (3, 2, 3, 1),
        (3, 7, 1, 1),
        (4, 5, 1, 1),
        pytest.param(4, 3, 1, 2, marks=pytest.mark.costly),
    ],
)
def test_every_interleaving_is_right(stages, steps, tiles, blocks):
    source = SOURCE.read_text(encoding="utf-8")
    assert fault(program(source, stages, steps, tiles, blocks)) is None


@pytest.mark.parametrize(("steps", "tiles"), [(1, 2), (5, 1)])
def test_every_interleaving_of_a_cluster_is_right(steps, tiles):
    source = SOURCE.read_text(encoding="utf-8")
    assert fault(program(source, 2, steps, tiles, together=2)) is None


STEPS = 300_000  # of drawn interleavings


@pytest.mark.parametrize("stages", [3, 4])
def test_drawn_interleavings_of_a_cluster_are_right(stages):
    """All of them are more than nine million states."""
    made = program(SOURCE.read_text(encoding="utf-8"), stages, 5, 2, together=2)
    drawn = random.Random(f"{date.today()} {stages}")
    assert fault(made, STEPS, drawn) is None


def test_a_cluster_copies_the_weight_once():
    made = program(SOURCE.read_text(encoding="utf-8"), 3, 5, 2, together=2)
    *first, copies, _, _, others = made.actors
    assert len(made.actors) == 6 and made.meet and len(first) == 2
    width = 5 * 2 * 64 * 2
    sizes = [sum(e[3] for e in actor if e[0] == "copy") for actor in (copies, others)]
    assert sizes == [(128 + 2 * 256) * width, 128 * width]
    assert {e[2][2] for e in copies if e[0] == "copy"} == {0, 1}


def test_the_ring_has_sizes_that_are_explored():
    from siri_kernels.linear_logprob.triton import fused_kernels

    assert {fused_kernels.STAGES, fused_kernels.STAGES_TOP_ENTRIES} <= {2, 3, 4}


INNER = "mbarrier.arrive(empty.index((turn + STAGES - 1) % STAGES), count=1, pred=k > 0)"
LAST = "mbarrier.arrive(empty.index((turn + STAGES - 1) % STAGES), count=1)\n"
FAULTS = {
    "no arrival after a tile": (LAST, "pass\n"),
    "no arrival within a tile": (INNER, "pass"),
    "an arrival before the first step": (INNER, INNER.replace("k > 0", "True")),
    "an arrival missed": (INNER, INNER.replace("k > 0", "k > 1")),
    "two arrivals": (INNER, INNER.replace("count=1", "count=2")),
    "the step's own slot is released": (INNER, INNER.replace("turn + STAGES - 1", "turn")),
    "a slot is released that is read": ("warpgroup_mma_wait(1,", "warpgroup_mma_wait(2,"),
    "the last products are not awaited": (f"warpgroup_mma_wait(0, deps=(z,))\n        {LAST}",
                                          f"z\n        {LAST}"),
    "full with the other parity": ("mbarrier.wait(full.index(slot), (turn // STAGES) & 1)",
                                   "mbarrier.wait(full.index(slot), ((turn // STAGES) & 1) ^ 1)"),
    "empty with the other parity": ("((turn // STAGES) & 1) ^ 1)", "(turn // STAGES) & 1)"),
    "full is not awaited": ("mbarrier.wait(full.index(slot), (turn // STAGES) & 1)", "pass"),
    "empty is not awaited": ("mbarrier.wait(empty.index(slot), ((turn // STAGES) & 1) ^ 1)",
                             "pass"),
    "one warpgroup empties": ("mbarrier.init(empty.index(i), count=2)",
                              "mbarrier.init(empty.index(i), count=1)"),
    "three warpgroups empty": ("mbarrier.init(empty.index(i), count=2)",
                               "mbarrier.init(empty.index(i), count=3)"),
    "bytes of one warpgroup": ("(2 * HALF // CLUSTER + IDS)", "(HALF // CLUSTER + IDS)"),
    "bytes of three": ("(2 * HALF // CLUSTER + IDS)", "(3 * HALF // CLUSTER + IDS)"),
    "a copy into the other half": ("bar, lower.index(slot)", "bar, upper.index(slot)"),
    "a copy to another slot": ("bar, ids.index(slot))", "bar, ids.index((slot + 1) % STAGES))"),
    "a step is left out": ("            turn += 1\n        z = warp", "        z = warp"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name):
    changed = planted(*FAULTS[name], name)
    assert fault(program(changed, 2, 3, 2)), name


WAIT = "mbarrier.wait(free.index(slot), (turn // STAGES) & 1)"
TELL = "                mbarrier.arrive(free.index(slot), count=1)\n"
EMPTY = "            mbarrier.wait(empty.index(slot), ((turn // STAGES) & 1) ^ 1)\n"
CLUSTER_FAULTS = {
    "the others' slots are not awaited": (WAIT, "pass"),
    "free with the other parity": (WAIT, WAIT.replace("& 1)", "& 1 ^ 1)")),
    "free is not told": (TELL, ""),
    "told twice": (TELL, TELL * 2),
    "told before it is free": (EMPTY, ""),
    "told of another slot": (TELL, TELL.replace("slot", "(slot + 1) % STAGES")),
    "one program is enough": ("_barriers(CLUSTER, 0)", "_barriers(CLUSTER, 1)"),
    "two arrivals of each": ("mbarrier.init(free.index(i), count=1)",
                             "mbarrier.init(free.index(i), count=2)"),
    "bytes of both programs": ("(2 * HALF // CLUSTER + IDS)", "(2 * HALF + IDS)"),
    "programs end one by one": ("        _meet()", "        pass"),
}  # fmt: skip


@pytest.mark.parametrize("name", CLUSTER_FAULTS)
def test_a_planted_fault_in_a_cluster_is_found(name):
    changed = planted(*CLUSTER_FAULTS[name], name)
    assert fault(program(changed, 2, 3, 1, together=2)), name
    drawn = random.Random(f"{date.today()} {name}")
    assert fault(program(changed, 3, 5, 2, together=2), STEPS, drawn), name


def planted(old, new, name):
    """The kernel's source with ``new`` for ``old``."""
    source = SOURCE.read_text(encoding="utf-8")
    assert source.count(old) == 1, f"the kernel has changed: write this fault anew ({name})"
    return source.replace(old, new)


@pytest.mark.parametrize(
    ("stages", "steps", "tiles", "blocks"), [(2, 3, 2, 1), (3, 2, 3, 1), (3, 1, 2, 2)]
)
def test_the_gradient_is_right_in_every_interleaving(stages, steps, tiles, blocks):
    made = gradient(stages, steps, tiles, blocks)
    assert fault(made) is None and fault_outwards(made) is None
    copied = [event[2] for actor in made.actors for event in actor if event[0] == "out"]
    every = {(64 * row, 256 * tile) for row in range(2 * blocks) for tile in range(tiles)}
    assert set(copied) == every and len(copied) == len(every)


OUT = """        tma.store_wait(0)
        out.store(grad.to(out.dtype))
        fence_async_shared()
        copy_out(dz_desc, [begin, tile * IDS], out)
    tma.store_wait(0)
"""
OUTWARD_FAULTS = {
    "the copy before is not awaited": ("        tma.store_wait(0)\n", ""),
    "one copy may be running": ("        tma.store_wait(0)\n", "        tma.store_wait(1)\n"),
    "not fenced": ("        fence_async_shared()\n", ""),
    "fenced too early": ("        out.store(grad.to(out.dtype))\n        fence_async_shared()\n",
                         "        fence_async_shared()\n        out.store(grad.to(out.dtype))\n"),
    "not written": ("        out.store(grad.to(out.dtype))\n", ""),
    "not copied": ("        copy_out(dz_desc, [begin, tile * IDS], out)\n", ""),
    "the last is not awaited": ("    tma.store_wait(0)\n", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTWARD_FAULTS)
def test_a_planted_fault_of_the_copies_out_is_found(name):
    old, new = OUTWARD_FAULTS[name]
    head, _, tail = OUT.rpartition(old)
    if name.startswith(("the copy before", "one copy")):
        head, _, tail = OUT.partition(old)
    assert fault_outwards(gradient(3, 2, 3, old=OUT, new=head + new + tail)), name
