"""What a compiled program does, read from its text: estimated time, loops, exchanges."""

import json
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# What takes no time of its own, or is done while others compute.
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "partition-id"),
    *("while", "call", "conditional", "custom-call", "after-all"),
)
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_ARRAYS = re.compile(r"[a-z]\w*\[[\d,]*\]")


class Instruction(NamedTuple):
    """One operation of a program, with how often it is executed."""

    name: str
    kind: str  # such as "fusion" or "all-reduce"
    scope: str  # where in the source it comes from, such as "jit(step)/jvp(Model)/encoder/conv1"
    bytes: int  # of what it gives
    cycles: int  # of one execution, by the compiler's estimate; 0 where it has none
    times: int
    channel: int | None  # of an exchange between devices; pieces of one share it


class Loop(NamedTuple):
    """A loop of a program."""

    scope: str
    times: int | None  # None if that isn't known


def instructions(text: str) -> Iterator[Instruction]:
    """All operations of a program, those within loops once, with the loops' trips multiplied."""
    parts, entry = _computations(text)
    yield from _within(parts, entry, 1)


def loops(text: str) -> list[Loop]:
    """The loops of a program."""
    found = []
    for line in text.splitlines():
        match = _INSTRUCTION.match(line)
        if match and match[3] == "while":
            found.append(Loop(_scope(line), _trips(line)))
    return found


def is_unpriced(instruction: Instruction) -> bool:
    """Whether it moves something, and the compiler has no estimate of how long that takes."""
    kind = instruction.kind
    free = kind in _FREE or kind.endswith(("-start", "-done", "-update"))
    return not (instruction.cycles or free or is_collective(instruction))


def is_collective(instruction: Instruction) -> bool:
    """Whether devices exchange something in it."""
    return instruction.kind in _COLLECTIVES


def collectives(text: str) -> list[Instruction]:
    """What devices exchange: each once, though it be spread over other work in pieces."""
    found = {i.channel or i.name: i for i in instructions(text) if is_collective(i)}
    return list(found.values())


def _computations(text):
    """The lines of each computation by name, and the name of the first to run."""
    parts: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        start = _COMPUTATION.match(line)
        if start:
            name = start[2]
            parts[name] = []
            entry = name if start[1] else entry
        elif line.startswith("}"):
            name = ""
        elif name:
            parts[name].append(line)
    return parts, entry


def _within(parts, name, times):
    for line in parts.get(name, ()):
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        kind, called = match[3], re.findall(r"(?:body|to_apply|calls)=%?([\w.\-]+)", line)
        if kind == "while":
            for body in called:
                yield from _within(parts, body, times * (_trips(line) or 1))
        elif kind in ("call", "async-start"):
            for inner in called:
                yield from _within(parts, inner, times)
        elif (
            kind == "fusion"
        ):  # its own estimate is that of what it does; pieces of exchanges aside
            for inner in called:
                yield from filter(is_collective, _within(parts, inner, times))
        result = match[2]
        if kind in ("all-gather-start", "collective-permute-start"):
            result = " ".join(_ARRAYS.findall(result)[1:2])  # an operand, then what comes of it
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
        channel = re.search(r"channel_id=(\d+)", line)
        yield Instruction(
            name=match[1],
            kind=kind.removesuffix("-start")
            if kind.removesuffix("-start") in _COLLECTIVES
            else kind,
            scope=_scope(line),
            bytes=_size(result),
            cycles=int(cycles[1]) if cycles else 0,
            times=times,
            channel=int(channel[1]) if channel else None,
        )


def _scope(line):
    found = re.search(r'op_name="([^"]*)"', line)
    return found[1] if found else ""


def _trips(line):
    config = re.search(r'"known_trip_count":(\{[^}]*\})', line)
    return int(json.loads(config[1])["n"]) if config else None


def _size(shape):
    """Bytes of an array, or of a tuple of arrays."""
    return sum(
        _BYTES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in _ARRAY.findall(shape)
    )
