"""How scenes are to be cut: settings, strips of windows, and how chips hold the sensors."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio

from elev_ssl_jax.data import store
from elev_ssl_jax.data.labels import Classes, Labels
from elev_ssl_jax.data.rasters import LARGEST, open_raster
from elev_ssl_jax.data.scene import Scene, open_scene, warn_of_blanks
from elev_ssl_jax.data.scene_files import SceneFiles
from elev_ssl_jax.data.terrain import check_overlap
from elev_ssl_jax.errors import InputError

LARGEST_BLOCK = 500  # pixels, of the default
_PART_BYTES, _PART_CHIPS = 2**25, 256  # of a part, at most, but for a single row of windows


class Quantity(NamedTuple):
    """What a raster of numbers tells of each pixel."""

    name: str
    unit: str


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
    quantity: Quantity | None = None


class Strip(NamedTuple):
    """Rows of windows of a scene, and the folder that their chips go to."""

    scene: SceneFiles
    settings: Settings
    tops: tuple[int, ...]
    folder: Path
    sensors: Mapping[str, Mapping[str, Any]]  # how chips hold them, as in `store.About`
    windows: int  # that are looked at
    most: int | None = None  # chips; None is all


class Opened(NamedTuple):
    """The files of a scene, open."""

    scene: Scene
    dem: rasterio.DatasetReader | None
    labels: Labels | None
    quantity: rasterio.DatasetReader | None


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
    """The settings without elevation, classes or a quantity that no scene has."""
    if not any(scene.elevation for scene in scenes):
        settings = settings._replace(elevation_size=None)
    if not any(scene.labels for scene in scenes):
        settings = settings._replace(classes=None)
    if not any(scene.quantity for scene in scenes):
        settings = settings._replace(quantity=None)
    return settings


def finish(
    scene: SceneFiles, about: Mapping[str, Any], strips: Sequence[Strip]
) -> store.PartCounts:
    """Says what a scene is, all of whose strips are there; what they hold together.

    Raises:
      InputError: There is no chip, or none with elevation or with the quantity.
    """
    parts = [store.read_counts(strip.folder) for strip in strips]
    counts = store.PartCounts(*map(sum, zip(*filter(None, parts), strict=True)))
    first = next(iter(scene.images.values()))[0]
    if not counts.kept:
        raise InputError(f"{first}: every chip has nodata; nothing is left")
    if scene.elevation is not None and not counts.with_elevation:
        raise InputError(f"{scene.elevation} has no elevation under any chip of {first}")
    if scene.quantity is not None and counts.unknown == counts.kept * strips[0].settings.size ** 2:
        raise InputError(
            f"{scene.quantity} has no value under any chip of {first}; look at its nodata, or "
            "leave --quantity out"
        )
    store.write_scene(strips[0].folder.parent, about)
    return counts


def about_all(settings: Settings, sensors: Mapping[str, Mapping[str, Any]]) -> store.About:
    """What all chips have in common that are cut so."""
    classes = settings.classes and settings.classes.names
    quantity = settings.quantity and settings.quantity._asdict()
    return store.About(sensors, settings.size, settings.elevation_size, classes, quantity)


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
        scene = open_files(files, settings, stack).scene
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
        bands += 1 + 4 * (settings.quantity is not None)
        most = min(_PART_CHIPS, _PART_BYTES // (size**2 * bands))
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


def open_files(files: SceneFiles, settings: Settings, stack: ExitStack) -> Opened:
    """Opens the files of a scene until the stack closes.

    Raises:
      InputError: One of them is missing or broken, or doesn't overlap the images.
    """
    scene = open_scene(files.images, stack, settings.nodata)
    fields: list[Any] = []
    for path in (files.elevation, files.quantity):
        fields.append(path and open_raster(path, stack))
        if path is not None:
            if fields[-1].count != 1:
                raise InputError(
                    f"{path} has {fields[-1].count} bands, and one is needed; take it out with "
                    "gdal_translate -b N"
                )
            check_overlap(path, fields[-1].crs, fields[-1].bounds, scene.grid, scene.path)
    labels = None
    if files.labels is not None:
        assert settings.classes is not None
        labels = Labels(files.labels, settings.classes, scene.grid, scene.path, stack)
    return Opened(scene, fields[0], labels, fields[1])
