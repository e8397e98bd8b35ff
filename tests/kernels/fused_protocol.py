"""A model of the barriers of the fused kernels, explored in every interleaving.

The instructions of the producer and of each warpgroup come from the kernel's own source: it runs
here as plain Python on stand-ins that note barriers, copies and products and ignore all else.

Barriers are PTX's: a phase ends when its arrivals and its bytes are complete; a wait for a parity
passes when the phase that runs has the other one. A copy lands at any time after it was issued.
Products read their slot at any time from their start to the wait that retires them. Each warpgroup
is one actor: its warps meet before an arrival, which test_fused_compiled.py sees in machine code.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable
from typing import Any, NamedTuple

Event = tuple[Any, ...]


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


class Number(int):
    """An integer that can be converted as a tensor is."""

    def to(self, dtype: Any) -> int:
        return int(self)


class Place(NamedTuple):
    """A slot of a buffer in shared memory, or of an array of barriers."""

    buffer: int
    slot: int
    bytes: int

    def permute(self, order: Any) -> Place:
        return self


class Buffer(NamedTuple):
    """Shared memory of [slots, ...]."""

    number: int
    bytes: int  # of a slot

    def index(self, slot: int) -> Place:
        return Place(self.number, slot, self.bytes)


class Recorded(NamedTuple):
    """The instructions of a program.

    Attributes:
        actors: of the producer and of the warpgroups.
        counts: arrivals that each barrier's phase expects.
    """

    actors: tuple[tuple[Event, ...], ...]
    counts: dict[tuple[int, int], int]


class _Language:
    """In the place of Gluon's language."""

    def __init__(self, parts: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
        self.parts, self.buffers = parts, 0

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
        return Buffer(self.buffers, size)

    def warp_specialize(self, parts: Any, warps: Any, registers: Any) -> None:
        self.parts += parts


class _Barriers:
    def __init__(self, events: list[Event], counts: dict[tuple[int, int], int]) -> None:
        self.events, self.counts = events, counts

    def __getattr__(self, name: str) -> Any:
        return ANY

    def init(self, bar: Place, count: int) -> None:
        self.counts[bar.buffer, bar.slot] = count

    def wait(self, bar: Place, phase: int) -> None:
        self.events.append(("wait", (bar.buffer, bar.slot), phase))

    def expect(self, bar: Place, size: int) -> None:
        self.events.append(("arrive", (bar.buffer, bar.slot), 1, size))

    def arrive(self, bar: Place, count: int = 1, pred: bool = True) -> None:
        if pred:
            self.events.append(("arrive", (bar.buffer, bar.slot), count, 0))


def recorded(
    source: str, kernel: str, sizes: dict[str, int], constants: dict[str, Any]
) -> Recorded:
    """The instructions that ``kernel`` gives its actors.

    Args:
        source: of its module.
        kernel: its name.
        sizes: some arguments; the others may be anything.
        constants: of the compiler.
    """
    events: list[Event] = []
    parts: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
    counts: dict[tuple[int, int], int] = {}

    def copy(descriptor: Any, at: Any, bar: Place, into: Place) -> None:
        events.append(("copy", (bar.buffer, bar.slot), (into.buffer, into.slot), into.bytes))

    def multiply(a: Place, b: Place, z: Any, is_async: bool) -> Anything:
        events.append(("mma", ((a.buffer, a.slot), (b.buffer, b.slot))))
        return ANY

    def retire(pending: int, deps: Any) -> Any:
        events.append(("retire", pending))
        return deps[0]

    names: dict[str, Any] = {
        "gl": _Language(parts), "mbarrier": _Barriers(events, counts), "copy_in": copy,
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
    given = {a.arg: ANY for a in start.args.args} | sizes | constants
    names[kernel](**given)
    actors = []
    for function, arguments in parts:
        events.clear()
        function(*arguments)
        actors.append(tuple(events))
    return Recorded(tuple(actors), counts)


def fault(program: Recorded, most_states: int = 2_000_000) -> str | None:
    """The first fault of any interleaving, in words; None: there is none.

    Args:
        program: from :func:`recorded`.
        most_states: more are an error.
    """
    actors, counts = program.actors, program.counts
    bars = {bar: i for i, bar in enumerate(counts)}
    full_count = tuple(counts.values())
    # The ``step``-th product of a warpgroup must read the ``step``-th copy into a buffer.
    readers: dict[int, int] = {}  # of a buffer: a bit for each actor
    for i, events in enumerate(actors):
        for event in events:
            if event[0] == "mma":
                for buffer, _ in event[1]:
                    readers[buffer] = readers.get(buffer, 0) | 1 << i
    code = [_numbered(events) for events in actors]
    places = sorted({e[2] for events in actors for e in events if e[0] == "copy"})
    place_of = {place: i for i, place in enumerate(places)}
    all_read = tuple(readers.get(buffer, 0) for buffer, _ in places)
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
        for copy in flying:
            bar, place, size, step = copy
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
                yield then, arrival(barriers, bars[bar], arrivals, size), held, running, flying
            elif kind == "copy":
                bar, place, size, step = rest
                copy = (bars[bar], place_of[place], size, step)
                yield then, barriers, held, running, flying | {copy}
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

    try:
        while stack:
            state = stack.pop()
            more = list(following(state))
            if not more:
                at, barriers, _, running, _ = state
                if any(pc != len(code[i]) for i, pc in enumerate(at)):
                    return f"deadlock at {at}"
                if any(running) or any(
                    (missing, size) != (count, 0)
                    for (_, missing, size), count in zip(barriers, full_count, strict=True)
                ):
                    return "the end is not at rest"
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
    copies: dict[int, int] = {}
    products, out = 0, []
    for event in events:
        if event[0] == "copy":
            buffer = event[2][0]
            out.append((*event, copies.get(buffer, 0)))
            copies[buffer] = copies.get(buffer, 0) + 1
        elif event[0] == "mma":
            out.append((*event, products))
            products += 1
        else:
            out.append(event)
    return out
