"""The folder of chips that `chips` writes and `prepare` reads.

    FOLDER/chips.json                what all chips have in common; written last
    FOLDER/SCENE/scene.json          grid and coordinate system of a scene
    FOLDER/SCENE/00000/image.npy     a part: so many chips, [N, H, W, C]; a file for each sensor
                      /elevation.npy [N, h, w] in metres, NaN where missing
                      /mask.npy      [N, H, W], a class for each pixel, 255 is unlabelled
                      /counts.npy    [N, K], pixels of each class
                      /quantity.npy  [N, H, W] in its unit, NaN where it is not known
                      /known.npy     [N], pixels where it is
                      /places.npy    [N, 2], row and column of the scene where a chip begins
                      /part.json     what was dropped

A part has its name only when it is whole.
"""

import functools
import json
import math
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from affine import Affine

from elev_ssl_jax import files
from elev_ssl_jax.data.rasters import LARGEST, parse_crs
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.files import check_regular, state

FORMAT = 1
ABOUT = "chips.json"
_AGAIN = "cut the scenes again"
BOUNDS = ["left", "bottom", "right", "top"]
_DTYPES = ("uint16", "int16", "float32")


class PartCounts(NamedTuple):
    """Chips of a part: kept, dropped (image nodata), of those kept with elevation missing in part,
    with any elevation; and pixels whose label is of no class, or whose quantity isn't known.
    """

    kept: int
    dropped: int
    incomplete: int
    with_elevation: int
    unclassed: int
    unknown: int = 0


class About(NamedTuple):
    """What all chips of a folder have in common."""

    sensors: Mapping[
        str, Mapping[str, Any]
    ]  # by name: bands, dtype, nodata (None if none is needed)
    size: int  # pixels along a chip's side
    elevation_size: int | None
    classes: tuple[str, ...] | None
    quantity: Mapping[str, str] | None = None  # its name and unit


def write_part(folder: Path, arrays: Mapping[str, np.ndarray], counts: PartCounts) -> None:
    """Writes a part of a scene, whole or not at all."""
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        partial.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)
        (partial / "part.json").write_text(json.dumps(counts._asdict()))
        partial.rename(folder)
    except OSError as error:
        if read_counts(folder) is not None:  # another worker, given the same, was faster
            return
        raise InputError(f"{folder} can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_counts(part: Path) -> PartCounts | None:
    """What a part says of itself; None if it is not there."""
    path = part / "part.json"
    if not path.exists():
        return None
    remedy = f"delete {part}, and cut again"
    said = files.read_json(path, remedy)
    with files.told(path, remedy):
        return PartCounts(**said)


def write_scene(folder: Path, about: Mapping[str, Any]) -> None:
    """Says what a scene is."""
    (folder / "scene.json").write_text(json.dumps(about, indent=2) + "\n")


def write_about(folder: Path, about: About) -> None:
    """Says what all chips have in common; only then it is a folder of chips."""
    text = json.dumps({"format": FORMAT, **about._asdict()}, indent=2)
    (folder / ABOUT).write_text(text + "\n")


def is_store(folder: Path) -> bool:
    """Whether it is a folder of chips, of this layout."""
    return (folder / ABOUT).is_file()


def read_about(folder: Path) -> About:
    """What all chips of a folder have in common.

    Raises:
      InputError: The file is damaged, or of another version of this program.
    """
    path = folder / ABOUT
    content = files.read_json(path, _AGAIN)
    with files.told(path, _AGAIN):
        if content.pop("format") != FORMAT:
            raise InputError(f"{path} is of another version of this program; {_AGAIN}")
        about = About(**content)
        for name, sensor in about.sensors.items():
            fine = sensor["dtype"] in _DTYPES and 0 < sensor["bands"] < 2**16
            if not fine or not name.isidentifier():
                raise ValueError(name)
            if not isinstance(sensor["nodata"], int | float | None):
                raise ValueError(sensor)
        sizes = [about.size, *([about.elevation_size] if about.elevation_size else [])]
        if not all(type(size) is int and 0 < size <= LARGEST for size in sizes):
            raise ValueError(sizes)
        if about.quantity is not None and not all(
            isinstance(about.quantity[key], str) for key in ("name", "unit")
        ):
            raise ValueError(about.quantity)
        classes = None if about.classes is None else tuple(map(str, about.classes))
        return about._replace(classes=classes)


def common_about(folders: Sequence[Path]) -> About:
    """What the chips of several folders have in common, all of it.

    Raises:
      InputError: As in `read_about`, or one differs from the first.
    """
    first, *others = abouts = [read_about(folder) for folder in folders]
    for folder, about in zip(folders[1:], others, strict=True):
        for field in About._fields:
            ours, theirs = (_comparable(side, field) for side in (first, about))
            if ours != theirs:
                raise InputError(
                    f"{folder} has {field} {theirs}, and {folders[0]} {ours}; cut all scenes alike"
                )
    for name in first.sensors:
        values = {about.sensors[name]["nodata"] for about in abouts}
        if len(values) > 1:
            raise InputError(
                f"the sensor {name} has several values for no data ({values}) in these folders; "
                "cut all scenes with one --nodata, or all at once with --scenes"
            )
    return first


def _comparable(about, field):
    if field == "sensors":
        return {name: (s["bands"], s["dtype"]) for name, s in about.sensors.items()}
    return getattr(about, field)


def read_tables(folders: Sequence[Path]) -> pd.DataFrame:
    """`read_table` of several folders together.

    Raises:
      InputError: Two of them have a scene of one name.
    """
    tables = [read_table(folder) for folder in folders]
    owner: dict[str, Path] = {}
    for folder, table in zip(folders, tables, strict=True):
        for scene in table["scene"].unique():
            if scene in owner:
                raise InputError(
                    f"{owner[scene]} and {folder} both have a scene {scene}; name one by --tile"
                )
            owner[scene] = folder
    return pd.concat(tables, ignore_index=True)


def absent_classes(folder: Path, about: About) -> list[str]:
    """The classes that no pixel of any chip has."""
    names = about.classes or ()
    shape, total = (len(names),), np.zeros(len(names), np.int64)
    for path in folder.glob("*/[0-9]*/counts.npy"):
        total += read_array(path.parent, "counts", shape, np.dtype(np.int32)).sum(axis=0)
    return [name for name, count in zip(names, total, strict=True) if not count]


def open_array(part: Path, about: About, name: str) -> np.ndarray:
    """A part's sensor, `elevation`, `quantity` or `mask`, on disk; the last few stay open."""
    if name in about.sensors:
        sensor = about.sensors[name]
        shape: tuple[int, ...] = (about.size, about.size, sensor["bands"])
        dtype = sensor["dtype"]
    elif name == "elevation":
        shape, dtype = (about.elevation_size or 0,) * 2, "float32"
    else:
        shape, dtype = (about.size,) * 2, "float32" if name == "quantity" else "uint8"
    check_regular(part / "part.json")
    return _opened(part, name, shape, dtype, state(part / "part.json"))


@functools.lru_cache(maxsize=512)
def _opened(part, name, shape, dtype, _):  # the last, so that a part that is cut again is opened
    return read_array(part, name, shape, np.dtype(dtype))


def read_table(folder: Path) -> pd.DataFrame:
    """A row for each chip, in the order of scenes and places.

    Columns: `Id`, `key` (a text that is the chip's own, whatever else is in the folder), `scene`,
    `block`, the bounds and `crs`, `part` (its folder) and `index` within it, `top_row` and
    `left_column` of the scene; with labels,
    `label` (the commonest class, the lowest of several) and `share` (of that class among what is
    labelled). With labels or a quantity also `labelled`: the share of the pixels that are, or whose
    quantity is known, the lesser of both.

    Raises:
      InputError: A file is missing or damaged.
    """
    about = read_about(folder)
    tables = []
    for path in sorted(folder.glob("*/scene.json")):
        tables.append(_scene_table(path, about))
    tables = [table for table in tables if len(table)]
    if not tables:
        raise InputError(f"{folder} has no chips")
    return pd.concat(tables, ignore_index=True)


def _scene_table(path, about):
    scene, size = files.read_json(path, _AGAIN), about.size
    with files.told(path, _AGAIN):
        name, block = path.parent.name, int(scene["block"])
        grid = Affine(*map(float, scene["transform"]))
        crs, strips = str(scene["crs"]), int(scene["parts"])
        parse_crs(crs, str(path))
        if block < 1 or not np.isfinite(list(grid)).all():
            raise ValueError(scene)
    tables = []
    for number in range(strips):
        part = path.parent / f"{number:05d}"
        places = read_array(part, "places", (2,), np.dtype(np.int32))
        top, left = np.array(places).T if len(places) else np.empty((2, 0), int)
        table = pd.DataFrame({"top_row": top, "left_column": left})
        table["part"], table["index"] = str(part), np.arange(len(places))
        if about.classes is not None:
            shape = (len(about.classes),)
            counts = np.array(read_array(part, "counts", shape, np.dtype(np.int32)), np.int64)
            if len(counts) != len(places):
                raise InputError(f"{part} is damaged; delete it, and cut again")
            known = counts.sum(axis=1)
            table["label"] = counts.argmax(axis=1)
            table["share"] = counts.max(axis=1) / np.maximum(known, 1)
            table["labelled"] = known / size**2
        if about.quantity is not None:
            found = read_array(part, "known", (), np.dtype(np.int32)) / size**2
            if len(found) != len(places):
                raise InputError(f"{part} is damaged; delete it, and cut again")
            table["labelled"] = np.minimum(found, table.get("labelled", 1.0))
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    tops, lefts = table["top_row"], table["left_column"]
    blocks = [f"{name}/{name}_{t // block}_{n // block}" for t, n in zip(tops, lefts, strict=True)]
    table["Id"] = [f"{name}_{t}_{n}" for t, n in zip(tops, lefts, strict=True)]
    table["key"] = [f"{b}/({t}, {n})/chip.npy" for b, t, n in zip(blocks, tops, lefts, strict=True)]
    table["scene"], table["block"], table["crs"] = name, blocks, crs
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]])
    columns = lefts.to_numpy()[:, None] + corners[:, 0]
    lines = tops.to_numpy()[:, None] + corners[:, 1]
    xs = grid.a * columns + grid.b * lines + grid.c
    ys = grid.d * columns + grid.e * lines + grid.f
    for column, values in zip(BOUNDS, (xs.min(1), ys.min(1), xs.max(1), ys.max(1)), strict=True):
        table[column] = values
    return table


def read_array(part: Path, name: str, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """A file of a part, [N, *shape], on disk rather than in memory.

    Raises:
      InputError: It is missing, damaged, or of another shape or type.
    """
    path = part / f"{name}.npy"
    check_regular(path)
    try:
        with path.open("rb") as file:  # an array of no chips can't be mapped
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(version)
            found, by_column, kind = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
        whole = path.stat().st_size == offset + math.prod(found) * kind.itemsize
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged; delete {part}, and cut again") from error
    if tuple(found[1:]) != tuple(shape) or kind != dtype or by_column or not whole:
        raise InputError(f"{path} is damaged; delete {part}, and cut again")
    if not found[0]:
        return np.empty(found, dtype)
    return np.memmap(path, dtype, "r", offset, found)
