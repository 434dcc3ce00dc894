"""A scene: rasters on one grid, read as one image."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.enums import MaskFlags
from rasterio.windows import Window

from elev_ssl_jax.errors import InputError

_ROWS, _COLUMNS = 512, 8192  # of a block, which bounds the memory


class Scene(NamedTuple):
    """Open rasters on one grid, whose bands follow one another."""

    paths: Sequence[Path]
    rasters: Sequence[rasterio.DatasetReader]

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
                valid.append(_valid(raster, parts[-1], window))
            except rasterio.errors.RasterioError as error:
                raise InputError(
                    f"{path} can't be read at row {window.row_off}; is it truncated?"
                ) from error
            if parts[-1].dtype.kind not in "uif":
                raise InputError(
                    f"{path} has type {parts[-1].dtype}; integers or floats are needed"
                )
        return np.concatenate(parts), np.logical_and.reduce(valid)

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


def _valid(raster, pixels, window):
    """Where bands [C, H, W] have values: bool [H, W]."""
    valid = np.isfinite(pixels)
    only_nodata = all(flags == [MaskFlags.nodata] for flags in raster.mask_flag_enums)
    if only_nodata and pixels.dtype.kind in "ui":
        # As `read_masks` has it, which would read the pixels again.
        for band, nodata in enumerate(raster.nodatavals):
            valid[band] &= pixels[band] != nodata
    elif any(MaskFlags.all_valid not in flags for flags in raster.mask_flag_enums):
        valid &= raster.read_masks(window=window) > 0
    return valid.all(axis=0)


def open_raster(path: Path, stack: ExitStack) -> rasterio.DatasetReader:
    """Opens a raster until `stack` closes.

    Raises:
      InputError: It is missing, not a raster, or has no CRS.
    """
    if not path.is_file():
        raise InputError(f"{path} not found")
    try:
        source = stack.enter_context(rasterio.open(path))
    except rasterio.errors.RasterioError as error:
        raise InputError(f"{path} is not a readable raster: {error}") from error
    if source.crs is None:
        raise InputError(f"{path} has no CRS; assign one (gdal_edit.py -a_srs EPSG:... {path})")
    return source


def open_scene(paths: Sequence[Path], stack: ExitStack) -> Scene:
    """Opens the rasters of a scene until `stack` closes.

    Raises:
      InputError: As in `open_raster`, or the files are not on one grid.
    """
    scene = Scene(paths, [open_raster(path, stack) for path in paths])
    for path, other in zip(paths[1:], scene.rasters[1:], strict=True):
        grids = [(d.crs, d.transform, d.shape) for d in (scene.grid, other)]
        if grids[0] != grids[1]:
            raise InputError(f"{path} is not on the grid of {paths[0]}; resample it first")
    return scene
