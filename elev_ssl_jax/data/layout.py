"""The folder of chips: the reference implementation's layout, read and written here alone.

    FOLDER/metadata.csv
    FOLDER/Dataset/18NVN/18NVN_1_0/(200, 900)/chip.npy            image, [C, H, W] or [T, C, H, W]
    FOLDER/Elevations/18NVN/18NVN_1_0/(200, 900)/elevation.tif    metres
    FOLDER/LabelsGeoTiffv2/18NVN/18NVN_1_0/(200, 900)/mask.tif    0, 1 or 2; 255 is unlabelled

The first part of a chip's path is its tile, the second the spatial block within the tile.
"""

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from rasterio.enums import Resampling

from elev_ssl_jax.errors import InputError

IMAGES, ELEVATIONS, MASKS = "Dataset", "Elevations", "LabelsGeoTiffv2"
NON_AGRICULTURAL, LEGAL_EXCLUSIONS, AGRICULTURAL_FRONTIER = 0, 1, 2
UNLABELLED = 255
BOUNDS = ["left", "bottom", "right", "top"]
COLUMNS = [
    "Id",
    "Elevation",
    "Image",
    "Mask",
    "non_agricultural(km2)",
    "agricultural_frontier(km2)",
    "legal_exclusions(km2)",
    "non_agricultural",
    "legal_exclusions",
    "agricultural_frontier",
]


def write_metadata(folder: Path, rows: list[dict]) -> None:
    """Writes `metadata.csv`: the reference columns, then each chip's bounds and CRS."""
    pd.DataFrame(rows, columns=[*COLUMNS, *BOUNDS, "crs"]).to_csv(
        folder / "metadata.csv", index=False
    )


def delete(folder: Path, row: dict) -> None:
    """Deletes the files of one row of the metadata."""
    for top, column in ((IMAGES, "Image"), (ELEVATIONS, "Elevation"), (MASKS, "Mask")):
        shutil.rmtree((folder / top / row[column]).parent)


def read_metadata(folder: Path) -> pd.DataFrame:
    """The rows of `metadata.csv` that are used, with `tile` and `block` of each chip.

    Rows whose `legal_exclusions` is 1 are left out. Bounds and CRS are there if the file has
    them.

    Raises:
      InputError: The file is missing, malformed, empty, or names a path outside the folder.
    """
    path = folder / "metadata.csv"
    if not path.is_file():
        raise InputError(
            f"{path} not found; --chips must be a folder made by elev_ssl_jax.data.chips "
            "or laid out like it"
        )
    try:
        rows = pd.read_csv(path, dtype={"Id": str, "Elevation": str, "Image": str, "Mask": str})
    except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path} is not a readable CSV file: {error}") from error
    missing = [c for c in ("Id", "Elevation", "Image", "Mask") if c not in rows]
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}")
    if "legal_exclusions" in rows:
        rows = rows[rows["legal_exclusions"] != 1]
    if rows.empty:
        raise InputError(f"{path} lists no chips")
    rows = rows.reset_index(drop=True)
    if rows[["Id", "Elevation", "Image", "Mask"]].isna().any(axis=None):
        raise InputError(f"{path} has a row without Id, Elevation, Image or Mask")
    if not rows["Id"].is_unique:
        raise InputError(
            f"{path} has the Id {rows['Id'][rows['Id'].duplicated()].iloc[0]} more than once"
        )
    for column, top in (("Image", IMAGES), ("Elevation", ELEVATIONS), ("Mask", MASKS)):
        root = (folder / top).resolve()
        for value in rows[column].unique():
            if not (root / value).resolve().is_relative_to(root):
                raise InputError(
                    f"{path}: {column} {value!r} leaves the folder {top}; paths must lie inside it"
                )
    parts = rows["Image"].str.split("/")
    rows["tile"] = parts.str[0]
    rows["block"] = parts.str[:2].str.join("/")
    return rows


def read_image(path: Path, bands: Sequence[int] | None = None) -> np.ndarray:
    """A chip as uint16 [H, W, C]; of a leading time axis the first date.

    Args:
      path: The .npy file.
      bands: Which bands to take, in this order; all by default.

    Raises:
      InputError: The file is missing, broken or pickled, or its shape, type or values won't do.
    """
    try:
        with path.open("rb") as file:
            chip = np.load(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} not found, though metadata.csv lists it") from error
    except (ValueError, OSError, EOFError) as error:
        # NumPy says of anything that is not an array that pickles aren't allowed.
        raise InputError(
            f"{path} is truncated or not a plain .npy array; write it again"
        ) from error
    if not isinstance(chip, np.ndarray) or chip.ndim not in (3, 4) or chip.size == 0:
        shape = getattr(chip, "shape", "an archive")
        raise InputError(f"{path} has shape {shape}; [C, H, W] or [T, C, H, W] is needed")
    if chip.ndim == 4:
        chip = chip[0]
    if bands is not None:
        if max(bands) >= len(chip):
            raise InputError(
                f"{path} has {len(chip)} bands; band {max(bands)} (from 0) is asked for"
            )
        chip = chip[list(bands)]
    if chip.dtype.kind not in "uif":
        raise InputError(f"{path} has type {chip.dtype}; integers or floats are needed")
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


def check_size(path: Path, image: np.ndarray, size: tuple[int, int]) -> None:
    """Raises `InputError` if an image [H, W, C] is not of `size`."""
    if image.shape[:2] != size:
        height, width = image.shape[:2]
        raise InputError(
            f"{path} is {height} x {width} pixels; the first chip is {size[0]} x {size[1]}"
        )


def elevation_size(folder: Path, rows: pd.DataFrame) -> tuple[int, int]:
    """The commonest size of the first elevation files (some are a pixel off)."""
    sizes = []
    for path in rows["Elevation"].head(64):
        with _opened(folder / ELEVATIONS / path) as source:
            sizes.append(source.shape)
    return max(set(sizes), key=sizes.count)


def read_elevation(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Elevation in metres, float32 [*size], NaN where missing.

    A file a pixel or two off `size` is resampled to it (bilinear).

    Raises:
      InputError: The file is missing or broken, or its size is another altogether.
    """
    with _opened(path) as source:
        if max(abs(source.height - size[0]), abs(source.width - size[1])) > 2:
            raise InputError(
                f"{path} is {source.height} x {source.width} cells; {size[0]} x {size[1]} "
                "(give or take 2) is expected"
            )
        band = source.read(1, out_shape=size, resampling=Resampling.bilinear, masked=True)
    elevation = band.astype(np.float32).filled(np.nan)
    # The voids of SRTM tiles without a nodata tag, and anything no place on Earth has.
    return np.where((elevation > -1000) & (elevation < 9000), elevation, np.float32(np.nan))


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Classes uint8 [*size]: 1 agricultural frontier, 0 the rest, 255 unlabelled.

    Legal exclusions are land where the frontier may not be: class 0.

    Raises:
      InputError: The file is missing or broken, or has another size or other values.
    """
    with _opened(path) as source:
        mask = source.read(1)
    if mask.shape != size:
        raise InputError(
            f"{path} is {mask.shape[0]} x {mask.shape[1]}; its chip {size[0]} x {size[1]}"
        )
    unknown = np.setdiff1d(
        mask, (NON_AGRICULTURAL, LEGAL_EXCLUSIONS, AGRICULTURAL_FRONTIER, UNLABELLED)
    )
    if unknown.size:
        raise InputError(f"{path} has the value {unknown[0]}; masks hold 0, 1, 2 or 255")
    classes = np.array(mask == AGRICULTURAL_FRONTIER, np.uint8)
    classes[mask == UNLABELLED] = UNLABELLED
    return classes


@contextmanager
def _opened(path: Path) -> Iterator[rasterio.DatasetReader]:
    """A raster whose open and read errors are told as ours."""
    if not path.is_file():
        raise InputError(f"{path} not found, though metadata.csv lists it")
    try:
        with warnings.catch_warnings():
            # The reference files lie by their folders' names, not all by a geotransform.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            source = rasterio.open(path)
        with source:
            yield source
    except rasterio.errors.RasterioError as error:
        raise InputError(f"{path} is truncated or not a readable raster; write it again") from error
