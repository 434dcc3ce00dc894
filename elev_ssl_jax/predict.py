r"""Runs a trained model over a whole scene, and writes a map.

python -m elev_ssl_jax.predict --run RUN --image R.tif G.tif B.tif --out map.tif

A fine-tuned run gives a class for each pixel, a pre-training run elevation in metres.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import rasterio
from rasterio.windows import Window
from tqdm import tqdm

from elev_ssl_jax import files
from elev_ssl_jax.data.scene import Scene, open_scene
from elev_ssl_jax.errors import InputError, reported
from elev_ssl_jax.inference.maps import LOOK, MapFiles
from elev_ssl_jax.inference.model import Model, load

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


class _Row(NamedTuple):
    """A row of windows, side by side over some columns of a scene."""

    valid: np.ndarray  # bool [size, W]
    seen: np.ndarray  # int [n], which windows have a valid pixel
    outputs: dict[str, np.ndarray]  # [n, ...] of these


def predict(
    model: Model,
    images: Sequence[Path],
    *,
    out: Path | None = None,
    probabilities: Path | None = None,
    features: Path | None = None,
    window: int | None = None,
    overlap: int | None = None,
    batch_size: int = 32,
    nodata: float | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Counts:
    """Maps a scene of any size. Files get their names only when all of them are whole.

    Args:
      model: From `load`.
      images: GeoTIFFs on one grid, whose bands are those that the run was trained on.
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
      batch_size: Windows at a time.
      nodata: The value of the images that means "no data", whatever they say of it.
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

    start = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=_CACHE))
        scene = open_scene(images, stack, nodata)
        # A mosaic names further files, and a run is more than what is read of it.
        read = [*images, *(Path(name) for raster in scene.rasters for name in raster.files)]
        run = (path for path in model.run.rglob("*") if path.is_file())
        files.check_outputs(outputs, [*read, *run], overwrite=overwrite)
        height, width = scene.grid.shape
        model.check_bands(scene.bands, " + ".join(map(str, images)), model.inputs.names[0])
        if min(height, width) < size:
            raise InputError(
                f"{images[0]} is {height} x {width} pixels, smaller than a window of {size}; set "
                "--window"
            )
        look = scene.sample(LOOK)
        _check_values(model, images[0], *look)
        functions = _functions(model, size, maps=maps, features=features is not None)
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
        with bar:
            windows = _write(scene, functions, sink, size, overlap, batch_size, bar)
        sink.finish(look)
    return Counts(height * width, windows, time.monotonic() - start)


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


def _check_values(model, path, pixels, valid) -> None:
    """Refuses a scene whose values are hardly in the range that the run was trained on."""
    known = pixels[:, valid]
    if not known.size:
        raise InputError(f"{path}: every pixel is nodata; nothing is left to map")
    low, high = np.moveaxis(np.array(model.inputs.value_range), -1, 0)[..., None]
    inside = np.mean((known > low) & (known < high))
    if inside < 0.01 or np.ptp(known) < (high - low).min() / 1000:
        raise InputError(
            f"{path} has values from {known.min():g} to {known.max():g}; {model.run} was trained "
            f"on {low.min():g} to {high.max():g}: are these the same units?"
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
    """What to compute of images [B, size, size, C]."""
    functions: dict[str, Callable] = {}
    if features:
        functions["features"] = model.feature_function()
    if maps and model.num_classes is not None:
        functions["map"] = model.probability_function((size, size))
    elif maps:
        elevation = model.elevation_function()
        functions["map"] = lambda chips: _to_pixels(elevation(chips), size)
    (sensor,) = model.inputs.names

    def of_images(function):
        return lambda images: function({sensor: images})

    return {name: of_images(function) for name, function in functions.items()}


@partial(jax.jit, static_argnums=1)
def _to_pixels(elevation, size):
    """Cells [B, h, w] to pixels [B, size, size, 1]."""
    return jax.image.resize(elevation, (len(elevation), size, size), "linear")[..., None]


def _write(scene, functions, sink, size, overlap, batch_size, bar) -> int:
    """All windows, from top to bottom for some columns after others; how many there were."""
    height, width = scene.grid.shape
    rows, all_columns = (window_grid(length, size, overlap) for length in (height, width))
    windows = 0
    for left in range(0, width, _COLUMNS):
        right = min(left + _COLUMNS, width)
        touching = (all_columns.starts + size > left) & (all_columns.starts < right)
        columns = Grid(*(part[touching] for part in all_columns))
        first, last = columns.starts[0], columns.starts[-1] + size
        within = slice(left - first, right - first)
        # Of weighted predictions, for the rows that are not yet written.
        sums = np.zeros((size, last - first, sink.bands), np.float32)
        predicted = _predict_rows(scene, functions, rows.starts, columns.starts, size, batch_size)
        for top, after, weights, row in zip(
            rows.starts, [*rows.starts[1:], height], rows.weights, predicted, strict=True
        ):
            # A window that lies across `left` was counted and described further left.
            own = columns.starts[row.seen] >= left
            windows += own.sum()
            if "features" in row.outputs:
                lefts = columns.starts[row.seen]
                shares = np.array([row.valid[:, i : i + size].mean() for i in lefts - first])
                sink.write_features(
                    top, lefts[own], size, shares[own], row.outputs["features"][own]
                )
            if "map" in functions:
                for i, values in zip(row.seen, row.outputs.get("map", ()), strict=True):
                    weight = weights[:, None] * columns.weights[i]
                    at = slice(columns.starts[i] - first, columns.starts[i] - first + size)
                    sums[:, at] += weight[..., None] * values
                done = after - top  # no window further down touches these rows
                sink.write_map(top, left, sums[:done, within], row.valid[:done, within])
                sums = np.concatenate([sums[done:], np.zeros_like(sums[:done])])
            bar.update((after - top) * (right - left))
    return int(windows)


def _predict_rows(scene: Scene, functions, tops, lefts, size, batch_size) -> Iterator[_Row]:
    """Rows of windows; the next one is read while the device is at work on this."""
    first, width = lefts[0], lefts[-1] + size - lefts[0]
    started: tuple | None = None
    for top in tops:
        pixels, valid = scene.read(Window(first, top, width, size))
        seen = np.array(
            [i for i, left in enumerate(lefts - first) if valid[:, left : left + size].any()], int
        )
        batches = []
        for start in range(0, len(seen), batch_size):
            at = lefts[seen[start : start + batch_size]] - first
            images = np.stack([_window(pixels, valid, left, size) for left in at])
            images = np.resize(images, (batch_size, *images.shape[1:]))  # one compiled program
            batches.append({name: function(images) for name, function in functions.items()})
        if started is not None:
            yield _fetch(*started)
        started = valid, seen, batches
    if started is not None:
        yield _fetch(*started)


def _window(pixels, valid, left, size):
    """An image [size, size, C]; what has no value takes the mean of what has."""
    image = np.moveaxis(pixels[:, :, left : left + size], 0, -1)
    known = valid[:, left : left + size]
    if known.all():
        return image
    mean = image[known].mean(axis=0).astype(image.dtype)
    return np.where(known[..., None], image, mean)


def _fetch(valid, seen, batches) -> _Row:
    outputs = {}
    if batches:
        for name in batches[0]:
            whole = np.concatenate([np.asarray(batch[name]) for batch in batches])[: len(seen)]
            if name == "map" and whole.ndim == 2:  # one prediction for a whole window
                whole = whole[:, None, None]
            outputs[name] = whole
    return _Row(valid, seen, outputs)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--image", type=Path, nargs="+", required=True, help="GeoTIFFs on one grid")
    parser.add_argument("--out", type=Path, help="map to write; a .png to look at lies beside it")
    parser.add_argument("--probabilities", type=Path, help="GeoTIFF with a band for each class")
    parser.add_argument("--features", type=Path, help="GeoParquet with features of each window")
    parser.add_argument("--window", type=int, help="pixels along its side (default: a chip's)")
    parser.add_argument(
        "--overlap", type=int, help="pixels windows share (default: half of one; of features, none)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="windows at a time")
    parser.add_argument(
        "--nodata", type=float, help="image value that means no data, whatever the files say"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    args = vars(parser.parse_args())
    run, images = args.pop("run"), args.pop("image")
    with reported():
        counts = predict(load(run), images, **args)
    written = [args["out"], args["out"] and args["out"].with_suffix(".png")]
    written += [args["probabilities"], args["features"]]
    print(
        f"{', '.join(str(path) for path in written if path)}: {counts.windows:,} windows, "
        f"{counts.pixels:,} pixels in {counts.seconds:.0f} s, "
        f"{counts.pixels / counts.seconds:,.0f} pixels/s"
    )


if __name__ == "__main__":
    main()
