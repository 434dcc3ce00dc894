"""A model over a whole scene: windows that overlap, blended on the device, written once."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rasterio
from jax import lax
from rasterio.transform import Affine
from rasterio.windows import Window
from tqdm import tqdm

from elev_ssl_jax import files
from elev_ssl_jax.data.rasters import open_raster
from elev_ssl_jax.data.scene import Images, Nodata, Scene, open_scene, warn_of_blanks
from elev_ssl_jax.data.terrain import check_overlap, elevation_over
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference.maps import LOOK, MapFiles
from elev_ssl_jax.inference.model import Model
from elev_ssl_jax.runtime import sharding
from elev_ssl_jax.sensors import ELEVATION

_COLUMNS = 8192  # of a scene at a time, a whole number of the files' tiles: bounds the memory
_CACHE = 256  # MB for GDAL, whose default is a share of the machine's


class Grid(NamedTuple):
    """Windows along one axis of a scene, and what each counts for where they overlap."""

    starts: np.ndarray  # int [N], ascending; the last window ends where the scene does
    weights: np.ndarray  # float32 [N, size]; those of all windows over a pixel sum to 1


class Counts(NamedTuple):
    """What was done."""

    pixels: int
    windows: int  # that have a valid pixel
    seconds: float


class _Source(NamedTuple):
    """What windows are read from."""

    scene: Scene
    dem: rasterio.DatasetReader | None  # of a model that sees elevation
    dem_path: Path | None
    cells: int  # of elevation along a window's side


class _Row(NamedTuple):
    """A row of windows, side by side over some columns of a scene."""

    valid: np.ndarray  # bool [size, W]
    seen: np.ndarray  # int [n], which windows have a valid pixel
    batches: list[dict[str, jax.Array]]  # outputs of these, on the device


def map_scene(
    model: Model,
    images: Images | Sequence[Path],
    *,
    elevation: Path | None = None,
    out: Path | None = None,
    probabilities: Path | None = None,
    features: Path | None = None,
    window: int | None = None,
    overlap: int | None = None,
    batch_size: int = 32,
    nodata: Nodata | float | None = None,
    overwrite: bool = False,
    progress: bool = True,
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
      window: Side in pixels of what the model sees at a time; by default that of the run's chips,
        and no other for elevation.
      overlap: Pixels that neighbouring windows share at least, where their predictions are
        blended; by default half a window for maps, and none for features alone.
      batch_size: Windows at a time, over all devices.
      nodata: The value of the images, or of each sensor, that means "no data", whatever they say
        of it.
      overwrite: Whether files that are there may be replaced; the images never are.
      progress: Whether to show a bar.

    Raises:
      InputError: Files, model and options don't fit one another, or can't be read or written.
    """
    outputs = [path for path in (out, probabilities, features) if path is not None]
    if not outputs:
        raise InputError("nothing to write; name --out, --probabilities or --features")
    if out is not None:
        picture = out.with_suffix(".png")
        if picture == out:
            raise InputError(f"--out is {out}; name a .tif, the picture .png is written beside it")
        outputs.append(picture)
    if probabilities is not None and model.num_classes is None:
        raise InputError(f"--probabilities is for fine-tuned runs; {model.run} is a pre-training")
    maps = out is not None or probabilities is not None
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
    images = _for_model(model, images, elevation)

    start = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=_CACHE))
        source = _open(model, images, elevation, nodata, size, stack)
        scene = source.scene
        # A mosaic names further files, and a run is more than what is read of it.
        read = [file for raster in scene.rasters for file in (raster.path, *raster.dataset.files)]
        read += [path for path in (elevation,) if path is not None]
        run = (path for path in model.run.rglob("*") if path.is_file())
        files.check_outputs(outputs, [*map(Path, read), *run], overwrite=overwrite)
        height, width = scene.grid.shape
        if min(height, width) < size:
            raise InputError(
                f"{scene.path} is {height} x {width} pixels, smaller than a window of {size}; set "
                "--window"
            )
        warn_of_blanks(scene)
        look = scene.sample(LOOK)
        _check_values(model, scene, *look)
        sink = stack.enter_context(
            MapFiles(model, scene.grid, out=out, probabilities=probabilities, features=features)
        )
        bar = tqdm(
            total=height * width,
            unit=" pixels",
            unit_scale=True,
            desc="predicting",
            disable=not progress,
        )
        mesh = sharding.make_mesh(jax.local_devices())
        functions = _functions(
            dataclasses.replace(
                model, variables=jax.device_put(model.variables, sharding.replicated(mesh))
            ),
            size,
            maps=maps,
            features=features is not None,
        )
        batch_size = -(-batch_size // mesh.size) * mesh.size
        with bar:
            windows = _write(source, functions, sink, size, overlap, batch_size, mesh, bar)
        sink.finish(look)
    return Counts(height * width, windows, time.monotonic() - start)


def _for_model(model, images, elevation) -> dict[str, Any]:
    """The images by the names that the model has for its sensors.

    Raises:
      InputError: A sensor or the elevation is missing, or there is one too many.
    """
    wanted = [name for name in model.inputs.names if name != ELEVATION]
    if list(images) == ["image"] and len(wanted) == 1:
        images = {wanted[0]: images["image"]}
    if set(images) != set(wanted):
        raise InputError(
            f"--image gives {', '.join(images)}; {model.run} takes "
            + (", ".join(wanted) if wanted != ["image"] else "one sensor, which needs no name")
        )
    if model.inputs.with_elevation != (elevation is not None):
        needs = "needs --elevation" if elevation is None else "takes no --elevation"
        raise InputError(f"{model.run} {needs}")
    return {name: images[name] for name in wanted}


def _open(model, images, elevation, nodata, size, stack) -> _Source:
    scene = open_scene(images, stack, nodata)
    for name, rasters in scene.sensors.items():
        model.check_bands(scene.bands(name), " + ".join(str(r.path) for r in rasters), name)
    if elevation is None:
        return _Source(scene, None, None, 0)
    dem = open_raster(elevation, stack)
    check_overlap(elevation, dem.crs, dem.bounds, scene.grid, scene.path)
    cells = round(model.shapes[ELEVATION][0] * size / max(model.image_shape[:2]))
    return _Source(scene, dem, elevation, max(1, cells))


def _check_window(model, window, maps) -> int:
    height, width, _ = model.image_shape
    size = max(height, width) if window is None else window
    if size < 32:
        raise InputError(f"--window is {size}; it must be at least 32 pixels")
    if maps and model.num_classes is None:
        if model.elevation_shape is None:
            raise InputError(
                f"{model.run} has learned neither classes nor elevation; --features is what it has"
            )
        if (height, width) != (size, size):
            raise InputError(
                f"--window is {size}; {model.run} tells elevation from {height} x {width} pixels"
            )
    return size


def _check_values(model, scene, pixels, valid) -> None:
    """Refuses a scene whose values are hardly in the range that the run was trained on."""
    if not valid.any():
        raise InputError(f"{scene.path}: every pixel is nodata; nothing is left to map")
    known = np.concatenate([part[:, valid].astype(np.float64) for part in pixels.values()])
    low, high = np.broadcast_to(model.inputs.value_range, (len(known), 2)).T[..., None]
    inside = np.mean((known > low) & (known < high))
    if inside < 0.01 or np.ptp((known - low) / (high - low)) < 1e-3:
        raise InputError(
            f"{scene.path} has values from {known.min():g} to {known.max():g}; {model.run} was "
            f"trained on {low.min():g} to {high.max():g}: are these the same units?"
        )


def window_grid(length: int, size: int, overlap: int) -> Grid:
    """Windows of `size` over `length` pixels, of which neighbours share at least `overlap`.

    Over the overlap a window's weight rises from its border inwards: at the border a network
    sees one side of a place only.
    """
    last = length - size
    starts = np.array([*range(0, last, size - overlap), last])
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    profile = np.minimum(distance / max(overlap, 1), 1)
    total = np.zeros(length)
    for start in starts:
        total[start : start + size] += profile
    weights = np.stack([profile / total[start : start + size] for start in starts])
    return Grid(starts, weights.astype(np.float32))


def _functions(model, size, *, maps, features) -> dict[str, Callable]:
    """What to compute of inputs by name: `features` [B, F], `map` [B, size, size, K] or [B, K]."""
    functions: dict[str, Callable] = {}
    if features:
        functions["features"] = model.feature_function()
    if maps and model.num_classes is not None:
        functions["map"] = model.probability_function((size, size))
    elif maps:
        elevation = model.elevation_function()
        functions["map"] = lambda chips: _to_pixels(elevation(chips), size)
    return functions


@partial(jax.jit, static_argnums=1)
def _to_pixels(elevation, size):
    """Cells [B, h, w] to pixels [B, size, size, 1]."""
    return jax.image.resize(elevation, (len(elevation), size, size), "linear")[..., None]


@partial(jax.jit, donate_argnums=0)
def _blend(sums, values, row_weights, column_weights, lefts):
    """Adds weighted predictions of windows side by side.

    Args:
      sums: float32 [size, W, K].
      values: [B, size, size, K], or [B, K], the same for all of a window.
      row_weights: [size].
      column_weights: [B, size]; 0 for windows that only fill the batch.
      lefts: int [B], where the windows begin.
    """
    size, classes = len(row_weights), sums.shape[-1]
    if values.ndim == 2:
        values = values[:, None, None]

    def add(i, sums):
        weights = row_weights[:, None] * column_weights[i]
        at = (0, lefts[i], 0)
        before = lax.dynamic_slice(sums, at, (size, size, classes))
        return lax.dynamic_update_slice(sums, before + weights[..., None] * values[i], at)

    return lax.fori_loop(0, len(values), add, sums)


@partial(jax.jit, static_argnames="whole", donate_argnums=0)
def _take(sums, done, whole):
    """What is ready of the sums: all of it if `whole`, else classes; and the sums without it."""
    ready = sums
    if not whole:
        ready = jnp.argmax(sums, axis=-1).astype(jnp.uint8)
    rows = jnp.arange(len(sums))[:, None, None]
    return ready, jnp.where(rows < len(sums) - done, jnp.roll(sums, -done, axis=0), 0)


def _write(source, functions, sink, size, overlap, batch_size, mesh, bar) -> int:
    """All windows, from top to bottom for some columns after others; how many there were."""
    height, width = source.scene.grid.shape
    rows, all_columns = (window_grid(length, size, overlap) for length in (height, width))
    windows = 0
    for left in range(0, width, _COLUMNS):
        right = min(left + _COLUMNS, width)
        touching = (all_columns.starts + size > left) & (all_columns.starts < right)
        columns = Grid(*(part[touching] for part in all_columns))
        first, last = columns.starts[0], columns.starts[-1] + size
        within = slice(left - first, right - first)
        # Of weighted predictions, for the rows that are not yet written.
        one_device = mesh.devices.flat[0]
        sums = jax.device_put(np.zeros((size, last - first, sink.bands), np.float32), one_device)
        # A row is written while the devices are at work on the next.
        waiting: list[Callable[[], None]] = []
        predicted = _predict_rows(
            source, functions, rows.starts, columns.starts, size, batch_size, mesh
        )
        for top, after, weights, row in zip(
            rows.starts, [*rows.starts[1:], height], rows.weights, predicted, strict=True
        ):
            # A window that lies across `left` was counted and described further left.
            own = columns.starts[row.seen] >= left
            windows += own.sum()
            ready, done = None, after - top  # no window further down touches these rows
            if "map" in functions:
                for i, batch in enumerate(row.batches):
                    which = row.seen[i * batch_size : (i + 1) * batch_size]
                    fill = (0, batch_size - len(which))
                    sums = _blend(
                        sums,
                        jax.device_put(batch["map"], one_device),
                        weights,
                        np.pad(columns.weights[which], (fill, (0, 0))),
                        np.pad(columns.starts[which] - first, fill),
                    )
                ready, sums = _take(sums, done, sink.takes_sums)
            waiting.append(
                partial(_write_row, sink, columns, size, top, left, within, done, row, own, ready)
            )
            if len(waiting) > 1:
                waiting.pop(0)()
            bar.update(done * (right - left))
        for write in waiting:
            write()
    return int(windows)


def _write_row(sink, columns, size, top, left, within, done, row, own, ready) -> None:
    """The rows of the map that are ready, and the features of a row of windows."""
    if ready is not None:
        sink.write_map(top, left, np.asarray(ready)[:done, within], row.valid[:done, within])
    if row.batches and "features" in row.batches[0]:
        lefts = columns.starts[row.seen]
        shares = np.array([row.valid[:, i : i + size].mean() for i in lefts - columns.starts[0]])
        parts = [np.asarray(batch["features"]) for batch in row.batches]
        found = np.concatenate(parts)[: len(row.seen)]
        sink.write_features(top, lefts[own], size, shares[own], found[own])


def _predict_rows(
    source: _Source, functions, tops, lefts, size, batch_size, mesh
) -> Iterator[_Row]:
    """Rows of windows; the next one is read while the devices are at work on this."""
    first, width = lefts[0], lefts[-1] + size - lefts[0]
    for top in tops:
        pixels, valid = source.scene.read(Window(first, top, width, size))
        seen = np.array(
            [i for i, left in enumerate(lefts - first) if valid[:, left : left + size].any()], int
        )
        batches = []
        for start in range(0, len(seen), batch_size):
            at = lefts[seen[start : start + batch_size]]
            # Filled up, so that there is one compiled program.
            at = np.resize(at, batch_size)
            chips = _chips(source, pixels, valid, top, at, first, size)
            placed = jax.device_put(chips, sharding.split(mesh))
            batches.append({name: function(placed) for name, function in functions.items()})
        yield _Row(valid, seen, batches)


def _chips(source, pixels, valid, top, lefts, first, size) -> dict[str, np.ndarray]:
    """The inputs of windows that begin at `top` and `lefts`, by name."""
    chips: dict[str, np.ndarray] = {
        name: np.stack([_window(part, valid, left - first, size) for left in lefts])
        for name, part in pixels.items()
    }
    if source.dem is not None:
        grid = source.scene.grid
        chips[ELEVATION] = np.stack(
            [
                elevation_over(
                    source.dem_path,
                    source.dem,
                    grid.transform @ Affine.translation(left, top),
                    grid.crs,
                    size,
                    source.cells,
                )
                for left in lefts
            ]
        )
    return chips


def _window(pixels, valid, left, size):
    """An image [size, size, C]; what has no value takes the mean of what has."""
    image = np.moveaxis(pixels[:, :, left : left + size], 0, -1)
    known = valid[:, left : left + size]
    if known.all():
        return image
    mean = image[known].mean(axis=0).astype(image.dtype)
    return np.where(known[..., None], image, mean)
