"""Counts in disassembled machine code: instructions on the common path, bytes of an access.

**The common path** of a kernel is the way with the fewest instructions from its entry, over a store
to global memory, to an EXIT, and one turn of each loop. Rare work (saving top entries, the slow way
of a division) stands behind a branch, or an EXIT under a predicate, that skips it, so the shortest
way does not go there. A program that stores nothing had nothing to do. A loop's turn
is the shortest way from its head to the jump back; a loop that the shortest way skips is counted
too, as kernels loop over what they are for.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable
from typing import NamedTuple

_NVIDIA = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
_NVIDIA_LABEL = re.compile(r"\s*(\.L_\w+|\.text\.\S+|\$\S+):")
_AMD = re.compile(r"\s+([a-z][a-z0-9_]+)(?:\s+(.*?))?\s*(?:;.*)?$")
_AMD_LABEL = re.compile(r"(\.?L?BB\d+_\d+|[A-Za-z_]\w*):")
TENSOR_CORE = re.compile(r"(?:HGMMA|IGMMA|QGMMA|HMMA|IMMA|UTCHMMA|UTCQMMA|v_mfma_\w+)(?:\.|$)")


Width = Callable[[str], "tuple[str, int] | None"]  # of an instruction: "load" or "store", bytes


class Instruction(NamedTuple):
    """One instruction and where it can lead.

    Attributes:
        name: of the instruction.
        falls_through: whether the next one may follow.
        target: label of a jump, or None.
        ends: whether the program may end here.
    """

    name: str
    falls_through: bool
    target: str | None
    ends: bool = False


class Counts(NamedTuple):
    """Counts of one kernel.

    Attributes:
        total: instructions.
        path: instructions on the common path.
        loops: instructions of one turn of each loop.
        loads: bytes a thread of the global loads, widest first.
        stores: the same of the global stores.
        tensor_core: instructions for tensor cores.
    """

    total: int
    path: int
    loops: tuple[int, ...]
    loads: tuple[int, ...]
    stores: tuple[int, ...]
    tensor_core: int


class Block(NamedTuple):
    """Instructions that are executed together.

    Attributes:
        start: number of the first.
        size: how many.
        next: blocks that may follow.
        ends: whether the program may end behind it.
        stores: whether it stores to global memory.
    """

    start: int
    size: int
    next: tuple[int, ...]
    ends: bool = False
    stores: bool = False


def nvidia(text: str) -> Counts:
    """The counts of nvdisasm's text."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    rejoin: dict[str, str] = {}  # a convergence barrier and where its threads go on
    for line in text.splitlines():
        if match := _NVIDIA_LABEL.match(line):
            labels[match.group(1)] = len(instructions)
        elif match := _NVIDIA.match(line):
            predicate, name, operands = match.groups()
            base, label = name.split(".")[0], re.search(r"`\((\S+?)\)", operands)
            goal = label.group(1) if label else None
            falls, target = True, None
            if base == "BSSY" and goal is not None:
                rejoin[operands.split(",")[0]] = goal
            elif base in ("BRA", "UBRA", "JMP"):
                before = operands.split("`")[0].strip()
                falls = bool(predicate or before or ".DIV" in name)
                target = None if ".DIV" in name else goal
            elif base == "BSYNC" and predicate is None:
                target = rejoin.get(operands.split(",")[0])
                falls = target is None
            elif base in ("EXIT", "RET", "BRX", "KILL"):
                falls = predicate is not None
            instructions.append(Instruction(name, falls, target, base == "EXIT"))
    return _counted(instructions, labels, _nvidia_bytes)


def amd(text: str) -> Counts:
    """The counts of the assembly that Triton's AMD backend writes."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if match := _AMD_LABEL.match(line):
            labels[match.group(1)] = len(instructions)
        elif match := _AMD.match(line):
            name, operands = match.group(1), match.group(2) or ""
            jumps = name == "s_branch" or name.startswith("s_cbranch")
            falls = name not in ("s_branch", "s_endpgm")
            target = operands.strip() if jumps else None
            instructions.append(Instruction(name, falls, target, name == "s_endpgm"))
        elif line.strip().startswith(".section"):
            break
    return _counted(instructions, labels, _amd_bytes)


def _nvidia_bytes(name: str) -> tuple[str, int] | None:
    base, *kinds = name.split(".")
    if base not in ("LDG", "LDGSTS", "STG"):
        return None
    width = 4
    for kind, size in (("U8", 1), ("S8", 1), ("U16", 2), ("S16", 2), ("64", 8), ("128", 16)):
        width = size if kind in kinds else width
    return ("store" if base == "STG" else "load"), width


def _amd_bytes(name: str) -> tuple[str, int] | None:
    match = re.match(
        r"(?:global|buffer|flat)_(load|store)_(dword|[us]?byte|[us]?short|b)(\d*)(?:x(\d))?", name
    )
    if match is None:
        return None
    kind, word, bits, times = match.groups()
    size = int(bits) // 8 if bits else 4 if word == "dword" else 1 if "byte" in word else 2
    return kind, size * int(times or 1)


def _counted(instructions: list[Instruction], labels: dict[str, int], width: Width) -> Counts:
    accesses = [found for i in instructions if (found := width(i.name))]

    def widths(kind: str) -> tuple[int, ...]:
        return tuple(sorted((b for k, b in accesses if k == kind), reverse=True))

    blocks = blocks_of(instructions, labels, width)
    # A kernel that stores nothing (a planted one) has the shortest way of all.
    path = _shortest(blocks, 0, None, True) or _shortest(blocks, 0, None, False)
    loops, used = [], set(path)
    for head, tail in _back_edges(blocks):
        body = _shortest(blocks, head, tail, False)
        loops.append(sum(blocks[b].size for b in body))
        used |= set(body)
    return Counts(
        len(instructions),
        sum(blocks[b].size for b in used),
        tuple(loops),
        widths("load"),
        widths("store"),
        sum(bool(TENSOR_CORE.match(i.name)) for i in instructions),
    )


def blocks_of(instructions: list[Instruction], labels: dict[str, int], width: Width) -> list[Block]:
    """The control-flow graph; block 0 is the entry.

    Args:
        instructions: in order.
        labels: the instruction that each label stands before.
        width: whether an instruction loads or stores, and how many bytes.
    """
    begins = {0} | {place for place in labels.values() if place < len(instructions)}
    for i, instruction in enumerate(instructions):
        leaves = instruction.target or instruction.ends or not instruction.falls_through
        if leaves and i + 1 < len(instructions):
            begins.add(i + 1)
    starts = sorted(begins)
    number = {start: n for n, start in enumerate(starts)}
    blocks = []
    for n, start in enumerate(starts):
        stop = starts[n + 1] if n + 1 < len(starts) else len(instructions)
        last, leads = instructions[stop - 1], []
        if last.falls_through and stop < len(instructions):
            leads.append(number[stop])
        if last.target in labels and labels[last.target] in number:
            leads.append(number[labels[last.target]])
        found = [width(i.name) for i in instructions[start:stop]]
        stores = any(access is not None and access[0] == "store" for access in found)
        blocks.append(Block(start, stop - start, tuple(leads), last.ends, stores))
    return blocks


def _shortest(blocks: list[Block], start: int, end: int | None, storing: bool) -> list[int]:
    """Blocks of the way with the fewest instructions; [] if there is none.

    It ends in ``end`` (None: in any EXIT) and, if ``storing``, goes over a store.
    """
    first = not storing or blocks[start].stores
    queue: list[tuple[int, int, bool, tuple[int, ...]]] = [
        (blocks[start].size, start, first, (start,))
    ]
    done = set()
    while queue:
        cost, block, stored, way = heapq.heappop(queue)
        if stored and (blocks[block].ends if end is None else block == end):
            return list(way)
        if (block, stored) in done:
            continue
        done.add((block, stored))
        for other in blocks[block].next:
            after = stored or blocks[other].stores
            if (other, after) not in done:
                heapq.heappush(queue, (cost + blocks[other].size, other, after, (*way, other)))
    return []


def _back_edges(blocks: list[Block]) -> list[tuple[int, int]]:
    """(head, tail) of each loop: edges to a block that is being visited, in depth-first order."""
    found, state = [], dict.fromkeys(range(len(blocks)), 0)
    stack = [(0, iter(blocks[0].next))]
    state[0] = 1
    while stack:
        block, rest = stack[-1]
        for other in rest:
            if state[other] == 1 and other != block or other == block:
                # A block that jumps to itself and does nothing else is padding behind the end.
                if other != block or blocks[block].size > 1:
                    found.append((other, block))
            elif state[other] == 0:
                state[other] = 1
                stack.append((other, iter(blocks[other].next)))
                break
        else:
            state[block] = 2
            stack.pop()
    return found
