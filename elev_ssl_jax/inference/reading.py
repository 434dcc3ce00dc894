"""What a model is shown of a scene: rows of windows, read by this process or by several."""

import functools
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window

from elev_ssl_jax.data.rasters import open_raster
from elev_ssl_jax.data.scene import Nodata, Scene, open_scene
from elev_ssl_jax.data.terrain import check_overlap, field_over
from elev_ssl_jax.runtime.workers import mapped
from elev_ssl_jax.sensors import ELEVATION

_CACHE = 256  # MB for GDAL, whose default is a share of the machine's


class Files(NamedTuple):
    """What windows are read from."""

    images: Mapping[str, tuple[Path, ...]]  # by sensor
    nodata: Nodata | None  # instead of what the files declare
    elevation: Path | None  # a DEM, of a model that sees elevation
    cells: int  # of elevation along a window's side


class Source(NamedTuple):
    """The same, open."""

    files: Files
    scene: Scene
    dem: rasterio.DatasetReader | None


class Row(NamedTuple):
    """A row of windows, side by side over some columns of a scene."""

    lefts: np.ndarray  # int [n], where windows begin that have a valid pixel
    first: int  # column of the scene
    pixels: dict[str, np.ndarray]  # by sensor, [C, size, W], from `first` on
    valid: np.ndarray  # bool [size, W]
    heights: np.ndarray | None  # of these windows, [n, cells, cells]

    def chips(self, which: np.ndarray) -> dict[str, np.ndarray]:
        """The inputs of windows, by name: [B, size, size, C], and elevation [B, cells, cells].

        Args:
          which: Their positions in `lefts`.
        """
        size, starts = len(self.valid), self.lefts[which] - self.first
        chips = {
            name: np.stack([_image(part, self.valid, left, size) for left in starts])
            for name, part in self.pixels.items()
        }
        if self.heights is not None:
            chips[ELEVATION] = self.heights[which]
        return chips


class _Task(NamedTuple):
    """A row to read."""

    top: int
    lefts: np.ndarray  # where all windows of the row begin
    size: int


def open_source(files: Files, stack: ExitStack) -> Source:
    """Opens the files of a scene until `stack` closes.

    Raises:
      InputError: As `open_scene`, or the DEM is not of this ground.
    """
    stack.enter_context(rasterio.Env(GDAL_CACHEMAX=_CACHE))
    scene = open_scene(files.images, stack, files.nodata)
    dem = None
    if files.elevation is not None:
        dem = open_raster(files.elevation, stack)
        check_overlap(files.elevation, dem.crs, dem.bounds, scene.grid, scene.path)
    return Source(files, scene, dem)


def read_rows(
    source: Source, places: Iterable[tuple[int, np.ndarray]], size: int, workers: int
) -> Generator[Row]:
    """Rows of windows, one after another.

    Args:
      source: What they are read from.
      places: Of each row the top, and where its windows begin, int [N].
      size: Pixels along a window's side.
      workers: Processes that read, ahead of what is asked for; 1 is this one.

    Raises:
      InputError: A file can't be read.
    """
    tasks = (_Task(top, lefts, size) for top, lefts in places)
    if workers > 1:
        yield from mapped(_read_opened, tasks, workers, _ask, source.files, ahead=workers)
    else:
        for task in tasks:
            yield _read(source, task)


_asked: list[Files] = []  # in a process that reads


def _ask(files: Files) -> None:
    _asked.append(files)


@functools.cache
def _opened() -> Source:
    return open_source(_asked[0], ExitStack())  # until the process ends


def _read_opened(task: _Task) -> Row:
    return _read(_opened(), task)  # whose errors are told, as those of starting aren't


def _read(source: Source, task: _Task) -> Row:
    top, lefts, size = task
    first, width = lefts[0], lefts[-1] + size - lefts[0]
    pixels, valid = source.scene.read(Window(first, top, width, size))
    there = [valid[:, left : left + size].any() for left in lefts - first]
    seen = lefts[np.array(there)]
    heights = None if source.dem is None else _heights(source, top, seen, size)
    return Row(seen, first, pixels, valid, heights)


def _heights(source: Source, top: int, lefts: np.ndarray, size: int) -> np.ndarray:
    grid, cells, path = source.scene.grid, source.files.cells, source.files.elevation
    assert path is not None
    heights = [
        field_over(
            path,
            source.dem,
            grid.transform @ Affine.translation(left, top),
            grid.crs,
            size,
            cells,
        )
        for left in lefts
    ]
    return np.array(heights, np.float32).reshape(-1, cells, cells)


def _image(pixels, valid, left, size):
    """An image [size, size, C]; what has no value takes the mean of what has."""
    image = np.moveaxis(pixels[:, :, left : left + size], 0, -1)
    known = valid[:, left : left + size]
    if known.all():
        return image
    mean = image[known].mean(axis=0).astype(image.dtype)
    return np.where(known[..., None], image, mean)
