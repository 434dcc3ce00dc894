"""Cuts scenes into chips, strip by strip, in several processes.

A strip is some rows of windows. What it gives is a part of the chips' folder, which appears whole
or not at all, so that a cut that was stopped goes on with the strips that are missing.
"""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window

from elev_ssl_jax.data import store
from elev_ssl_jax.data.labels import Classes, Labels
from elev_ssl_jax.data.rasters import LARGEST, open_raster
from elev_ssl_jax.data.scene import Scene, open_scene, warn_of_blanks
from elev_ssl_jax.data.scene_files import SceneFiles
from elev_ssl_jax.data.terrain import check_overlap, elevation_over
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.files import UNLABELLED
from elev_ssl_jax.runtime.workers import mapped

LARGEST_BLOCK = 500  # pixels, of the default
WORTH_PROCESSES = 1000  # windows: starting processes takes a second or two
_CACHE = 128  # MB for GDAL in each process
_PART_BYTES, _PART_CHIPS = 2**25, 256  # of a part, at most, but for a single row of windows


class Settings(NamedTuple):
    """How scenes are cut, all of them alike."""

    size: int = 100  # pixels along a chip's side
    stride: int | None = None  # from chip to chip; `size` by default, so that they don't overlap
    # Cells along the side of a chip's elevation, over the same ground; None is no elevation.
    elevation_size: int | None = 33
    block: int | None = None  # pixels along a block's side; a part of the scene by default
    nodata: Mapping[str, float] = {}  # as in `open_scene`
    max_nodata: float = 0.0  # the largest share of a chip's pixels that may have no value
    classes: Classes | None = None


class Strip(NamedTuple):
    """Rows of windows of a scene, and the folder that their chips go to."""

    scene: SceneFiles
    settings: Settings
    tops: tuple[int, ...]
    folder: Path
    sensors: Mapping[str, Mapping[str, Any]]  # how chips hold them, as in `store.About`
    windows: int  # that are looked at
    most: int | None = None  # chips; None is all


class _Open(NamedTuple):
    """The files of a scene, open."""

    scene: Scene
    dem: rasterio.DatasetReader | None
    labels: Labels | None


def check_settings(settings: Settings) -> None:
    """Refuses sizes that can't be.

    Raises:
      InputError: Names the argument.
    """
    for name, value in (
        ("--size", settings.size),
        ("--stride", settings.stride),
        ("--elevation-size", settings.elevation_size),
        ("--block", settings.block),
    ):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    if max(settings.size, settings.elevation_size or 1) > LARGEST:
        raise InputError(f"--size and --elevation-size are at most {LARGEST}")
    if not 0 <= settings.max_nodata < 1:
        raise InputError(f"--max-nodata is {settings.max_nodata}; it must lie in [0, 1)")


def without_what_is_missing(settings: Settings, scenes: Sequence[SceneFiles]) -> Settings:
    """The settings without elevation or classes that no scene has."""
    if not any(scene.elevation for scene in scenes):
        settings = settings._replace(elevation_size=None)
    if not any(scene.labels for scene in scenes):
        settings = settings._replace(classes=None)
    return settings


def finish(
    scene: SceneFiles, about: Mapping[str, Any], strips: Sequence[Strip]
) -> store.PartCounts:
    """Says what a scene is, all of whose strips are there; what they hold together.

    Raises:
      InputError: There is no chip, or none with elevation.
    """
    parts = [store.read_counts(strip.folder) for strip in strips]
    counts = store.PartCounts(*map(sum, zip(*filter(None, parts), strict=True)))
    first = next(iter(scene.images.values()))[0]
    if not counts.kept:
        raise InputError(f"{first}: every chip has nodata; nothing is left")
    if scene.elevation is not None and not counts.with_elevation:
        raise InputError(f"{scene.elevation} has no elevation under any chip of {first}")
    store.write_scene(strips[0].folder.parent, about)
    return counts


def about_all(settings: Settings, sensors: Mapping[str, Mapping[str, Any]]) -> store.About:
    """What all chips have in common that are cut so."""
    classes = settings.classes and settings.classes.names
    return store.About(sensors, settings.size, settings.elevation_size, classes)


def plan(files: SceneFiles, settings: Settings, folder: Path) -> tuple[dict[str, Any], list[Strip]]:
    """What is to be known of a scene, as `store` keeps it, and its strips.

    Args:
      files: The scene.
      settings: How it is cut.
      folder: That of its chips.

    Returns:
      Their `sensors` are this scene's; if others have other types, see `common_sensors`.

    Raises:
      InputError: A file is missing or broken, has no CRS, doesn't overlap, or is smaller than a
        chip.
    """
    with ExitStack() as stack:
        scene, _, _ = _open(files, settings, stack)
        warn_of_blanks(scene)
        grid, size = scene.grid, settings.size
        height, width = grid.shape
        if min(height, width) < size:
            raise InputError(
                f"{scene.path} is {height} x {width} pixels, smaller than one chip (--size {size})"
            )
        block = settings.block or max(size, min(LARGEST_BLOCK, min(height, width) // 5))
        stride = settings.stride or size
        sensors: dict[str, dict[str, Any]] = {
            name: {
                "bands": scene.bands(name),
                "dtype": scene.dtype(name).name,
                "nodata": scene.nodata_of(name) if scene.dtype(name).kind != "f" else None,
            }
            for name in scene.sensors
        }
        about = {
            "crs": name
            if (name := grid.crs.to_string()).startswith("EPSG:")
            else grid.crs.to_wkt(),
            "transform": list(grid.transform)[:6],
            "block": block,
        }
        across = len(range(0, width - size + 1, stride))
        bands = sum(s["bands"] * np.dtype(s["dtype"]).itemsize for s in sensors.values())
        most = min(_PART_CHIPS, _PART_BYTES // (size**2 * (bands + 1)))
        rows = max(1, most // across)
        tops = range(0, height - size + 1, stride)
    strips = []
    for number, i in enumerate(range(0, len(tops), rows)):
        some, place = tuple(tops[i : i + rows]), folder / f"{number:05d}"
        strips.append(Strip(files, settings, some, place, sensors, len(some) * across))
    return {**about, "parts": len(strips)}, strips


def common_sensors(scenes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """How chips hold the sensors of several scenes: as all have them, or as float32 with NaN.

    Args:
      scenes: `sensors` of each scene, by name.

    Raises:
      InputError: A scene has other sensors, or other numbers of bands, than the first.
    """
    if not scenes:
        return {}
    first, *others = scenes
    for scene in others:
        for name in {**scenes[first], **scenes[scene]}:
            bands = [scenes[s].get(name, {}).get("bands") for s in (first, scene)]
            if bands[0] != bands[1]:
                said = [f"{n} bands" if n else "none" for n in bands]
                raise InputError(
                    f"scene {scene}: of the sensor {name} it has {said[1]}, and {first} {said[0]}; "
                    "all scenes need the same"
                )
    result = {}
    for name, sensor in scenes[first].items():
        # Where they disagree on what stands for none, one's may be a value of another.
        kinds = {(scene[name]["dtype"], scene[name]["nodata"]) for scene in scenes.values()}
        dtype, nodata = kinds.pop() if len(kinds) == 1 else ("float32", None)
        result[name] = {"bands": sensor["bands"], "dtype": dtype, "nodata": nodata}
    return result


def _open(files: SceneFiles, settings: Settings, stack: ExitStack) -> _Open:
    scene = open_scene(files.images, stack, settings.nodata)
    dem = labels = None
    if files.elevation is not None:
        dem = open_raster(files.elevation, stack)
        check_overlap(files.elevation, dem.crs, dem.bounds, scene.grid, scene.path)
    if files.labels is not None:
        assert settings.classes is not None
        labels = Labels(files.labels, settings.classes, scene.grid, scene.path, stack)
    return _Open(scene, dem, labels)


class _Kept(threading.local):
    """Scenes that a thread has open, the oldest first, each with the stack that closes it."""

    def __init__(self) -> None:
        self.scenes: list[tuple[tuple[Any, ...], _Open, ExitStack]] = []


_kept = _Kept()
_KEPT = 8  # at most


def _keep_open(scene: SceneFiles, settings: Settings) -> _Open:
    """The files of a scene, which the next call needs again."""
    asked = scene, settings, scene.states()
    for known, opened, _ in _kept.scenes:
        if known == asked:
            return opened
    with ExitStack() as stack:
        opened = _open(scene, settings, stack)
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
    few = {str(name): arrays[name] for name in ("places", "counts") if name in arrays}
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
        heights, mask, _ = _ground(opened, files, settings, top, left)
    for name, array in (("elevation", heights), ("mask", mask)):
        if array is not None:
            chip[name] = array
    return chip


def _chips(strip, all_elevation=True) -> tuple[dict[str, np.ndarray], store.PartCounts]:
    files, settings = strip.scene, strip.settings
    opened = _keep_open(files, settings)
    scene, size, stride = opened.scene, settings.size, settings.stride or settings.size
    found: dict[str, list[np.ndarray]] = {name: [] for name in scene.sensors}
    places: list[tuple[int, int]] = []
    elevations, masks = [], []
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
            heights, mask, without = _ground(opened, files, settings, top, left, needed)
            unclassed += without
            if heights is not None:
                elevations.append(heights)
                incomplete += bool(np.isnan(heights).any())
                with_elevation += not np.isnan(heights).all()
            if mask is not None:
                masks.append(mask)
    arrays: dict[str, np.ndarray] = {"places": np.array(places, np.int32).reshape(-1, 2)}
    for name, chips in found.items():
        sensor = strip.sensors[name]
        empty = np.empty((0, size, size, sensor["bands"]), sensor["dtype"])
        arrays[name] = np.stack(chips) if chips else empty
    if (cells := settings.elevation_size) is not None and all_elevation:
        arrays["elevation"] = np.array(elevations, np.float32).reshape(-1, cells, cells)
    if settings.classes is not None:
        arrays["mask"] = np.array(masks, np.uint8).reshape(-1, size, size)
        arrays["counts"] = _count(arrays["mask"], len(settings.classes.names))
    return arrays, store.PartCounts(len(places), dropped, incomplete, with_elevation, unclassed)


def _ground(opened, files, settings, top, left, with_elevation=True):
    """A chip's elevation and classes, or None, and how many pixels have labels of no class."""
    size, cells, grid = settings.size, settings.elevation_size, opened.scene.grid
    transform = grid.transform @ Affine.translation(left, top)
    heights = mask = None
    unclassed = 0
    if cells is not None and with_elevation:
        heights = np.full((cells, cells), np.nan, np.float32)
        if opened.dem is not None:
            dem = opened.dem
            heights = elevation_over(files.elevation, dem, transform, grid.crs, size, cells)
    if settings.classes is not None:
        mask = np.full((size, size), UNLABELLED, np.uint8)
        if opened.labels is not None:
            mask, unclassed = opened.labels.over(transform, size)
    return heights, mask, unclassed


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
