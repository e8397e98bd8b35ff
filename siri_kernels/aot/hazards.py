"""Accesses of two threads to one address that no barrier orders, found in a kernel's PTX.

A Triton program reads as if it were one thread, but many threads make its loads and stores. A value
that all of them load and one of them stores may be the new one for a late warp, unless there is a
barrier in between. Triton puts barriers around shared memory only. :func:`find` looks, on every
path through the kernel, for a load and a store (in either order) without a barrier in between, of

* one pointer argument: the same address, or addresses whose difference is not known;
* shared memory: bytes in common

by different threads. Addresses come from :mod:`siri_kernels.aot.ptx`. Where they differ by known
numbers they are compared thread by thread, without the threads that a predicate excludes. A symbol
has one value here, so accesses in different turns of a loop are compared as if in one. Two pointer
arguments never overlap, and other programs are not looked at. ``bar.warp.sync`` orders the threads
of a warp. A shuffle, which waits for the threads of its warp, orders their loads before a store:
the loads have been issued; it does not make a store visible to a load.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from siri_kernels.aot.ptx import Instruction, Program, Value, symbol

WARP = 32
# The order between an access that was made and the next one, for the threads of one warp.
NOTHING, SHUFFLE, WARP_BARRIER = range(3)


class Access(NamedTuple):
    """A load or a store.

    Attributes:
        instruction: that makes it.
        space: "shared" or "global".
        argument: the pointer argument, or None.
        address: in bytes.
        size: in bytes.
        active: bool for each thread: those that may make it.
        loads: whether it loads.
        stores: whether it stores.
        atomic: whether it is atomic.
    """

    instruction: Instruction
    space: str
    argument: str | None
    address: Value
    size: int
    active: Any
    loads: bool
    stores: bool
    atomic: bool

    def words(self) -> str:
        """The access as a message names it."""
        what = "atomic" if self.atomic else "store" if self.stores else "load"
        where = self.argument or self.space
        return f"{what} of {where} (PTX line {self.instruction.place + 1})"


def find(text: str) -> list[str]:
    """The hazards of the kernel in this PTX, in words."""
    program = Program(text)
    active = _active(program)
    accesses = {
        instruction.place: access
        for number, block in enumerate(program.blocks)
        for instruction in block
        if (access := _access(program, instruction, active[number])) is not None
    }
    # Only what is both loaded and stored can be a hazard.
    stored = {a.argument for a in accesses.values() if a.stores and a.space == "global"}
    loaded = {a.argument for a in accesses.values() if a.loads and a.space == "global"}
    both = stored & loaded
    accesses = {
        place: a for place, a in accesses.items() if a.space == "shared" or a.argument in both
    }
    found: dict[tuple[int, int], str] = {}
    compared: dict[tuple[int, int, int], bool] = {}
    # Accesses since the last barrier, and what orders them within a warp.
    before: list[dict[int, int]] = [{} for _ in program.blocks]
    todo = [0]
    visited = set()
    while todo:
        number = todo.pop()
        visited.add(number)
        pending = dict(before[number])
        for instruction in program.blocks[number]:
            kinds = instruction.kinds()
            if kinds[0] in ("bar", "barrier"):
                if "warp" in kinds:
                    pending = dict.fromkeys(pending, WARP_BARRIER)
                elif "arrive" not in kinds:
                    pending = {}
                continue
            if "sync" in kinds and kinds[0] in ("shfl", "redux", "vote", "match"):
                pending = {place: max(order, SHUFFLE) for place, order in pending.items()}
            access = accesses.get(instruction.place)
            if access is None:
                continue
            for place, order in pending.items():
                key = (place, instruction.place, order)
                if key not in compared:
                    compared[key] = _conflict(accesses[place], access, order)
                    if compared[key]:
                        first = accesses[place].words()
                        found[key[:2]] = f"no barrier between {first} and {access.words()}"
            pending[instruction.place] = NOTHING
        for other, _, _ in program.successors(number):
            merged = dict(before[other])
            for place, order in pending.items():
                merged[place] = min(merged.get(place, WARP_BARRIER), order)
            if merged != before[other] or other not in visited:
                before[other] = merged
                todo.append(other)
    return [found[key] for key in sorted(found)]


def _active(program: Program) -> list[Any]:
    """For each block the threads that may come there."""
    nobody = np.zeros(program.threads, dtype=bool)
    active = [nobody] * len(program.blocks)
    active[0] = ~nobody
    todo = [0]
    while todo:
        number = todo.pop()
        for other, predicate, negated in program.successors(number):
            there = active[other] | (active[number] & _taken(predicate, negated))
            if (there != active[other]).any():
                active[other] = there
                todo.append(other)
    return active


def _taken(predicate: Value | None, negated: bool) -> Any:
    """Threads for which a predicate may hold."""
    if predicate is None or not predicate.known:
        return True
    return (predicate.each == 0) if negated else (predicate.each != 0)


def _access(program: Program, instruction: Instruction, active: Any) -> Access | None:
    kinds = [kind.split("::")[0] for kind in instruction.kinds()]
    base = kinds[0]
    if base not in ("ld", "st", "atom", "red", "ldmatrix", "stmatrix"):
        return None
    space = "shared" if "shared" in kinds else "global" if "global" in kinds else None
    if space is None:
        return None
    where = next(o for o in instruction.operands if o.startswith("["))
    address, argument = program.address(where)
    if instruction.predicate is not None:
        value = program.value(instruction.predicate)
        active = active & _taken(value, instruction.negated)
    size = int(kinds[-1][1:]) // 8 if kinds[-1][1:].isdigit() else 4
    for kind in kinds:
        if kind in ("v2", "v4", "v8") and base in ("ld", "st"):
            size *= int(kind[1:])
    if base in ("ldmatrix", "stmatrix"):
        size = 16  # a row, at the address of one of the first lanes of the warp
        rows = next(8 * int(kind[1:]) for kind in kinds if kind in ("x1", "x2", "x4"))
        active = active & (np.arange(program.threads) % WARP < rows)
    atomic = base in ("atom", "red")
    loads = atomic or base in ("ld", "ldmatrix")
    stores = atomic or base in ("st", "stmatrix")
    if space == "global" and argument is None:
        address = address.plus(symbol(("nowhere", instruction.place), False))
    return Access(instruction, space, argument, address, size, active, loads, stores, atomic)


def _conflict(first: Access, second: Access, order: int) -> bool:
    """Whether two threads may touch one byte; ``order``: what is between those of one warp."""
    if first.space != second.space or (first.atomic and second.atomic):
        return False
    if not (first.stores and second.loads) and not (first.loads and second.stores):
        return False
    if first.space == "global" and first.argument != second.argument:
        return False
    if first.address.symbols != second.address.symbols:
        return bool(first.active.any() and second.active.any())
    if not (first.address.symbols_same and second.address.symbols_same):
        return True
    touched = []
    for access in (first, second):
        threads = np.flatnonzero(access.active)
        at = np.broadcast_to(access.address.each, access.active.shape)[threads]
        touched.append((at[:, None] + np.arange(access.size)).ravel())
        touched.append(np.repeat(threads, access.size))
    ordered = order == WARP_BARRIER or (order == SHUFFLE and not first.stores)
    unit = WARP if ordered else 1
    one, ones = touched[0], touched[1] // unit
    two, twos = touched[2], touched[3] // unit
    sides: list[tuple[Any, Any, Any, Any]] = [(one, ones, two, twos), (two, twos, one, ones)]
    # A byte is in conflict unless one and the same thread is all that touches it on both sides.
    for byte_of, owner, other_byte, other_owner in sides:
        if len(byte_of) == 0 or len(other_byte) == 0:
            return False
        by_byte = np.lexsort((owner, byte_of))
        byte_of, owner = byte_of[by_byte], owner[by_byte]
        low = np.searchsorted(byte_of, other_byte, "left")
        high = np.searchsorted(byte_of, other_byte, "right")
        there = high > low
        lowest, highest = owner[low[there]], owner[high[there] - 1]
        if ((lowest != other_owner[there]) | (highest != other_owner[there])).any():
            return True
    return False
