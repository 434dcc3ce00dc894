"""A scene: rasters on one grid, read as one image."""

import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.enums import MaskFlags
from rasterio.windows import Window

from elev_ssl_jax.data.rasters import check_unscaled, open_raster
from elev_ssl_jax.errors import InputError

_ROWS, _COLUMNS = 512, 8192  # of a block, which bounds the memory
_BLANK = 0.01  # the share of pixels that are 0 without meaning no data, above which there is a word


class Scene(NamedTuple):
    """Open rasters on one grid, whose bands follow one another."""

    paths: Sequence[Path]
    rasters: Sequence[rasterio.DatasetReader]
    nodata: float | None = None  # instead of what the files declare

    @property
    def grid(self) -> rasterio.DatasetReader:
        """The first raster, which has the CRS, the transform and the size of all."""
        return self.rasters[0]

    @property
    def bands(self) -> int:
        """Of all rasters together."""
        return sum(raster.count for raster in self.rasters)

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Bands [C, H, W] in a window, and where every one of them is valid: bool [H, W].

        Raises:
          InputError: A file is truncated, or holds other than numbers.
        """
        parts, valid = [], []
        for path, raster in zip(self.paths, self.rasters, strict=True):
            try:
                parts.append(raster.read(window=window))
                valid.append(_valid(raster, parts[-1], window, self.nodata))
            except rasterio.errors.RasterioError as error:
                raise InputError(
                    f"{path} can't be read at row {window.row_off}; is it truncated?"
                ) from error
            if parts[-1].dtype.kind not in "uif":
                raise InputError(
                    f"{path} has type {parts[-1].dtype}; integers or floats are needed"
                )
        return np.concatenate(parts), np.logical_and.reduce(valid)

    def blank_share(self) -> float:
        """Which share of the pixels is 0 in all bands, and by all that is said has data there.

        Of a large scene 64 places are looked at.
        """
        blank = seen = 0
        for top in _places(self.grid.height):
            for left in _places(self.grid.width):
                size = min(_ROWS, self.grid.width - left), min(_ROWS, self.grid.height - top)
                pixels, valid = self.read(Window(left, top, *size))
                blank += ((pixels == 0).all(axis=0) & valid).sum()
                seen += valid.size
        return float(blank / seen)

    def sample(self, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """As `read`, of every so many-th pixel, so that no side has more than `longest`."""
        height, width = self.grid.shape
        step = math.ceil(max(height, width) / longest)
        rows = []
        # By blocks: GDAL, asked for fewer pixels, may decode a tile again for each row of them.
        for top in range(0, height, _ROWS):
            blocks = []
            for left in range(0, width, _COLUMNS):
                size = min(_COLUMNS, width - left), min(_ROWS, height - top)
                pixels, valid = self.read(Window(left, top, *size))
                every = slice(-top % step, None, step), slice(-left % step, None, step)
                blocks.append((pixels[:, *every], valid[every]))
            rows.append([np.concatenate(parts, axis=-1) for parts in zip(*blocks, strict=True)])
        pixels, valid = zip(*rows, strict=True)
        return np.concatenate(pixels, axis=1), np.concatenate(valid)


def _places(length, count=8):
    """Where at most `count` blocks of `_ROWS` pixels begin, evenly over a length."""
    blocks = -(-length // _ROWS)
    return [i * _ROWS for i in sorted({j * (blocks - 1) // (count - 1) for j in range(count)})]


def _valid(raster, pixels, window, nodata):
    """Where bands [C, H, W] have values: bool [H, W]."""
    valid = np.isfinite(pixels)
    if nodata is not None:
        return (valid & (pixels != nodata)).all(axis=0)
    only_nodata = all(flags == [MaskFlags.nodata] for flags in raster.mask_flag_enums)
    if only_nodata and pixels.dtype.kind in "ui":
        # As `read_masks` has it, which would read the pixels again.
        for band, nodata in enumerate(raster.nodatavals):
            valid[band] &= pixels[band] != nodata
    elif any(MaskFlags.all_valid not in flags for flags in raster.mask_flag_enums):
        valid &= raster.read_masks(window=window) > 0
    return valid.all(axis=0)


def open_scene(paths: Sequence[Path], stack: ExitStack, nodata: float | None = None) -> Scene:
    """Opens the rasters of a scene until `stack` closes.

    Args:
      paths: The files.
      stack: Closes them.
      nodata: The value that means "no data", whatever the files say of it.

    Raises:
      InputError: As in `open_raster`, the files are not on one grid, their numbers have a scale or
        an offset, or they can't hold `nodata`.
    """
    scene = Scene(paths, [open_raster(path, stack) for path in paths], nodata)
    for path, raster in zip(paths, scene.rasters, strict=True):
        if not _same_grid(scene.grid, raster):
            raise InputError(f"{path} is not on the grid of {paths[0]}; resample it first")
        check_unscaled(path, raster)
        if nodata is not None:
            _check_nodata(path, raster, nodata)
    # Who says what means no data knows.
    blank = scene.blank_share() if nodata is None else 0.0
    if blank > _BLANK:
        print(
            f"warning: {paths[0]}: {blank:.0%} of the pixels are 0 in all bands, and the file "
            "doesn't say that this means no data; if it does, add --nodata 0",
            file=sys.stderr,
        )
    return scene


def _same_grid(grid, other):
    """Whether two rasters have one CRS and size, and corners within a thousandth of a pixel."""
    if grid.crs != other.crs or grid.shape != other.shape:
        return False
    columns, rows = np.array([0, grid.width] * 2), np.array([0, 0, grid.height, grid.height])
    apart = ~grid.transform @ (other.transform @ (columns, rows))
    return bool(np.allclose(apart, (columns, rows), rtol=0, atol=1e-3))


def _check_nodata(path, raster, nodata):
    for name in raster.dtypes:
        if np.dtype(name).kind in "ui":
            limits = np.iinfo(name)
            if not (limits.min <= nodata <= limits.max and nodata == math.floor(nodata)):
                raise InputError(f"--nodata is {nodata:g}, which {path} ({name}) can't hold")
