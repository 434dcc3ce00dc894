"""Windows over a scene that overlap: read in batches, blended on the device, written once."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rasterio
from jax import lax
from jax.sharding import Mesh
from rasterio.transform import Affine
from rasterio.windows import Window
from tqdm import tqdm

from elev_ssl_jax.data.scene import Scene
from elev_ssl_jax.data.terrain import elevation_over
from elev_ssl_jax.inference.maps import MapFiles
from elev_ssl_jax.inference.model import Model
from elev_ssl_jax.runtime import sharding
from elev_ssl_jax.sensors import ELEVATION

_COLUMNS = 8192  # of a scene at a time, a whole number of the files' tiles: bounds the memory


class Grid(NamedTuple):
    """Windows along one axis of a scene, and what each counts for where they overlap."""

    starts: np.ndarray  # int [N], ascending; the last window ends where the scene does
    weights: np.ndarray  # float32 [N, size]; those of all windows over a pixel sum to 1


class Source(NamedTuple):
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


def make_functions(model: Model, size: int, *, maps: bool, features: bool) -> dict[str, Callable]:
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


def write(
    source: Source,
    functions: dict[str, Callable],
    sink: MapFiles,
    size: int,
    overlap: int,
    batch_size: int,
    mesh: Mesh,
    bar: tqdm,
) -> int:
    """All windows, from top to bottom for some columns after others; how many there were.

    Args:
      source: What they are read from.
      functions: From `make_functions`, of a model on all devices of the mesh.
      sink: Takes what they give.
      size: Pixels along a window's side.
      overlap: Pixels that neighbours share at least.
      batch_size: A multiple of the devices.
      mesh: The devices.
      bar: Of pixels.
    """
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


def _predict_rows(source: Source, functions, tops, lefts, size, batch_size, mesh) -> Iterator[_Row]:
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
