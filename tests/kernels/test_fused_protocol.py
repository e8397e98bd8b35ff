"""The fused kernel's barriers: no interleaving deadlocks, overwrites a slot that is still read, or
reads one that is not full; and each planted fault is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from .fused_protocol import fault, recorded

pytest.importorskip("triton")
SOURCE = Path(__file__).parents[2] / "siri_kernels/linear_logprob/triton/fused_kernels.py"


def program(source, stages, steps, tiles, blocks=1):
    """The kernel's instructions for so many steps of a tile and tiles of a program."""
    from siri_kernels.linear_logprob.triton import fused

    constants = fused.kernel_constants(
        {"TOP_ENTRIES": True, "BIAS": False, "SOFTCAP": False, "PER_ROW": False}
    )
    constants = {k: v for k, v in constants.items() if k.isupper()} | {"STAGES": stages}
    sizes = {
        "rows": blocks * 128, "vocabulary": tiles * fused.IDS, "width": steps * fused.STEP,
        "row_blocks": blocks, "first_tile": 0, "splits": 1, "tiles_each": tiles, "stride": tiles,
    }  # fmt: skip
    return recorded(source, "fused_kernel", sizes, constants)


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
    "bytes of one warpgroup": ("(2 * HALF + IDS) * STEP * 2", "(HALF + IDS) * STEP * 2"),
    "bytes of three": ("(2 * HALF + IDS) * STEP * 2", "(3 * HALF + IDS) * STEP * 2"),
    "a copy into the other half": ("bar, lower.index(slot)", "bar, upper.index(slot)"),
    "a copy to another slot": ("bar, ids.index(slot)", "bar, ids.index((slot + 1) % STAGES)"),
    "a step is left out": ("            turn += 1\n        z = warp", "        z = warp"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name):
    old, new = FAULTS[name]
    source = SOURCE.read_text(encoding="utf-8")
    assert source.count(old) == 1, f"the kernel has changed: write this fault anew ({name})"
    found = fault(program(source.replace(old, new), 2, 3, 2))
    assert found, name
