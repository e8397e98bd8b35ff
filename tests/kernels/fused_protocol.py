"""A model of the barriers of the fused kernels, explored in every interleaving.

The instructions come from :mod:`.fused_recording`. Barriers are PTX's: a phase ends when its
arrivals and its bytes are complete; a wait for a parity passes when the phase that runs has the
other one. A copy lands at any time after it was issued. Products read their slot at any time from
their start to the wait that retires them. Each warpgroup is one actor: its warps meet before an
arrival, which test_fused_compiled.py sees in machine code.

In a cluster a barrier is a program's own, or all arrive at the first's, where only the first waits.
A copy to many programs is made by the first, and lands in each of them at any time.
"""

from __future__ import annotations

import random
from typing import Any

from .fused_recording import OUTWARDS, Event, Recorded


def fault(
    program: Recorded, most_states: int = 2_000_000, walks: random.Random | None = None
) -> str | None:
    """The first fault of any interleaving, in words; None: there is none.

    Args:
        program: from :func:`.fused_recording.recorded`.
        most_states: more are an error.
        walks: draws the interleavings to look at, until ``most_states`` steps were made; None:
            all of them.
    """
    actors, counts = program.actors, program.counts
    bars = {bar: i for i, bar in enumerate(counts)}
    full_count = tuple(counts.values())
    # The ``step``-th product of a warpgroup must read the ``step``-th copy into a buffer.
    readers: dict[tuple[int, int], int] = {}  # of a program's buffer: a bit for each actor
    for i, events in enumerate(actors):
        for event in events:
            if event[0] == "mma":
                for buffer, _, owner in event[1]:
                    readers[buffer, owner] = readers.get((buffer, owner), 0) | 1 << i
    code = [_numbered(events) for events in actors]
    places = sorted({e[2] for events in actors for e in events if e[0] == "copy"})
    place_of = {place: i for i, place in enumerate(places)}
    all_read = tuple(readers.get((buffer, owner), 0) for buffer, _, owner in places)
    each = 3  # actors of a program
    # State: the next instruction of each actor; each barrier (phases, arrivals, bytes that are
    # missing); each place (step that it holds, who has read it); products that run; copies.
    begin = (
        (0,) * len(actors),
        tuple((0, n, 0) for n in full_count),
        tuple((-1, all_read[i]) for i in range(len(places))),
        ((),) * len(actors),
        frozenset(),
    )
    seen, stack = {begin}, [begin]

    def changed(values: tuple[Any, ...], i: int, value: Any) -> tuple[Any, ...]:
        return (*values[:i], value, *values[i + 1 :])

    def ended(at: tuple[int, ...], one: int) -> bool:
        return all(at[j] == len(code[j]) for j in range(one * each, (one + 1) * each))

    def arrival(state: tuple[Any, ...], bar: int, arrivals: int, size: int) -> tuple[Any, ...]:
        phase, missing, bytes_missing = state[bar]
        missing, bytes_missing = missing - arrivals, bytes_missing + size
        if missing < 0:
            raise _Fault(f"an arrival too many at barrier {bar}, phase {phase}")
        if missing == 0 and bytes_missing == 0:
            phase, missing = phase + 1, full_count[bar]
        return changed(state, bar, (phase, missing, bytes_missing))

    def following(state: Any) -> Any:
        at, barriers, held, running, flying = state
        # A copy that is issued may land at any later time: issuing it first forbids nothing, and
        # saves the orders of issuing it and all else.
        for i, pc in enumerate(at):
            if pc < len(code[i]) and code[i][pc][0] == "copy":
                bar, place, size, step = code[i][pc][1:]
                copy = (bars[bar], place_of[place], size, step, i // each)
                yield changed(at, i, pc + 1), barriers, held, running, flying | {copy}
                return
        for copy in flying:
            bar, place, size, step, by = copy
            if not program.meet and ended(at, by):
                raise _Fault("a program has ended before what it copied has landed")
            if any(place in read for products in running for read in products):
                raise _Fault(f"the copy of step {step} lands where products read")
            if held[place][1] != all_read[place]:
                raise _Fault(f"the copy of step {step} overwrites what not all have read")
            yield (
                at, arrival(barriers, bar, 0, -size), changed(held, place, (step, 0)), running,
                flying - {copy},
            )  # fmt: skip
        for i, pc in enumerate(at):
            if pc == len(code[i]):
                continue
            kind, *rest = code[i][pc]
            then = changed(at, i, pc + 1)
            if kind == "wait":
                if barriers[bars[rest[0]]][0] & 1 != rest[1]:
                    yield then, barriers, held, running, flying
            elif kind == "arrive":
                bar, arrivals, size = rest
                if bar[2] != i // each and not program.meet and ended(at, bar[2]):
                    raise _Fault("an arrival at a program that has ended")
                yield then, arrival(barriers, bars[bar], arrivals, size), held, running, flying
            elif kind == "mma":
                read, step = tuple(place_of[p] for p in rest[0]), rest[1]
                for place in read:
                    if held[place][0] != step:
                        raise _Fault(f"products of step {step} read step {held[place][0]}")
                yield then, barriers, held, changed(running, i, (*running[i], read)), flying
            else:  # retire
                done = running[i][: max(0, len(running[i]) - rest[0])]
                now = held
                for read in done:
                    for place in read:
                        now = changed(now, place, (now[place][0], now[place][1] | 1 << i))
                left = changed(running, i, running[i][len(done) :])
                yield then, barriers, now, left, flying

    def wrong_end(state: Any) -> str | None:
        at, barriers, _, running, _ = state
        if any(pc != len(code[i]) for i, pc in enumerate(at)):
            return f"deadlock at {at}"
        if any(running) or any(
            (missing, size) != (count, 0)
            for (_, missing, size), count in zip(barriers, full_count, strict=True)
        ):
            return "the end is not at rest"
        return None

    try:
        if walks:
            state = begin
            for _ in range(most_states):
                more = list(following(state))
                if not more and (found := wrong_end(state)):
                    return found
                state = walks.choice(more) if more else begin
            return None
        while stack:
            state = stack.pop()
            more = list(following(state))
            if not more and (found := wrong_end(state)):
                return found
            fresh = [s for s in more if s not in seen]
            seen.update(fresh)
            stack += fresh
            if len(seen) > most_states:
                raise RuntimeError("too many states")
    except _Fault as found:
        return str(found)
    return None


class _Fault(Exception):
    pass


def _numbered(events: tuple[Event, ...]) -> list[Event]:
    """Copies with their step, which is their number among those into a buffer; products too."""
    copies: dict[tuple[int, int], int] = {}
    products, out = 0, []
    for event in events:
        if event[0] == "copy":
            buffer = event[2][0], event[2][2]
            out.append((*event, copies.get(buffer, 0)))
            copies[buffer] = copies.get(buffer, 0) + 1
        elif event[0] == "mma":
            out.append((*event, products))
            products += 1
        elif event[0] not in OUTWARDS:
            out.append(event)
    return out


def fault_outwards(program: Recorded) -> str | None:
    """The first fault of the copies out of shared memory, in words; None: there is none.

    What a warpgroup writes for a copy is its own, so the order of its own instructions decides.
    A copy reads at any time until it is waited for, and sees what was fenced before.
    """
    for events in program.actors:
        unseen: set[int] = set()  # written, not fenced
        ready: set[int] = set()
        running: list[int] = []
        for kind, *rest in events:
            if kind == "write":
                if rest[0] in running:
                    return "a tile is written that is still copied out"
                unseen.add(rest[0])
            elif kind == "fence":
                ready, unseen = ready | unseen, set()
            elif kind == "out":
                if rest[0] not in ready:
                    return "a tile is copied out that was not written and fenced"
                ready.remove(rest[0])
                running.append(rest[0])
            elif kind == "out wait":
                running = running[len(running) - rest[0] :] if rest[0] else []
        if running or unseen or ready:
            return "the last tile may not have been copied out at the end"
    return None
