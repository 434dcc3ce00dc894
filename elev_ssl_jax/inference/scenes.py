"""A model over a whole scene of any size."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import rasterio
from tqdm import tqdm

from elev_ssl_jax import files, storage
from elev_ssl_jax.data.scene import Nodata, SensorFiles, warn_of_blanks
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference import polygons, windows
from elev_ssl_jax.inference.area import pixel_areas
from elev_ssl_jax.inference.maps import LOOK, Ground, MapFiles
from elev_ssl_jax.inference.model import Model
from elev_ssl_jax.inference.reading import Files, Source, open_source
from elev_ssl_jax.runtime import sharding
from elev_ssl_jax.sensors import ELEVATION

NOTHING = "nothing to write; name --out, --probabilities, --confidence or --features"


class Counts(NamedTuple):
    """What was done."""

    pixels: int
    windows: int  # that have a valid pixel
    seconds: float


def map_scene(
    model: Model,
    images: SensorFiles | Sequence[Path],
    *,
    elevation: Path | None = None,
    out: Path | None = None,
    probabilities: Path | None = None,
    features: Path | None = None,
    confidence: Path | None = None,
    vector: Path | None = None,
    min_area: float = 0.0,
    window: int | None = None,
    overlap: int | None = None,
    batch_size: int = 32,
    nodata: Nodata | float | None = None,
    shard: tuple[int, int] | None = None,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool | tqdm = True,
) -> Counts:
    """Maps a scene of any size. Files get their names only when all of them are whole.

    Args:
      model: From `load`.
      images: The files of each sensor, or of the only one, on one grid, with the bands that the
        run was trained on.
      elevation: A DEM in metres, on any grid, for a model that sees elevation.
      out: The map, a cloud-optimised GeoTIFF on the scene's grid, and beside it a PNG to look at:
        a fine-tuned model's classes, uint8, 255 where a band has nodata, or a pre-trained one's
        elevation in metres, float32, NaN there.
      probabilities: Likewise a band for each class, float32, NaN for nodata.
      features: GeoParquet, a row for each window that has a valid pixel: `geometry`, its outline;
        `valid`, the share of valid pixels; `features`, as `Model.features`.
      confidence: Likewise how probable the class is that was told, uint8 in per cent, 255 for
        nodata.
      vector: GeoPackage of the map's classes as polygons, see `polygons.write`; with `out`.
      min_area: Square metres; what is smaller becomes part of its neighbour there.
      window: Side in pixels of what the model sees at a time; by default that of the run's chips,
        and no other for elevation.
      overlap: Pixels that neighbouring windows share at least, where their predictions are
        blended; by default half a window for maps, and none for features alone.
      batch_size: Windows at a time, over all devices.
      nodata: The value of the images, or of each sensor, that means "no data", whatever they say
        of it.
      shard: (i, n) maps the i-th of n parts of the rows, from 1, as they are in the whole map, and
        draws no picture; see `part_of` for the files' names.
      workers: Processes that read; 1 is this one. They take some seconds to start, and a script
        that asks for them needs `if __name__ == "__main__"`.
      overwrite: Whether files that are there may be replaced; the images never are.
      progress: Whether to show a bar, or one of pixels that is moved on.

    Raises:
      InputError: Files, model and options don't fit one another, or can't be read or written.
    """
    named = {"out": out, "probabilities": probabilities, "features": features}
    named |= {"confidence": confidence, "vector": vector}
    outputs = files_of({name: path for name, path in named.items() if path is not None}, shard)
    if not outputs:
        raise InputError(NOTHING)
    if shard is not None:
        if vector is not None:
            raise InputError(
                "--vector: polygons go on from one shard to the next; leave it out, and take "
                "python -m elev_ssl_jax.polygons when all parts of the map are there"
            )
        out, probabilities, features, confidence = (
            path and part_of(path, shard) for path in (out, probabilities, features, confidence)
        )
    if workers < 1:
        raise InputError(f"--workers is {workers}; it must be at least 1")
    of_classes = {"probabilities": probabilities, "confidence": confidence, "vector": vector}
    for name, path in of_classes.items():
        if path is not None and model.num_classes is None:
            raise InputError(f"--{name} is for runs that tell classes, which {model.run} doesn't")
    if vector is not None and (out is None or vector.suffix != ".gpkg"):
        raise InputError(f"--vector is {vector}; name a .gpkg, and the map it is made of by --out")
    polygons.check_least(min_area)
    if min_area and vector is None:
        raise InputError(f"--min-area is {min_area}, and is of --vector, which is missing")
    maps = any(path is not None for path in (out, probabilities, confidence))
    size = _check_window(model, window, maps)
    if overlap is None:
        overlap = size // 2 if maps else 0
    if not 0 <= overlap < size:
        raise InputError(f"--overlap is {overlap}; it must be 0 to {size - 1}, less than a window")
    if batch_size < 1:
        raise InputError(f"--batch-size is {batch_size}; it must be at least 1")
    if not isinstance(images, Mapping):
        images = {"image": images}
    if isinstance(nodata, int | float):
        nodata = {"": float(nodata)}
    model, images = _for_model(model, images, elevation)

    start = time.monotonic()
    with ExitStack() as stack:
        source = _open(model, images, elevation, nodata, size, stack)
        scene = source.scene
        # A mosaic names further files, and a run is more than what is read of it.
        read = [file for raster in scene.rasters for file in (raster.path, *raster.dataset.files)]
        read += [path for path in (elevation,) if path is not None]
        if not storage.in_bucket(model.run):
            read += [path for path in model.run.rglob("*") if path.is_file()]
        files.check_outputs(outputs, map(Path, read), overwrite=overwrite)
        height, width = scene.grid.shape
        if min(height, width) < size:
            raise InputError(
                f"{scene.path} is {height} x {width} pixels, smaller than a window of {size}; set "
                "--window"
            )
        if vector is not None:
            pixel_areas(Path(str(scene.path)), scene.grid)  # refuses grids that have none
        number, count = shard or (1, 1)
        top, bottom = height * (number - 1) // count, height * number // count
        if top == bottom:
            raise InputError(f"--shard is {number}/{count}; {scene.path} has {height} rows alone")
        warn_of_blanks(scene)
        look = scene.sample(LOOK, top, bottom)
        try:
            _check_values(model, scene, *look)
        except InputError:
            if shard is None:
                raise
            _check_values(model, scene, *scene.sample(LOOK))  # a part may be water, or nothing
        ground = Ground(
            scene.grid.crs,
            scene.grid.transform @ rasterio.Affine.translation(0, top),
            bottom - top,
            width,
        )
        sink = stack.enter_context(
            MapFiles(
                model,
                ground,
                out=out,
                probabilities=probabilities,
                features=features,
                confidence=confidence,
                vector=vector,
                min_area=min_area,
            )
        )
        pixels = ground.height * width
        bar = (
            progress
            if isinstance(progress, tqdm)
            else stack.enter_context(bar_of(pixels, disable=not progress))
        )
        mesh = sharding.make_mesh(jax.local_devices())
        functions = windows.make_functions(
            dataclasses.replace(
                model, variables=jax.device_put(model.variables, sharding.replicated(mesh))
            ),
            size,
            maps=maps,
            features=features is not None,
        )
        batch_size = -(-batch_size // mesh.size) * mesh.size
        work = windows.Work(top, bottom, size, overlap, batch_size, mesh, workers)
        seen = windows.write(source, functions, sink, work, bar)
        sink.finish(look if shard is None else None)
    return Counts(pixels, seen, time.monotonic() - start)


def files_of(outputs: Mapping[str, Path], shard: tuple[int, int] | None) -> list[Path]:
    """The files that `map_scene` writes, with the picture beside a map.

    Raises:
      InputError: The map would be its own picture.
    """
    if shard is not None:
        return [part_of(path, shard) for path in outputs.values()]
    paths = [*outputs.values()]
    if (out := outputs.get("out")) is not None:
        if not out.name:
            raise InputError(f"--out is {out}, a folder; name a .tif")
        if out.suffix == ".png":
            raise InputError(f"--out is {out}; name a .tif, the picture .png is written beside it")
        paths.insert(1, out.with_suffix(".png"))
    return paths


def part_of(path: Path, shard: tuple[int, int]) -> Path:
    """The file of a shard: `map.2of4.tif` of `map.tif`."""
    number, count = shard
    return path.with_name(f"{path.stem}.{number}of{count}{path.suffix}")


def bar_of(pixels: int, *, disable: bool) -> tqdm:
    """A bar of pixels, unless TQDM_DISABLE says otherwise."""
    off = {"disable": True} if disable else {}
    return tqdm(total=pixels, unit=" pixels", unit_scale=True, desc="predicting", **off)


def _for_model(model, images, elevation) -> tuple[Model, dict[str, Any]]:
    """The model, without sensors that there are no images of, and the others' by its names.

    Raises:
      InputError: A sensor or the elevation is missing, or there is one too many.
    """
    wanted = [name for name in model.inputs.names if name != ELEVATION]
    if list(images) == ["image"] and len(wanted) == 1:
        images = {wanted[0]: images["image"]}
    missing = [name for name in wanted if name not in images]
    if set(images) < set(wanted):
        model.warn_of_missing(missing)
        model = model.without(*missing)
        wanted = [name for name in wanted if name in images]
    if set(images) != set(wanted):
        raise InputError(
            f"--image gives {', '.join(images)}; {model.run} takes "
            + (", ".join(wanted) if wanted != ["image"] else "one sensor, which needs no name")
        )
    if model.inputs.with_elevation != (elevation is not None):
        needs = "needs --elevation" if elevation is None else "takes no --elevation"
        raise InputError(f"{model.run} {needs}")
    return model, {name: images[name] for name in wanted}


def _open(model, images, elevation, nodata, size, stack) -> Source:
    cells = 0
    if elevation is not None:
        cells = max(1, round(model.shapes[ELEVATION][0] * size / max(model.image_shape[:2])))
    files = {name: tuple(paths) for name, paths in images.items()}
    source = open_source(Files(files, nodata, elevation, cells), stack)
    for name, rasters in source.scene.sensors.items():
        paths = " + ".join(str(r.path) for r in rasters)
        model.check_bands(source.scene.bands(name), paths, name)
    return source


def _check_window(model, window, maps) -> int:
    height, width, _ = model.image_shape
    size = max(height, width) if window is None else window
    if size < 32:
        raise InputError(f"--window is {size}; it must be at least 32 pixels")
    if maps and model.num_classes is None:
        if model.tells is None:
            raise InputError(
                f"{model.run} has learned neither classes nor a quantity; --features is what it has"
            )
        if (height, width) != (size, size):
            raise InputError(
                f"--window is {size}; {model.run} tells {model.tells[0]} from "
                f"{height} x {width} pixels"
            )
    return size


def _check_values(model, scene, pixels, valid) -> None:
    """Refuses a scene whose values are hardly in the range that the run was trained on."""
    if not valid.any():
        raise InputError(f"{scene.path}: every pixel is nodata; nothing is left to map")
    known = np.concatenate([part[:, valid].astype(np.float64) for part in pixels.values()])
    low, high = np.broadcast_to(model.ranges_given, (len(known), 2)).T[..., None]
    inside = np.mean((known > low) & (known < high))
    if inside < 0.01 or np.ptp((known - low) / (high - low)) < 1e-3:
        raise InputError(
            f"{scene.path} has values from {known.min():g} to {known.max():g}; {model.run} was "
            f"trained on {low.min():g} to {high.max():g}: are these the same units?"
        )
