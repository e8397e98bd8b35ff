"""A model of the barriers of the fused kernels, explored in every interleaving.

The instructions of the producer and of each warpgroup come from the kernel's own source: it runs
here as plain Python on stand-ins that note barriers, copies and products and ignore all else.

Barriers are PTX's: a phase ends when its arrivals and its bytes are complete; a wait for a parity
passes when the phase that runs has the other one. A copy lands at any time after it was issued.
Products read their slot at any time from their start to the wait that retires them. Each warpgroup
is one actor: its warps meet before an arrival, which test_fused_compiled.py sees in machine code.

In a cluster of two programs each runs the same source. A barrier is a program's own, or all arrive
at the first's, where only the first waits. A copy to many programs is made by the first, and lands
in each of them at any time.
"""

from __future__ import annotations

import ast
import builtins
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Event = tuple[Any, ...]
Part = tuple[Callable[..., None], tuple[Any, ...]]
Spot = tuple[int, int, int]  # a buffer, its slot, the program that has it


class Anything:
    """Takes part in any expression, and is false."""

    def __call__(self, *args: Any, **kwargs: Any) -> Anything:
        return self

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, index: Any) -> Anything:
        return self


def _absorb(self: Anything, *others: Any) -> Anything:
    return self


for _name in "add sub mul truediv floordiv mod and or lshift rshift matmul".split():
    setattr(Anything, f"__{_name}__", _absorb)
    setattr(Anything, f"__r{_name}__", _absorb)
for _name in "lt le gt ge eq ne neg invert".split():
    setattr(Anything, f"__{_name}__", _absorb)
Anything.__hash__ = object.__hash__  # type: ignore[method-assign]
ANY = Anything()
FENCE = ("fence",)
OUTWARDS = ("write", "fence", "out", "out wait")  # see fault_outwards


class Number(int):
    """An integer that can be converted as a tensor is."""

    def to(self, dtype: Any) -> int:
        return int(self)


class Place(NamedTuple):
    """A slot of a buffer in shared memory, or of an array of barriers."""

    buffer: int
    slot: int
    bytes: int
    shared: bool  # barriers at which all programs of a cluster arrive

    def permute(self, order: Any) -> Place:
        return self


class Buffer(NamedTuple):
    """Shared memory of [slots, ...]."""

    number: int
    bytes: int  # of a slot, in each program
    shared: bool
    events: list[Event]
    dtype: Any = ANY

    def store(self, value: Any) -> None:
        self.events.append(("write", self.number))

    def index(self, slot: int) -> Place:
        return Place(self.number, slot, self.bytes, self.shared)


class Box:
    """A descriptor: what a copy brings.

    Args:
        layout: where each program's part of it begins, in parts; none in a single program.
    """

    def __init__(self, layout: list[list[int]]) -> None:
        self.layout = layout

    def __getattr__(self, name: str) -> Any:
        return ANY


class Recorded(NamedTuple):
    """The instructions of a program.

    Attributes:
        actors: of the warpgroups and of the producer, of one program after the other.
        counts: arrivals that each barrier's phase expects.
        meet: whether no program of a cluster ends before all do.
    """

    actors: tuple[tuple[Event, ...], ...]
    counts: dict[Spot, int]
    meet: bool = True


class _Language:
    """In the place of Gluon's language."""

    def __init__(self, parts: list[Part], events: list[Event]) -> None:
        self.parts, self.events, self.buffers = parts, events, 0
        self.meetings = 0  # of all programs after the parts

    def __getattr__(self, name: str) -> Any:
        return ANY

    def program_id(self, axis: int) -> int:
        return 0

    def num_programs(self, axis: int) -> int:
        return 1

    def cdiv(self, a: int, b: int) -> int:
        return -(-a // b)

    def minimum(self, a: Any, b: Any) -> Any:
        return min(a, b) if isinstance(a, int) and isinstance(b, int) else ANY

    def static_range(self, n: int) -> range:
        return range(n)

    def static_assert(self, holds: bool) -> None:
        assert holds

    def allocate_shared_memory(self, dtype: Any, shape: list[int], layout: Any) -> Buffer:
        self.buffers += 1
        size = 2
        for n in shape[1:]:
            size *= n
        layout = layout if isinstance(layout, list) else []
        if any(1 in base for base in layout):
            size //= 2
        return Buffer(self.buffers, size, layout == [[0]], self.events)

    def warp_specialize(self, parts: Any, warps: Any, registers: Any) -> None:
        self.parts += parts

    def meet(self) -> None:
        self.meetings += bool(self.parts)


class _Barriers:
    def __init__(self, events: list[Event], counts: dict[Spot, int], programs: int) -> None:
        self.events, self.counts, self.programs, self.program = events, counts, programs, 0

    def __getattr__(self, name: str) -> Any:
        return ANY

    def MBarrierLayout(self, bases: Sequence[list[int]] = ()) -> list[list[int]]:
        return list(bases)

    def spot(self, bar: Place) -> Spot:
        return bar.buffer, bar.slot, 0 if bar.shared else self.program

    def init(self, bar: Place, count: int) -> None:
        for program in range(1 if bar.shared else self.programs):
            times = self.programs if bar.shared else 1
            self.counts[bar.buffer, bar.slot, program] = count * times

    def wait(self, bar: Place, phase: int) -> None:
        if not bar.shared or self.program == 0:
            self.events.append(("wait", self.spot(bar), phase))

    def expect(self, bar: Place, size: int) -> None:
        self.events.append(("arrive", self.spot(bar), 1, size))

    def arrive(self, bar: Place, count: int = 1, pred: bool = True) -> None:
        if pred:
            self.events.append(("arrive", self.spot(bar), count, 0))


def recorded(
    source: str, kernel: str, sizes: dict[str, int], constants: dict[str, Any]
) -> Recorded:
    """The instructions that ``kernel`` gives its actors.

    Args:
        source: of its module, after those of the functions that it calls.
        kernel: its name.
        sizes: some arguments; the others may be anything.
        constants: of the compiler; CLUSTER is the number of programs, 1 where it is not there.
    """
    programs = constants.get("CLUSTER", 1)
    events: list[Event] = []
    parts: list[Part] = []
    counts: dict[Spot, int] = {}
    language, barriers = _Language(parts, events), _Barriers(events, counts, programs)

    def copy(box: Any, at: Any, bar: Place, into: Place, multicast: bool = False) -> None:
        program = barriers.program
        if multicast and program > 0:
            return
        for to in range(programs) if multicast else [program]:
            spots = (bar.buffer, bar.slot, to), (into.buffer, into.slot, to)
            events.append(("copy", *spots, into.bytes))

    def multiply(a: Place, b: Place, z: Any, is_async: bool) -> Anything:
        program = barriers.program
        read = (a.buffer, a.slot, program), (b.buffer, b.slot, program)
        events.append(("mma", read))
        return ANY

    def retire(pending: int, deps: Any) -> Any:
        events.append(("retire", pending))
        return deps[0]

    def copy_out(box: Any, at: list[int], buffer: Buffer) -> None:
        events.append(("out", buffer.number, tuple(at)))

    class Copies:
        def store_wait(self, pending: int) -> None:
            events.append(("out wait", pending))

    names: dict[str, Any] = {
        "gl": language, "mbarrier": barriers, "copy_in": copy, "_meet": language.meet,
        "copy_out": copy_out, "tma": Copies(), "fence_async_shared": lambda: events.append(FENCE),
        "warpgroup_mma": multiply, "warpgroup_mma_wait": retire,
    }  # fmt: skip
    functions = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)]
    for function in functions:
        function.decorator_list = []
        for argument in function.args.args:
            argument.annotation = None
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and not hasattr(builtins, node.id):
                names.setdefault(node.id, ANY)
    module = ast.fix_missing_locations(ast.Module(functions, []))
    exec(compile(module, "<kernel>", "exec"), names)
    item = names["_item"]
    names["_item"] = lambda *args: tuple(map(Number, item(*args)))
    start = next(f for f in functions if f.name == kernel)
    boxes = {"x_desc": Box([[1, 0]][: programs - 1]), "w_desc": Box([[0, 0]][: programs - 1])}
    given = {a.arg: ANY for a in start.args.args} | boxes | sizes | constants
    names[kernel](**given)
    actors = []
    for barriers.program in range(programs):
        for function, arguments in parts:
            events.clear()
            function(*arguments)
            actors.append(tuple(events))
    return Recorded(tuple(actors), counts, programs == 1 or language.meetings == 1)


def fault(
    program: Recorded, most_states: int = 2_000_000, walks: random.Random | None = None
) -> str | None:
    """The first fault of any interleaving, in words; None: there is none.

    Args:
        program: from :func:`recorded`.
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
