"""Reads what XLA made of a program: collectives, memory traffic, its estimate of time; loops counted by their trips.

The text of a compiled program is the one thing that every backend gives. Only its outermost grammar is read: a
computation is a line that ends in `{`, an instruction is `name = shape kind(operands), attributes`.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4, "c64": 64, "c128": 128}  # others say it in their name

_ARRAY = re.compile(r"\b([a-z]+\d+[a-z0-9]*|pred)\[([\d,]*)\]")
_PLACED = re.compile(r"\b([a-z]+\d+[a-z0-9]*|pred)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_LIMIT = re.compile(r"[su]\d+\[\]\S* constant\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; `rest` is what follows the name of the kind."""

    name: str
    shape: str
    kind: str
    rest: str

    @property
    def bytes(self) -> int:
        """Of the result, without padding; of a started operation, of the largest array, which is what it brings."""
        sizes = [array_bytes(kind, dims) for kind, dims in _ARRAY.findall(self.shape)]
        if self.kind.endswith("-start") and self.shape.startswith("(("):
            return sum(sizes) - sum(array_bytes(*found) for found in _ARRAY.findall(self.shape[: _end(self.shape, 1)]))
        return max(sizes) if self.kind.startswith("collective-permute-start") else sum(sizes)

    @property
    def operands(self) -> list[str]:
        """The names of what it takes."""
        return re.findall(r"%([\w.\-]+)", self.rest[: _end("(" + self.rest) - 1])

    @property
    def source(self) -> str:
        """The place in the traced program, such as `jit(step)/jvp()/while/body/dot_general`; "" where none is told."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found.group(1) if found else ""


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of a program, how often each runs, the fused ones, and the loops of unknown length."""

    computations: dict[str, list[Instruction]]
    times: dict[str, int]
    fused: frozenset[str]
    unknown_loops: tuple[str, ...]

    def run(self) -> Iterator[tuple[Instruction, int]]:
        """Each instruction that runs and how often."""
        for name, count in self.times.items():
            for instruction in self.computations[name]:
                yield instruction, count


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind from one place of the program.

    Attributes:
        count: how often a step runs it.
        bytes: of all its results in a step, on one device.
        devices: how many take part in each.
    """

    kind: str
    source: str
    count: int
    bytes: int
    devices: int


def parse(text: str) -> Program:
    """Reads `compiled.as_text()`.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry = current = None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            current = head.group(2)
            computations[current] = []
            entry = current if head.group(1) else entry
        elif current is not None and (found := _NAME.match(line)):
            rest = line[found.end() :]
            end = _end(rest) if rest.startswith("(") else rest.find(" ")
            kind, _, rest_of_line = rest[end:].strip().partition("(")
            computations[current].append(Instruction(found.group(1), rest[:end], kind, rest_of_line))
    if entry is None:
        raise ValueError("this is no text of a compiled program: it has no entry computation")
    times: dict[str, int] = defaultdict(int)
    unknown: list[str] = []
    _count(computations, entry, 1, times, unknown)
    fused = {
        name.lstrip("%")
        for lines in computations.values()
        for one in lines
        for role, name in _CALLED.findall(one.rest)
        if role == "calls" and one.kind == "fusion"
    }
    return Program(computations, dict(times), frozenset(fused), tuple(dict.fromkeys(unknown)))


def collectives(program: Program, devices: int) -> list[Collective]:
    """The collectives of one step, the most bytes first.

    Args:
        program: of `parse`.
        devices: how many run it.
    """
    found: dict[tuple[str, str, int], list[int]] = defaultdict(lambda: [0, 0])
    for instruction, count in program.run():
        kind = instruction.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            total = found[kind, instruction.source, _group_size(instruction.rest, devices)]
            total[0] += count
            total[1] += count * instruction.bytes
    rows = [Collective(kind, source, *total, group) for (kind, source, group), total in found.items()]
    return sorted(rows, key=lambda row: -row.bytes)


def cycles(program: Program) -> dict[str, int]:
    """The TPU compiler's own estimate of clock cycles by place in the program; empty for other backends.

    It covers what runs on the chip's cores, with what those wait for its memory; not the links between chips.
    """
    places: dict[str, int] = defaultdict(int)
    for instruction, count in program.run():
        found = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
        if found:
            places[instruction.source] += count * int(found.group(1))
    return dict(places)


def memory_traffic(program: Program) -> float:
    """Bytes that a step reads from and writes to a device's main memory, about: every operation reads its operands
    and writes its result, of a slice or an update in place just that part, and nothing of what lies on the chip.
    """
    total = 0.0
    for name, count in program.times.items():
        table = {one.name: one for one in program.computations[name]}
        if name in program.fused:
            continue
        for one in program.computations[name]:
            if one.kind in _MOVES_NOTHING or one.kind.endswith("-done"):
                continue
            total += count * _traffic(one, table, program.computations)
    return total


def array_bytes(kind: str, dims: str) -> int:
    """Bytes of an array such as `bf16`, `2,768`."""
    bits = BITS.get(kind) or int(re.search(r"\d+", kind).group())
    for size in filter(None, dims.split(",")):
        bits *= int(size)
    return bits // 8


_MOVES_NOTHING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
                  "after-all", "partition-id", "iota", "custom-call"}  # fmt: skip


def _traffic(one: Instruction, table: dict[str, Instruction], computations) -> float:
    operands = [table[name] for name in one.operands if name in table]
    called = dict(_CALLED.findall(one.rest)).get("calls", "").lstrip("%")
    body = computations.get(called, ()) if one.kind == "fusion" else ()
    if not body:
        if one.kind in ("dynamic-slice", "slice", "gather"):
            return 2 * _main_bytes(one.shape)
        if one.kind == "dynamic-update-slice":
            return 2 * sum(_main_bytes(operand.shape) for operand in operands[1:2])
        return _main_bytes(one.shape) + sum(_main_bytes(operand.shape) for operand in operands)
    users: dict[str, list[Instruction]] = defaultdict(list)
    parameters, updates = {}, {}
    inner = {part.name: part for part in body}
    for part in body:
        for name in part.operands:
            users[name].append(part)
        if part.kind == "parameter":
            parameters[int(part.rest.partition(")")[0])] = part.name
        if part.kind == "dynamic-update-slice" and part.operands[1] in inner:
            updates[_ARRAY.findall(part.shape)[0]] = inner[part.operands[1]].bytes
    total = 0.0
    for number, operand in enumerate(operands):
        name = parameters.get(number, "")
        if all(user.kind in ("dynamic-slice", "gather") for user in users[name]) and users[name]:
            total += min(_main_bytes(operand.shape), sum(user.bytes for user in users[name]))
        elif not any(user.kind == "dynamic-update-slice" and user.operands[0] == name for user in users[name]):
            total += _main_bytes(operand.shape)
    for kind, dims, layout in _PLACED.findall(one.shape):
        if "S(" not in layout:
            total += updates.get((kind, dims), array_bytes(kind, dims))
    return total


def _main_bytes(shape: str) -> int:
    return sum(array_bytes(kind, dims) for kind, dims, layout in _PLACED.findall(shape) if "S(" not in layout)


def _count(computations, name: str, times: int, total: dict[str, int], unknown: list[str]) -> None:
    total[name] += times
    for instruction in computations.get(name, ()):
        called = dict(_CALLED.findall(instruction.rest))
        inside = times
        if instruction.kind == "while":
            trips = _trips(computations, instruction, called.get("condition", "").lstrip("%"))
            if trips is None:
                unknown.append(instruction.name)
            inside = times * (1 if trips is None else trips)
        for role, names in called.items():
            if role == "to_apply" and instruction.kind != "call":
                continue  # what a reduction does to two numbers
            for other in re.findall(r"[\w.\-]+", names):
                if other in computations and role != "condition":
                    _count(computations, other, inside, total, unknown)


def _trips(computations, loop: Instruction, condition: str) -> int | None:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known.group(1))
    # A loop of jax.lax.scan counts from 0 and compares with the only constant of its condition.
    lines = [f"{one.shape} {one.kind}({one.rest}" for one in computations.get(condition, ())]
    limits = [found.group(1) for line in lines if (found := _LIMIT.match(line))]
    less = any("direction=LT" in line for line in lines)
    return int(limits[0]) if less and len(limits) == 1 else None


def _group_size(rest: str, devices: int) -> int:
    named = re.search(r"replica_groups=\S*?\[([^\]]*)\] \{([^}]*)\}", rest)  # mesh['axis_0'=4,'axis_1'=2] {'axis_0'}
    if named:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named.group(1)))
        size = 1
        for axis in re.findall(r"'([^']+)'", named.group(2)):
            size *= int(sizes[axis])
        return size
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest)  # [groups, members]
    if iota:
        return int(iota.group(2))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    if listed:
        return len(listed.group(1).split(","))
    return 2 if "source_target_pairs" in rest else devices


def _end(text: str, start: int = 0) -> int:
    """Behind the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    return len(text)
