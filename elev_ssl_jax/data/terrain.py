"""Elevation, or another quantity, over a chip's ground, from a raster on any grid."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rasterio
from rasterio import warp
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.windows import Window
from shapely.geometry import box

from elev_ssl_jax.data.rasters import read_values, reading
from elev_ssl_jax.errors import InputError


def check_overlap(path: Path, crs, bounds, grid: rasterio.DatasetReader, scene: Path) -> None:
    """Raises `InputError` if a file's bounds share no ground with a scene's grid."""
    # The scene goes to the other's CRS: a DEM of the whole globe has no place in the scene's.
    left, bottom, right, top = warp.transform_bounds(grid.crs, crs, *grid.bounds)
    turns = (-360, 0, 360) if crs.is_geographic else (0,)
    if left > right and crs.is_geographic:  # across 180 degrees
        right += 360
    ground = box(*bounds)
    if not any(box(left + turn, bottom, right + turn, top).intersects(ground) for turn in turns):
        raise InputError(f"{path} doesn't overlap {scene}; check both files' CRS and extent")


def field_over(
    path: Path,
    source: rasterio.DatasetReader,
    grid: Affine,
    crs,
    size: int,
    cells: int,
    *,
    heights: bool = True,
) -> np.ndarray:
    """A raster over a chip's ground: float32 [cells, cells] in its unit, NaN where missing.

    Args:
      path: The raster's, for messages.
      source: Open.
      grid: The transform of the chip's pixels.
      crs: Of the chip.
      size: Pixels along its side.
      cells: Of the result, along its side.
      heights: Whether it is a DEM, in metres.
    """
    field = np.full((cells, cells), np.nan, np.float32)
    places = grid @ Affine.scale(size / cells)
    with reading(path):
        for window in _windows(source, places, cells, crs):
            # Of a far finer raster a part of the cells will do: 8 along the side of one of ours.
            step = max(1, int(min(window.width, window.height) / cells / 8)) | 1
            # Voids are taken out first: warping would blend those that aren't declared.
            values = read_values(path, source, window, step, heights=heights)
            if np.isnan(values).all():
                continue
            part = np.full_like(field, np.nan)
            warp.reproject(
                values,
                part,
                src_transform=source.transform
                @ Affine.translation(window.col_off, window.row_off)
                @ Affine.scale(step),
                src_crs=source.crs,
                src_nodata=math.nan,
                dst_transform=places,
                dst_crs=crs,
                dst_nodata=math.nan,
                resampling=Resampling.bilinear,
            )
            field = np.where(np.isnan(field), part, field)
    return field


def bounds_of(grid: Affine, size: int) -> tuple[float, float, float, float]:
    """left, bottom, right, top of a chip (the grid may be turned or upside down)."""
    corners = [grid @ corner for corner in ((0, 0), (size, 0), (0, size), (size, size))]
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _windows(dem, cells, count, crs) -> Iterator[Window]:
    """The windows of a DEM that hold a chip's ground of `count` x `count` cells, and some around.

    There are several where the chip lies across a meridian at which the DEM begins and ends.
    """
    places = np.linspace(0, count, 17)
    xs, ys = cells @ tuple(part.ravel() for part in np.meshgrid(places, places))
    xs, ys = map(np.array, warp.transform(crs, dem.crs, xs.tolist(), ys.tolist()))
    found = np.isfinite(xs) & np.isfinite(ys)
    if not found.any():
        return
    xs, ys = xs[found], ys[found]
    turns = [0]
    if dem.crs.is_geographic:
        middle = xs[len(xs) // 2]
        xs = middle + (xs - middle + 180) % 360 - 180
        if np.ptp(xs) > 180:  # around a pole
            xs = np.append(xs, [middle - 180, middle + 180])
            ys = np.append(ys, [math.copysign(90, ys[0])] * 2)
        turns = [-720, -360, 0, 360, 720]
    for turn in turns:
        columns, rows = ~dem.transform @ (xs + turn, ys)
        ends = []
        for values, length in ((columns, dem.width), (rows, dem.height)):
            extent = np.ptp(values)
            # What bilinear weights reach, and the bend between the places above.
            margin = 2 + 2 * extent / count + extent / 16
            first = max(0, math.floor(values.min() - margin))
            ends += [first, min(length, math.ceil(values.max() + margin)) - first]
        column, width, row, height = ends
        if width > 0 and height > 0:
            yield Window(column, row, width, height)
