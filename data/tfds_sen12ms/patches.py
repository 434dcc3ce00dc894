"""Patches of Sentinel-1 and Sentinel-2, as SEN12MS and DFC2020 have them: GeoTIFFs by name.

    .../s1_146/ROIs1868_summer_s1_146_p202.tif    VV and VH in dB, floats
    .../s2_146/ROIs1868_summer_s2_146_p202.tif    13 bands, reflectance times 10,000, integers

Each has 256 x 256 pixels of 10 m. Files of another kind have names and folders of their own.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import rasterio
from rasterio.crs import CRS
from tfds_chips.shards import look_over

from elev_ssl_jax.data import ground
from elev_ssl_jax.data.rasters import check_unscaled, open_chip, parse_crs
from elev_ssl_jax.data.splits import in_order_of_hashes
from elev_ssl_jax.data.store import BOUNDS
from elev_ssl_jax.errors import InputError

SIDE = 256  # pixels
_BLOCK = 20_000  # metres along the side of a block of ground
SENSORS: Mapping[str, Mapping[str, Any]] = {
    "s1": {"bands": 2, "dtype": "float32", "nodata": None},
    "s2": {"bands": 13, "dtype": "uint16", "nodata": None},
}
FLOATS = ("float16", "float32", "float64")
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
_NAMED = 5  # patches that are left out, by name


class Seen(NamedTuple):
    """What is told of a patch before it is read for good."""

    finite: bool
    crs: str  # "" where its place is not known; the bounds are NaN then
    left: float
    bottom: float
    right: float
    top: float


_NOWHERE = ("", *[np.nan] * 4)


def find(root: Path, area: str, folders: Mapping[str, Iterable[Path]]) -> pd.DataFrame:
    """The patches of an area, in the order of their numbers.

    Args:
      root: What no file may lie outside of.
      area: What the names of its files begin with: "ROIs1868_summer".
      folders: Those of each kind of file: "s1", "s2", and others that a patch needs.

    Returns:
      A row each: `Id`, `scene`, and the path of each kind, a text.

    Raises:
      InputError: A file is missing, there twice, not named as it should be, or a link that leads
        out of the root.
    """
    found = {kind: _files(root, area, kind, some) for kind, some in folders.items()}
    every = sorted(set().union(*found.values()), key=lambda key: (int(key[0]), int(key[1]), key))
    for kind, files in found.items():
        missing = [key for key in every if key not in files]
        if missing:
            other, beside = next(
                (other, paths[missing[0]]) for other, paths in found.items() if missing[0] in paths
            )
            more = f", nor are {len(missing) - 1} more" if missing[1:] else ""
            raise InputError(
                f"{_partner(beside, area, other, kind)} not found{more}, though {beside} is there; "
                f"a patch needs {' and '.join(found)}: download what is missing"
            )
    rows = [
        {"Id": f"{area}_{scene}_p{patch}", "scene": f"{area}_{scene}"}
        | {kind: str(files[scene, patch]) for kind, files in found.items()}
        for scene, patch in every
    ]
    return pd.DataFrame(rows, columns=["Id", "scene", *found])


def _files(root, area, kind, folders):
    """Paths of one kind by scene and number, both texts."""
    name = re.compile(rf"{area}_{kind}_(\d+)_p(\d+)\.tif")
    found: dict[tuple[str, str], Path] = {}
    for folder in folders:
        _check_inside(folder, root)
        for path in listed(folder):
            if path.suffix.lower() not in (".tif", ".tiff") or path.name.startswith("."):
                continue
            match = name.fullmatch(path.name)
            if match is None:
                raise InputError(
                    f"{path} is not named like {area}_{kind}_0_p1.tif; rename it, or move it away"
                )
            if path.is_symlink():
                _check_inside(path, root)
            first = found.setdefault((match[1], match[2]), path)
            if first != path:
                raise InputError(f"{first} and {path} are the same patch; move one of them away")
    return found


def listed(folder: Path) -> list[Path]:
    """What is in a folder, in order; an `InputError` if it can't be read."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder} can't be read: {error.strerror}") from error


def _check_inside(path, root):
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{path} is a link that leaves {root}; move what it leads to there")


def _partner(path, area, kind, wanted):
    """Where the file of another kind is expected that belongs to one."""
    folder = path.parent.with_name(wanted + path.parent.name.removeprefix(kind))
    return folder / path.name.replace(f"{area}_{kind}_", f"{area}_{wanted}_", 1)


def look(row: Mapping[str, Any]) -> Seen:
    """Looks at the files of both sensors, and reads all values that may not be finite or fit.

    Raises:
      InputError: A file is damaged, or has another size, other bands, or values that don't fit.
    """
    with open_patch(row["s1"], 2, FLOATS) as source:
        place = _place(source)
        finite = bool(np.isfinite(_decibels(source)).all())
    with open_patch(row["s2"], 13, FLOATS + INTEGERS) as source:
        if source.dtypes[0] not in ("uint8", "uint16"):
            values = source.read()
            known = values[np.isfinite(values)]
            finite = finite and known.size == values.size
            _check_whole(row["s2"], known)
    return Seen(finite, *place)


def read(row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """`s1` float32 [256, 256, 2] in dB, and `s2` uint16 [256, 256, 13].

    Raises:
      InputError: As `look`, or a value is not finite.
    """
    with open_patch(row["s1"], 2, FLOATS) as source:
        s1 = _decibels(source)
    if not np.isfinite(s1).all():
        raise InputError(f"{row['s1']} has values that are not finite")
    with open_patch(row["s2"], 13, FLOATS + INTEGERS) as source:
        s2 = source.read()
    _check_whole(row["s2"], s2)
    return {
        name: np.ascontiguousarray(np.moveaxis(bands, 0, -1), SENSORS[name]["dtype"])
        for name, bands in (("s1", s1), ("s2", s2))
    }


@contextmanager
def open_patch(path: str, bands: int, types: tuple[str, ...]) -> Iterator[rasterio.DatasetReader]:
    """A file of a patch.

    Raises:
      InputError: It is missing or damaged, or has another size, other bands or another type.
    """
    with open_chip(Path(path)) as source:
        if (*source.shape, source.count) != (SIDE, SIDE, bands):
            raise InputError(
                f"{path} is {source.height} x {source.width} pixels, {source.count} band(s); "
                f"{SIDE} x {SIDE} and {bands} are needed"
            )
        if source.dtypes[0] not in types:
            kind = "floats" if types == FLOATS else "integers"
            raise InputError(f"{path} has type {source.dtypes[0]}; {kind} are needed")
        check_unscaled(Path(path), source)
        yield source


def _decibels(source):
    with np.errstate(over="ignore"):  # infinite then, which is looked for
        return source.read().astype(np.float32)


def _check_whole(path, values):
    wrong = values[~((values >= 0) & (values <= 65535) & (values == np.rint(values)))]
    if wrong.size:
        raise InputError(f"{path} has the value {wrong[0]}; s2 has whole numbers from 0 to 65535")


def _place(source):
    """Coordinate system and bounds, if they are known and fit to be compared."""
    grid = source.transform
    if source.crs is None or grid.is_identity or grid.b or grid.d:
        return _NOWHERE
    try:
        name = _name_of(source.crs.to_wkt())
    except (InputError, rasterio.errors.CRSError):
        return _NOWHERE
    left, bottom, right, top = source.bounds
    bounds = min(left, right), min(bottom, top), max(left, right), max(bottom, top)
    return (name, *bounds) if np.isfinite(bounds).all() else _NOWHERE


@functools.lru_cache(maxsize=1000)  # of a zone it is always the same
def _name_of(wkt):
    crs: CRS = parse_crs(wkt, "a patch")
    if not (crs.is_projected or crs.is_geographic):
        raise InputError("no place on Earth")
    code = crs.to_epsg()
    return wkt if code is None else f"EPSG:{code}"


def look_all_over(
    patches: pd.DataFrame,
    function: Callable[[list[dict[str, Any]]], list[Seen]],
    workers: int,
) -> pd.DataFrame:
    """The table of patches with what a function of some of its rows sees in them."""
    rows: list[Any] = patches.to_dict("records")
    seen = look_over(function, rows, workers, "looking over")
    return pd.concat([patches, pd.DataFrame(seen, columns=Seen._fields)], axis=1)


def blocks(patches: pd.DataFrame) -> list[str]:
    """The square of 20 km that each patch's middle lies in, or its scene, where that isn't known.

    Args:
      patches: From `look_all_over`.
    """
    found = []
    for row in patches[["scene", "crs", *BOUNDS]].itertuples(index=False):
        scene, crs, left, bottom, right, top = row
        if crs.startswith("EPSG:") and parse_crs(crs, "a patch").is_projected:
            x, y = ((low + high) / 2 // _BLOCK for low, high in ((left, right), (bottom, top)))
            found.append(f"{crs.removeprefix('EPSG:')}-{x:.0f}-{y:.0f}")
        else:
            found.append(scene)
    return found


def arrange(patches: pd.DataFrame, names: tuple[str, str]) -> tuple[dict[str, np.ndarray], str]:
    """Positions of each split's patches, in the order of a hash, so that any slice is a sample.

    Args:
      patches: With `split`, and what `look` has seen.
      names: Of the splits; one that no patch is in is left out.

    Returns:
      The positions, and a line on the patches that are left out; "" if none is.
    """
    positions = {}
    for name in names:
        rows = np.flatnonzero((patches["split"] == name) & patches["finite"])
        if rows.size:
            positions[name] = rows[in_order_of_hashes(patches["Id"].iloc[rows])]
    bad = list(patches["Id"][~patches["finite"]])
    if not bad:
        return positions, ""
    some = ", ".join(bad[:_NAMED])
    more = f" and {len(bad) - _NAMED} more" if bad[_NAMED:] else ""
    are = "is" if len(bad) == 1 else "are"
    return positions, (
        f"{len(bad)} of {len(patches)} patches {are} left out, with values that are not finite: "
        f"{some}{more}"
    )


def shared_ground(
    patches: pd.DataFrame, positions: Mapping[str, np.ndarray], held: str, other: str
) -> str:
    """A line on how many patches of one split show ground of the other; "" if one is missing."""
    if held not in positions or other not in positions:
        return ""
    count = len(positions[held])
    used = patches.iloc[np.concatenate([positions[held], positions[other]])]
    if (used["crs"] == "").any():
        return (
            f"whether the {count} {held} patches share ground with {other} ones can't be told: "
            "not all files have coordinates"
        )
    used = used[["crs", *BOUNDS]].reset_index(drop=True)
    every = np.arange(len(used))
    found = ground.shared(used, every[:count], every[count:])
    return (
        f"{found.sum()} of {count} {held} patches share ground with {other} ones "
        f"({found.mean():.1%})"
    )
