"""The instructions of the fused kernels' producer and warpgroups, from the kernels' own source.

It runs here as plain Python on stand-ins that note barriers, copies and products and ignore all
else. In a cluster of two programs each runs the same source.
"""

from __future__ import annotations

import ast
import builtins
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
