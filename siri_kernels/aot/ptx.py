"""PTX as instructions and blocks, and its integers as functions of the thread.

A value is a number for each thread of a program plus multiples of symbols that stand for what is
not known (arguments, the program's id, what was loaded). Sums and products with constants keep that
form; anything else is computed for each thread where no symbol is in it and is a new symbol, equal
for equal operands, where one is.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

THREADS = 1024  # where the kernel does not say how many it has
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_INSTRUCTION = re.compile(r"\s*(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*?);")


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        place: line of the text.
        name: with all its modifiers.
        operands: as they are written.
        predicate: a register; only threads where it is true execute the instruction.
        negated: only threads where it is false do.
    """

    place: int
    name: str
    operands: tuple[str, ...]
    predicate: str | None
    negated: bool

    def kinds(self) -> list[str]:
        """The parts of its name."""
        return self.name.split(".")

    def results(self) -> list[str]:
        """Registers it writes."""
        base = self.kinds()[0]
        if base in ("st", "bra", "ret", "bar", "barrier", "red", "stmatrix", "exit", "trap"):
            return []
        return re.findall(r"%\w+", self.operands[0].split("|")[0]) if self.operands else []


class Value:
    """A number for each thread, and the sum of coefficient * symbol.

    Args:
        each: the numbers, or one for all threads.
        symbols: coefficients by symbol.
        same: every thread has the same value of every symbol.
    """

    def __init__(self, each: Any, symbols: dict[Any, int] | None = None, same: bool = True):
        self.each = np.asarray(each, dtype=np.int64)
        self.symbols = {s: c for s, c in (symbols or {}).items() if c}
        self.symbols_same = same  # every thread has the same value of every symbol

    @property
    def known(self) -> bool:
        """Whether no symbol is in it."""
        return not self.symbols

    @property
    def same(self) -> bool:
        """Every thread has the same value."""
        return self.symbols_same and bool((self.each == self.each.flat[0]).all())

    def key(self) -> Any:
        """Equal for equal values."""
        each = int(self.each.flat[0]) if (self.each == self.each.flat[0]).all() else None
        return each if each is not None else self.each.tobytes(), frozenset(self.symbols.items())

    def plus(self, other: Value, sign: int = 1) -> Value:
        """The sum of both; with ``sign`` -1 the difference."""
        symbols = dict(self.symbols)
        for symbol, count in other.symbols.items():
            symbols[symbol] = symbols.get(symbol, 0) + sign * count
        same = self.symbols_same and other.symbols_same
        return Value(self.each + sign * other.each, symbols, same)

    def times(self, factor: int) -> Value:
        """The product with a number."""
        symbols = {s: c * factor for s, c in self.symbols.items()}
        return Value(self.each * factor, symbols, self.symbols_same)


def symbol(name: Any, same: bool = True) -> Value:
    """Something unknown."""
    return Value(0, {name: 1}, same)


class Program:
    """A kernel's instructions in basic blocks; ``value`` is what a register or operand holds."""

    def __init__(self, text: str) -> None:
        found = re.search(r"\.(?:req|max)ntid\s+(\d+)", text)
        self.threads = int(found.group(1)) if found else THREADS
        entry = text.index(".entry")
        self.pointers = re.findall(r"\.param \.u64 \.ptr \S+ .*?(\w+_param_\d+)", text[entry:])
        self.blocks: list[list[Instruction]] = [[]]
        self.labels: dict[str, int] = {}
        inside = False
        for place, line in enumerate(text.splitlines()):
            line = line.split("//")[0].rstrip()
            inside = inside or line.startswith("{")
            if not inside:
                continue
            if label := re.match(r"(\$\w+):", line):
                if self.blocks[-1]:
                    self.blocks.append([])
                self.labels[label.group(1)] = len(self.blocks) - 1
            elif (match := _INSTRUCTION.match(line)) and not line.strip().startswith("."):
                negated, predicate, name, rest = match.groups()
                operands = tuple(o.strip() for o in _OPERAND.findall(rest))
                instruction = Instruction(place, name, operands, predicate, negated == "!")
                self.blocks[-1].append(instruction)
                if name.split(".")[0] in ("bra", "ret", "exit", "trap"):
                    self.blocks.append([])
            if line.startswith("}"):
                break
        self.definitions: dict[str, list[Instruction]] = {}
        for block in self.blocks:
            for instruction in block:
                for register in instruction.results():
                    self.definitions.setdefault(register, []).append(instruction)
        # Registers with several definitions change in a loop or with a branch. They are symbols;
        # the same in every thread if every definition is.
        self.varying: set[str] = set()
        self._numbers: dict[Any, int] = {}  # of symbols that stand for an operation
        while True:
            self._values: dict[str, Value] = {}
            for block in self.blocks:
                for instruction in block:
                    for register in instruction.results():
                        self.value(register)
            found_varying = {
                register
                for register, many in self.definitions.items()
                if len(many) > 1
                and register not in self.varying
                and not all(self._same(register, one) for one in many)
            }
            if not found_varying:
                break
            self.varying |= found_varying

    def _same(self, register: str, instruction: Instruction) -> bool:
        if instruction.predicate and not self.value(instruction.predicate).same:
            return False
        return self._result(register, instruction).same

    def successors(self, block: int) -> list[tuple[int, Value | None, bool]]:
        """(block, predicate, negated) of each way on."""
        if not self.blocks[block]:
            return [(block + 1, None, False)] if block + 1 < len(self.blocks) else []
        last = self.blocks[block][-1]
        base = last.kinds()[0]
        predicate = None if last.predicate is None else self.value(last.predicate)
        ways = []
        if base == "bra" and last.operands[-1] in self.labels:
            ways.append((self.labels[last.operands[-1]], predicate, last.negated))
        goes_on = base not in ("bra", "ret", "exit", "trap") or last.predicate is not None
        if goes_on and block + 1 < len(self.blocks):
            ways.append((block + 1, predicate if base == "bra" else None, not last.negated))
        return ways

    def value(self, operand: str) -> Value:
        """The value of an operand."""
        if operand in self._values:
            return self._values[operand]
        found = self._value(operand)
        self._values[operand] = found
        return found

    def _value(self, operand: str) -> Value:
        if re.fullmatch(r"-?\d+", operand):
            return Value(int(operand))
        if match := re.fullmatch(r"(0[xX][0-9a-fA-F]+)U?", operand):
            number = int(match.group(1), 16)
            return Value(number - (1 << 64) if number >= 1 << 63 else number)
        if operand.startswith("%tid"):
            return Value(np.arange(self.threads) if operand == "%tid.x" else 0)
        if operand == "%laneid":
            return Value(np.arange(self.threads) % 32)
        many = self.definitions.get(operand)
        if many is None:  # a special register, an address, a number with a point
            return symbol(operand)
        # Ends a circle of definitions.
        self._values[operand] = unknown = symbol(operand, operand not in self.varying)
        if len(many) == 1:
            return self._result(operand, many[0])
        if any(one.predicate for one in many):
            return unknown
        results = [self._result(operand, one) for one in many]
        return results[0] if len({result.key() for result in results}) == 1 else unknown

    def _result(self, register: str, instruction: Instruction) -> Value:
        """The value that ``instruction`` writes into ``register``."""
        kinds, operands = instruction.kinds(), instruction.operands
        base = kinds[0]
        results = instruction.results()
        if base == "ld" and "param" in kinds:
            return symbol(operands[1].strip("[] "))
        if base in ("ld", "atom", "shfl", "redux", "ldmatrix", "elect", "activemask", "vote"):
            same = base == "ld" and self.address(operands[1])[0].same
            return symbol((register, instruction.place), same)
        inputs = [self.value(o) for o in operands[1:] if not o.startswith("{")]
        if base == "mov" and any(o.startswith("{") for o in operands):
            return self._packed(register, results, operands)
        found = _computed(kinds, inputs)
        if found is not None:
            return found
        same = all(i.same for i in inputs)
        if kinds[-1][0] in "fb" and not kinds[-1][1:].isdigit() or kinds[-1][0] == "f":
            return symbol(register, same)  # nothing that an address is made of
        key = (*kinds, *(i.key() for i in inputs))
        return symbol(self._numbers.setdefault(key, len(self._numbers)), same)

    def _packed(self, register: str, results: list[str], operands: tuple[str, ...]) -> Value:
        """Result of a mov of two halves from or into a register twice as wide."""
        if operands[1].startswith("{"):
            low, high = (self.value(o.strip()) for o in operands[1].strip("{} ").split(","))
            if low.known and high.known:
                return Value(_signed((low.each & 0xFFFF) | ((high.each & 0xFFFF) << 16), 32))
            return symbol(register, low.same and high.same)
        whole = self.value(operands[1])
        names = [o.strip() for o in operands[0].strip("{} ").split(",")]
        if whole.known and register.startswith("%rs"):
            return Value((whole.each >> (16 * names.index(register))) & 0xFFFF)
        return symbol(register, whole.same)

    def address(self, operand: str) -> tuple[Value, str | None]:
        """An address ``[ register + offset ]``, and the pointer argument in it if there is one."""
        register, _, offset = operand.strip("[] ").partition("+")
        value = self.value(register.strip())
        if offset.strip():
            value = value.plus(self.value(offset.strip()))
        bases = self._bases(register.strip(), set())
        return value, bases.pop() if len(bases) == 1 else None

    def _bases(self, register: str, seen: set[str]) -> set[str]:
        """Pointer arguments that the definitions of an address go back to, through loops too."""
        if register in seen:
            return set()
        seen.add(register)
        found: set[str] = set()
        for definition in self.definitions.get(register, []):
            if definition.kinds()[0] == "ld" and "param" in definition.kinds():
                found |= {definition.operands[1].strip("[] ")} & set(self.pointers)
            elif definition.kinds()[0] in ("mov", "add", "sub", "mad", "selp", "cvta"):
                for operand in definition.operands[1:]:
                    found |= self._bases(operand, seen)
        return found


def _signed(each: Any, bits: int) -> Any:
    if bits >= 64:
        return each
    each = each & ((1 << bits) - 1)
    return np.where(each >= 1 << (bits - 1), each - (1 << bits), each)


def _unsigned(each: Any, bits: int) -> Any:
    return each if bits >= 64 else each & ((1 << bits) - 1)


def _bits(kind: str) -> int:
    match = re.fullmatch(r"[a-z]+?(\d+)", kind)
    return int(match.group(1)) if match else 1


_COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def _computed(kinds: list[str], inputs: list[Value]) -> Value | None:
    """The result of an integer instruction; None: a symbol will do."""
    base, kind = kinds[0], kinds[-1]
    bits = _bits(kind)
    if kind[0] == "f" or kind.startswith("bf"):
        return None
    known = all(i.known for i in inputs)

    def wrapped(value: Value) -> Value:
        return Value(_signed(value.each, bits)) if value.known else value

    if base == "mov":
        return inputs[0]
    if base in ("cvt", "cvta"):
        if not inputs[0].known:
            # As an address is computed, nothing overflows.
            return inputs[0] if kind[0] in "su" and kinds[-2][0] in "su" else None
        each = inputs[0].each
        read = _unsigned if kind[0] in "ub" else _signed
        return Value(read(each, bits))
    if base == "add":
        return wrapped(inputs[0].plus(inputs[1]))
    if base == "sub":
        return wrapped(inputs[0].plus(inputs[1], -1))
    if base in ("mul", "mad"):
        product = _product(inputs[0], inputs[1], kind, bits)
        if product is None:
            return None
        wide = "wide" in kinds
        total = product.plus(inputs[2]) if base == "mad" else product
        return Value(_signed(total.each, 2 * bits if wide else bits)) if total.known else total
    if base == "shl" and inputs[1].known and inputs[1].same:
        return wrapped(inputs[0].times(1 << int(inputs[1].each.flat[0])))
    if base == "or" and not known:
        return _disjoint(*inputs)
    if not known:
        return None
    many = [i.each for i in inputs]
    if base in ("and", "or", "xor"):
        operation = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[base]
        return Value(operation(many[0], many[1]))
    if base == "not":
        return Value(1 - many[0]) if kind == "pred" else Value(~many[0])
    if base == "neg":
        return Value(_signed(-many[0], bits))
    if base == "shr":
        left = _unsigned(many[0], bits) if kind[0] in "ub" else many[0]
        return Value(_signed(left >> many[1], bits))
    if base == "bfe":
        left = _unsigned(many[0], bits) >> many[1]
        return Value(left & ((np.int64(1) << many[2]) - 1))
    if base in ("min", "max"):
        return Value((np.minimum if base == "min" else np.maximum)(many[0], many[1]))
    if base == "selp":
        return Value(np.where(many[2] != 0, many[0], many[1]))
    if base == "setp" and kinds[1] in _COMPARISONS and len(inputs) == 2:
        read = _unsigned if kind[0] == "u" else _signed
        return Value(_COMPARISONS[kinds[1]](read(many[0], bits), read(many[1], bits)))
    if base == "prmt":
        return Value(_permuted(*many))
    return None


def _product(a: Value, b: Value, kind: str, bits: int) -> Value | None:
    if a.known and b.known:
        read = _unsigned if kind[0] == "u" else _signed
        return Value(read(a.each, bits) * read(b.each, bits))
    for x, y in ((a, b), (b, a)):
        if y.known and y.same:
            return x.times(int(y.each.flat[0]))
    return None


def _disjoint(a: Value, b: Value) -> Value | None:
    """``a | b`` where no bit is in both, as LLVM writes sums."""
    for x, y in ((a, b), (b, a)):
        if y.known and not x.known:
            step = min(count & -count for count in x.symbols.values())
            if (x.each % step == 0).all() and (y.each >= 0).all() and (y.each < step).all():
                return x.plus(y)
    return None


def _permuted(a: Any, b: Any, selector: Any) -> Any:
    """prmt: four bytes chosen among eight."""
    both = (a & 0xFFFFFFFF) | ((b & 0xFFFFFFFF) << 32)
    out = np.zeros_like(np.asarray(a + b + selector))
    for byte in range(4):
        choice = (selector >> (4 * byte)) & 0xF
        value = (both >> (8 * (choice & 7))) & 0xFF
        value = np.where(choice & 8, np.where(value & 0x80, 0xFF, 0), value)
        out = out | (value << (8 * byte))
    return _signed(out, 32)
