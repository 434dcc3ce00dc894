"""A scene: rasters on one grid, read as one image."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.windows import Window

from elev_ssl_jax.errors import InputError


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

    def read(
        self, window: Window, shape: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bands [C, H, W] in a window, and where every one of them is valid: bool [H, W].

        Args:
          window: In pixels.
          shape: Read at this size (nearest), rather than the window's.

        Raises:
          InputError: A file is truncated, or holds other than numbers.
        """
        parts, valid = [], []
        for path, raster in zip(self.paths, self.rasters, strict=True):
            out_shape = None if shape is None else (raster.count, *shape)
            try:
                parts.append(raster.read(window=window, out_shape=out_shape))
                valid.append(raster.read_masks(window=window, out_shape=out_shape).all(axis=0))
            except rasterio.errors.RasterioError as error:
                raise InputError(
                    f"{path} can't be read at row {window.row_off}; is it truncated?"
                ) from error
            if parts[-1].dtype.kind not in "uif":
                raise InputError(
                    f"{path} has type {parts[-1].dtype}; integers or floats are needed"
                )
        pixels = np.concatenate(parts)
        return pixels, np.logical_and.reduce([*valid, np.isfinite(pixels).all(axis=0)])

    def read_whole(self, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """As `read`, of the whole scene, at most `longest` pixels along a side."""
        scale = max(1, max(self.grid.shape) / longest)
        height, width = (max(1, round(n / scale)) for n in self.grid.shape)
        whole = Window(0, 0, self.grid.width, self.grid.height)
        return self.read(whole, (height, width))


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
