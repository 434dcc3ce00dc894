"""Ways to spoil a file, by name."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Way = Callable[[Path], object]
GONE = "gone"  # the file is not there at all


def _cut(share):
    def cut(path):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))] if share < 1 else content[:-1])

    return cut


def _flip(seed):
    def flip(path):
        content = bytearray(path.read_bytes())
        where = random.Random(f"{seed}{path.name}").randrange(len(content))
        content[where] ^= 1 << random.Random(seed).randrange(8)
        path.write_bytes(content)

    return flip


def _as(content):
    return lambda path: path.write_bytes(content)


def _as_folder(path):
    path.unlink()
    path.mkdir()


def _as_fifo(path):
    path.unlink()
    os.mkfifo(path)


def _as_loop(path):
    path.unlink()
    path.symlink_to(path.name)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


CUTS: dict[str, Way] = {f"cut at {share}": _cut(share) for share in (0, 0.1, 0.5, 0.9, 1)}
FLIPS: dict[str, Way] = {f"bit {seed} flipped": _flip(seed) for seed in range(4)}
SWAPS: dict[str, Way] = {
    "text": _as(b"this is no such file\n" * 20),
    "zeros": _as(bytes(4096)),
    "NUL and controls": _as(b"\x00\x1b[31m\r\n\x07" * 50),
    "a folder": _as_folder,
    "a pipe": _as_fifo,
    "a loop of links": _as_loop,
    GONE: _remove,
}
BINARY = {**CUTS, **SWAPS}

_WRONG = (None, -1, 2**70, 1.5, "text", [], {}, [[[]]], True)


def of_json(path: Path, wrong=_WRONG, most: int = 40) -> Iterator[tuple[str, Way]]:
    """Whole documents of other kinds, keys that are gone, values of other types."""
    for text in ("", "{", "[]", "null", '"text"', "1e999", "{}", "[{}]", "\x00", '{"a": NaN}'):
        yield f"is {text!r}", _as(text.encode())
    yield "is deep", _as(b"[" * 100_000 + b"]" * 100_000)
    document = json.loads(path.read_text())
    places = [*_places(document)]
    chosen = random.Random(path.name)
    drawn = places if len(places) <= most else chosen.sample(places, most)
    for place in drawn:
        name = "/".join(map(str, place))
        yield f"{name} is gone", _edit(place, GONE)
        value = chosen.choice(wrong)
        yield f"{name} is {value!r}", _edit(place, value)


def _places(document: Any, before=()) -> Iterator[tuple]:
    parts = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document[:2])
        if isinstance(document, list)
        else ()
    )
    for key, value in parts:
        yield (*before, key)
        yield from _places(value, (*before, key))


def _edit(place, value):
    def edit(path):
        document = json.loads(path.read_text())
        part = document
        for key in place[:-1]:
            part = part[key]
        if value is GONE:
            del part[place[-1]]
        else:
            part[place[-1]] = value
        path.write_text(json.dumps(document))

    return edit
