"""Cuts scenes into chips, strip by strip, in several processes.

A strip is some rows of windows. What it gives is a part of the chips' folder, which appears whole
or not at all, so that a cut that was stopped goes on with the strips that are missing.
"""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window

from elev_ssl_jax.data import store
from elev_ssl_jax.data.planning import Opened, Settings, Strip, open_files
from elev_ssl_jax.data.scene_files import SceneFiles
from elev_ssl_jax.data.terrain import field_over
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.files import UNLABELLED
from elev_ssl_jax.runtime.workers import mapped

WORTH_PROCESSES = 1000  # windows: starting processes takes a second or two
_CACHE = 128  # MB for GDAL in each process


class _Kept(threading.local):
    """Scenes that a thread has open, the oldest first, each with the stack that closes it."""

    def __init__(self) -> None:
        self.scenes: list[tuple[tuple[Any, ...], Opened, ExitStack]] = []


_kept = _Kept()
_KEPT = 8  # at most


def _keep_open(scene: SceneFiles, settings: Settings) -> Opened:
    """The files of a scene, which the next call needs again."""
    asked = scene, settings, scene.states()
    for known, opened, _ in _kept.scenes:
        if known == asked:
            return opened
    with ExitStack() as stack:
        opened = open_files(scene, settings, stack)
        _kept.scenes.append((asked, opened, stack.pop_all()))
    while len(_kept.scenes) > _KEPT:
        _kept.scenes.pop(0)[2].close()
    return opened


def close_all() -> None:
    """Closes the files that `cut`, `index` and `read_chip` have left open in this thread."""
    while _kept.scenes:
        _kept.scenes.pop()[2].close()


def cut(strip: Strip) -> store.PartCounts:
    """Writes the chips of a strip.

    Raises:
      InputError: A file can't be read.
    """
    with rasterio.Env(GDAL_CACHEMAX=_CACHE):
        arrays, counts = _chips(strip)
    store.write_part(strip.folder, arrays, counts)
    return counts


def index(strip: Strip) -> store.PartCounts:
    """Writes where the chips of a strip are, and what classes they have, without the chips.

    Whether they have elevation is looked at until one does.

    Raises:
      InputError: A file can't be read; with the name of the scene.
    """
    try:
        with rasterio.Env(GDAL_CACHEMAX=_CACHE):
            arrays, counts = _chips(strip, all_elevation=False)
    except InputError as error:
        raise InputError(f"scene {strip.scene.name}: {error}") from error
    few = {str(n): arrays[n] for n in ("places", "counts", "known") if n in arrays}
    store.write_part(strip.folder, few, counts)
    return counts


def read_chip(
    files: SceneFiles,
    settings: Settings,
    sensors: Mapping[str, Mapping[str, Any]],
    top: int,
    left: int,
) -> dict[str, np.ndarray]:
    """The chip that begins at a row and column of a scene, as `cut` has it.

    Args:
      files: The scene; the last few stay open.
      settings: How it is cut.
      sensors: How chips hold them, as in `Strip`.
      top: The row.
      left: The column.

    Raises:
      InputError: A file can't be read.
    """
    with rasterio.Env(GDAL_CACHEMAX=_CACHE):
        opened = _keep_open(files, settings)
        pixels, valid = opened.scene.read(Window(left, top, settings.size, settings.size))
        chip = {
            name: np.moveaxis(_stored(sensors[name], part, valid), 0, -1)
            for name, part in pixels.items()
        }
        found, _ = _ground(opened, files, settings, top, left)
    return chip | found


def _chips(strip, all_elevation=True) -> tuple[dict[str, np.ndarray], store.PartCounts]:
    files, settings = strip.scene, strip.settings
    opened = _keep_open(files, settings)
    scene, size, stride = opened.scene, settings.size, settings.stride or settings.size
    found: dict[str, list[np.ndarray]] = {name: [] for name in scene.sensors}
    places: list[tuple[int, int]] = []
    of_ground: dict[str, list[np.ndarray]] = {"elevation": [], "mask": [], "quantity": []}
    dropped = incomplete = with_elevation = unclassed = 0
    for top in strip.tops:
        pixels, valid = scene.read(Window(0, top, scene.grid.width, size))
        stored = {name: _stored(strip.sensors[name], part, valid) for name, part in pixels.items()}
        for left in range(0, scene.grid.width - size + 1, stride):
            if strip.most is not None and len(places) == strip.most:
                break
            columns = slice(left, left + size)
            if (~valid[:, columns]).mean() > settings.max_nodata:
                dropped += 1
                continue
            places.append((top, left))
            for name, part in stored.items():
                found[name].append(np.moveaxis(part[:, :, columns], 0, -1))
            needed = all_elevation or not with_elevation
            ground, without = _ground(opened, files, settings, top, left, needed)
            unclassed += without
            for name, array in ground.items():
                of_ground[name].append(array)
            if (heights := ground.get("elevation")) is not None:
                incomplete += bool(np.isnan(heights).any())
                with_elevation += not np.isnan(heights).all()
    arrays: dict[str, np.ndarray] = {"places": np.array(places, np.int32).reshape(-1, 2)}
    for name, chips in found.items():
        sensor = strip.sensors[name]
        empty = np.empty((0, size, size, sensor["bands"]), sensor["dtype"])
        arrays[name] = np.stack(chips) if chips else empty
    if (cells := settings.elevation_size) is not None and all_elevation:
        elevations = np.array(of_ground["elevation"], np.float32)
        arrays["elevation"] = elevations.reshape(-1, cells, cells)
    if settings.classes is not None:
        arrays["mask"] = np.array(of_ground["mask"], np.uint8).reshape(-1, size, size)
        arrays["counts"] = _count(arrays["mask"], len(settings.classes.names))
    unknown = 0
    if settings.quantity is not None:
        values = np.array(of_ground["quantity"], np.float32).reshape(-1, size, size)
        arrays["quantity"] = values
        arrays["known"] = (~np.isnan(values)).sum(axis=(1, 2)).astype(np.int32)
        unknown = int(np.isnan(values).sum())
    counts = len(places), dropped, incomplete, with_elevation, unclassed, unknown
    return arrays, store.PartCounts(*counts)


def _ground(opened, files, settings, top, left, with_elevation=True):
    """A chip's elevation, classes and quantity, and how many pixels have labels of no class."""
    size, cells, grid = settings.size, settings.elevation_size, opened.scene.grid
    transform = grid.transform @ Affine.translation(left, top)
    found: dict[str, np.ndarray] = {}
    unclassed = 0
    if cells is not None and with_elevation:
        found["elevation"] = np.full((cells, cells), np.nan, np.float32)
        if opened.dem is not None:
            dem = opened.dem
            found["elevation"] = field_over(files.elevation, dem, transform, grid.crs, size, cells)
    if settings.classes is not None:
        found["mask"] = np.full((size, size), UNLABELLED, np.uint8)
        if opened.labels is not None:
            found["mask"], unclassed = opened.labels.over(transform, size)
    if settings.quantity is not None:
        found["quantity"] = np.full((size, size), np.nan, np.float32)
        if opened.quantity is not None:
            raster = opened.quantity
            found["quantity"] = field_over(
                files.quantity, raster, transform, grid.crs, size, size, heights=False
            )
    return found, unclassed


def _stored(sensor, pixels, valid):
    """A sensor's pixels [C, H, W] as chips hold them."""
    dtype = np.dtype(sensor["dtype"])
    stored = pixels.astype(dtype, copy=False)
    nodata = math.nan if dtype.kind == "f" else sensor["nodata"]
    if nodata is not None and not valid.all():
        stored = np.where(valid, stored, np.asarray(nodata, dtype))
    return stored


def _count(masks, classes):
    """Pixels of each class in each mask: int32 [N, classes]."""
    flat = masks.reshape(len(masks), math.prod(masks.shape[1:]))
    return np.stack([(flat == i).sum(axis=1) for i in range(classes)], axis=1).astype(np.int32)


def cut_all(
    strips: Sequence[Strip], workers: int
) -> Iterator[tuple[Strip, store.PartCounts | InputError]]:
    """Cuts strips in their order; of one that fails, its error."""
    windows = sum(strip.windows for strip in strips)
    if workers <= 1 or len(strips) <= 1 or windows < WORTH_PROCESSES:
        try:
            for strip in strips:
                yield _tried(strip)
        finally:
            close_all()
        return
    yield from mapped(_tried, strips, min(workers, len(strips)))


def _tried(strip):
    try:
        return strip, cut(strip)
    except InputError as error:
        return strip, error
