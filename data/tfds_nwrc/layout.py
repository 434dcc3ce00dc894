"""The layout of the NWRC data, which is the reference implementation's.

    FOLDER/metadata.csv
    FOLDER/Dataset/18NVN/18NVN_1_0/(200, 900)/chip.npy            image, [C, H, W] or [T, C, H, W]
    FOLDER/Elevations/18NVN/18NVN_1_0/(200, 900)/elevation.tif    metres
    FOLDER/LabelsGeoTiffv2/18NVN/18NVN_1_0/(200, 900)/mask.tif    0, 1 or 2; 255 is unlabelled

The first part of a chip's path is its tile, the second the spatial block within the tile.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from elev_ssl_jax.data.rasters import (
    LARGEST,
    check_unscaled,
    open_chip,
    parse_crs,
    read_values,
)
from elev_ssl_jax.data.store import BOUNDS
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.files import UNLABELLED, check_regular, told

IMAGES, ELEVATIONS, MASKS = "Dataset", "Elevations", "LabelsGeoTiffv2"
NON_AGRICULTURAL, LEGAL_EXCLUSIONS, AGRICULTURAL_FRONTIER = 0, 1, 2
_LISTED = ", though metadata.csv lists it"


def read_metadata(folder: Path) -> pd.DataFrame:
    """The rows of `metadata.csv` that are used, with `key`, `tile` and `block` of each chip.

    Rows whose `legal_exclusions` is 1 are left out. Bounds and CRS are there if the file has
    them.

    Raises:
      InputError: The file is missing, malformed, empty, names a path outside the folder, or has
        bounds that are no place's.
    """
    path = folder / "metadata.csv"
    if not path.is_file():
        raise InputError(
            f"{path} not found; --chips must be a folder made by elev_ssl_jax.data.chips "
            "or laid out like it, or one with the folders of SEN12MS (ROIs1868_summer and so on) "
            "or DFC2020 (ROIs0000_test and so on)"
        )
    check_regular(path)
    with told(path, "name a CSV file"):
        rows = pd.read_csv(path, dtype={"Id": str, "Elevation": str, "Image": str, "Mask": str})
    missing = [c for c in ("Id", "Elevation", "Image", "Mask") if c not in rows]
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}")
    if "legal_exclusions" in rows:
        rows = rows[rows["legal_exclusions"] != 1]
    if rows.empty:
        raise InputError(f"{path} lists no chips")
    if rows[["Id", "Elevation", "Image", "Mask"]].isna().any(axis=None):
        raise InputError(f"{path} has a row without Id, Elevation, Image or Mask")
    if not rows["Id"].is_unique:
        raise InputError(
            f"{path} has the Id {rows['Id'][rows['Id'].duplicated()].iloc[0]} more than once"
        )
    for column, top in (("Image", IMAGES), ("Elevation", ELEVATIONS), ("Mask", MASKS)):
        root = (folder / top).resolve()
        for value in rows[column].unique():
            with told(path, f"mend its {column}"):
                inside = (root / value).resolve().is_relative_to(root)
            if not inside:
                raise InputError(
                    f"{path}: {column} {value!r} leaves the folder {top}; paths must lie inside it"
                )
    _check_bounds(rows, path)
    rows = rows.reset_index(drop=True)
    rows["key"] = rows["Image"]
    parts = rows["Image"].str.split("/")
    rows["tile"] = parts.str[0]
    rows["block"] = parts.str[:2].str.join("/")
    return rows


def _check_bounds(rows, path):
    """Refuses bounds and coordinate systems by which chips can't be compared."""
    if not {*BOUNDS, "crs"} <= set(rows):
        return
    systems: dict[str, bool] = {}
    left, bottom, right, top = (
        pd.to_numeric(rows[name], errors="coerce").to_numpy(float) for name in BOUNDS
    )
    for i, text in enumerate(rows["crs"]):
        # The header is line 1; rows that are left out count.
        where = f"{path}: row {rows.index[i] + 2} (Id {rows['Id'].iloc[i]})"
        if not isinstance(text, str):
            raise InputError(f"{where} has no crs; write EPSG:n or WKT")
        if text not in systems:
            systems[text] = parse_crs(text, where).is_geographic
        box = left[i], bottom[i], right[i], top[i]
        if not np.isfinite(box).all():
            raise InputError(f"{where} has bounds that are no finite numbers")
        # Degrees may go on at -180, to the right of 180.
        if top[i] <= bottom[i] or (right[i] <= left[i] and not systems[text]):
            raise InputError(f"{where} has bounds {box}; left, bottom, right, top are needed")


def read_image(
    path: Path, bands: Sequence[int] | None = None, size: tuple[int, int] | None = None
) -> np.ndarray:
    """A chip as uint16 [H, W, C]; of a leading time axis the first date.

    Only what is asked for is read.

    Args:
      path: The .npy file.
      bands: Which bands to take, in this order; all by default.
      size: The rows and columns that it must have; any by default.

    Raises:
      InputError: The file is missing, broken or pickled, or its shape, type or values won't do.
    """
    check_regular(path, _LISTED)
    shape, dtype, order, offset = _npy_header(path)
    if len(shape) not in (3, 4) or 0 in shape:
        raise InputError(f"{path} has shape {shape}; [C, H, W] or [T, C, H, W] is needed")
    if max(shape[-2:]) > LARGEST:
        raise InputError(f"{path} is {shape[-2]} x {shape[-1]} pixels; {LARGEST} a side is most")
    check_size(path, shape[-2:], size)
    unknown = [band for band in bands or () if not 0 <= band < shape[-3]]
    if unknown:
        raise InputError(f"{path} has {shape[-3]} bands; band {unknown[0]} (from 0) is asked for")
    if dtype.kind not in "uif":
        raise InputError(f"{path} has type {dtype}; integers or floats are needed")
    values = math.prod(shape[-2:]) * (shape[-3] if bands is None else len(bands))
    if values * dtype.itemsize > 2**30:
        raise InputError(f"{path} has shape {shape}, more than a GiB; cut smaller chips")
    stored = np.memmap(path, dtype, "r", offset, shape, order)
    if stored.ndim == 4:
        stored = stored[0]
    chip: np.ndarray = np.array(stored if bands is None else stored[list(bands)])
    if not (np.isfinite(chip).all() and chip.min() >= 0 and chip.max() <= 65535):
        raise InputError(f"{path} has values outside 0..65535, or that are not finite")
    if chip.dtype.kind == "f":
        if 0 < chip.max() <= 2:
            raise InputError(
                f"{path} looks like reflectance in 0..1, which integers can't hold; "
                "multiply it by 10000"
            )
        chip = np.rint(chip)
    return np.ascontiguousarray(np.moveaxis(chip, 0, -1).astype(np.uint16))


def _npy_header(path):
    """Shape, type, order ("C" or "F") and start of a .npy file's numbers, all of which are there.

    Nothing else is read, and a pickle is refused.
    """
    cause: Exception | None = None
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, by_column, dtype = read(file)
            offset = file.tell()
            missing = offset + math.prod(shape) * dtype.itemsize - path.stat().st_size
    except (ValueError, OSError, EOFError, KeyError, TypeError) as error:
        missing, cause = 1, error
    if missing > 0 or dtype.hasobject or min(shape, default=0) < 0:
        raise InputError(
            f"{path} is truncated or not a plain .npy array; write it again"
        ) from cause
    return shape, dtype, "F" if by_column else "C", offset


def check_size(path: Path, shape: tuple[int, int], size: tuple[int, int] | None) -> None:
    """Raises `InputError` if a chip's rows and columns are not those of the first."""
    if size is not None and tuple(shape) != tuple(size):
        raise InputError(
            f"{path} is {shape[0]} x {shape[1]} pixels; the first chip is {size[0]} x {size[1]}"
        )


def elevation_size(folder: Path, rows: pd.DataFrame) -> tuple[int, int]:
    """The commonest size of the first elevation files (some are a pixel off)."""
    sizes = []
    for path in rows["Elevation"].head(64):
        with open_chip(folder / ELEVATIONS / path, _LISTED) as source:
            if max(source.shape) > LARGEST:
                raise InputError(
                    f"{folder / ELEVATIONS / path} is {source.height} x {source.width} cells; "
                    f"{LARGEST} a side is most"
                )
            sizes.append(source.shape)
    return max(set(sizes), key=sizes.count)


def read_elevation(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Elevation in metres, float32 [*size], NaN where missing.

    A file a pixel or two off `size` is resampled to it (bilinear, of what is not missing).

    Raises:
      InputError: The file is missing or broken, or its size is another altogether.
    """
    with open_chip(path, _LISTED) as source:
        if max(abs(source.height - size[0]), abs(source.width - size[1])) > 2:
            raise InputError(
                f"{path} is {source.height} x {source.width} cells; {size[0]} x {size[1]} "
                "(give or take 2) is expected"
            )
        return _resized(read_values(path, source), size)


def _resized(heights, size):
    """Heights [h, w] at other places, [*size]: bilinear, and missing where most is."""
    if heights.shape == tuple(size):
        return heights
    down, across = (_weights(*lengths) for lengths in zip(heights.shape, size, strict=True))
    known = ~np.isnan(heights)
    weight = down @ known.astype(np.float32) @ across.T
    total = down @ np.where(known, heights, 0) @ across.T
    return np.where(weight > 0.499, total / np.maximum(weight, 1e-6), np.float32(np.nan))


def _weights(length, wanted):
    """Bilinear weights float32 [wanted, length] of cells whose outer borders coincide."""
    places = np.clip((np.arange(wanted) + 0.5) * length / wanted - 0.5, 0, length - 1)
    distance = np.abs(places[:, None] - np.arange(length))
    return np.maximum(1 - distance, 0).astype(np.float32)


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Classes uint8 [*size]: 1 agricultural frontier, 0 the rest, 255 unlabelled.

    Legal exclusions are land where the frontier may not be: class 0.

    Raises:
      InputError: The file is missing or broken, or has another size or other values.
    """
    with open_chip(path, _LISTED) as source:
        if source.shape != tuple(size):
            raise InputError(
                f"{path} is {source.height} x {source.width}; its chip {size[0]} x {size[1]}"
            )
        check_unscaled(path, source)
        mask = source.read(1)
    unknown = np.setdiff1d(
        mask, (NON_AGRICULTURAL, LEGAL_EXCLUSIONS, AGRICULTURAL_FRONTIER, UNLABELLED)
    )
    if unknown.size:
        raise InputError(f"{path} has the value {unknown[0]}; masks hold 0, 1, 2 or 255")
    classes = np.array(mask == AGRICULTURAL_FRONTIER, np.uint8)
    classes[mask == UNLABELLED] = UNLABELLED
    return classes
