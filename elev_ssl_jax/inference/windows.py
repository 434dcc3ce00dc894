"""Windows over a scene that overlap: read in batches, blended on the device, written once."""

import itertools
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from tqdm import tqdm

from elev_ssl_jax.inference.maps import MapFiles
from elev_ssl_jax.inference.model import Model
from elev_ssl_jax.inference.reading import Row, Source, read_rows
from elev_ssl_jax.runtime import sharding

_COLUMNS = 8192  # of a scene at a time, a whole number of the files' tiles: bounds the memory


class Grid(NamedTuple):
    """Windows along one axis of a scene, and what each counts for where they overlap."""

    starts: np.ndarray  # int [N], ascending; the last window ends where the scene does
    weights: np.ndarray  # float32 [N, size]; those of all windows over a pixel sum to 1


class Work(NamedTuple):
    """How a scene is gone over."""

    top: int  # the rows to write, from here
    bottom: int  # to before here
    size: int  # pixels along a window's side
    overlap: int  # pixels that neighbours share at least
    batch_size: int  # windows at a time, a multiple of the devices
    mesh: Mesh  # the devices
    workers: int  # processes that read


class _Rows(NamedTuple):
    """Rows of windows."""

    tops: np.ndarray  # int [N]
    ends: np.ndarray  # int [N], where the next row begins: none further down touches what is above
    weights: np.ndarray  # float32 [N, size], as of `Grid`


class _Block(NamedTuple):
    """Columns of a scene that are gone over together, and the windows that touch them."""

    left: int
    right: int
    columns: Grid

    @property
    def first(self) -> int:
        """Column where the first window begins."""
        return int(self.columns.starts[0])


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
        quantity = model.quantity_function()
        functions["map"] = lambda chips: _to_pixels(quantity(chips), size)
    return functions


@partial(jax.jit, static_argnums=1)
def _to_pixels(cells, size):
    """Cells [B, h, w] to pixels [B, size, size, 1]."""
    return jax.image.resize(cells, (len(cells), size, size), "linear")[..., None]


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
    source: Source, functions: dict[str, Callable], sink: MapFiles, work: Work, bar: tqdm
) -> int:
    """All windows of the rows to write, from top to bottom for some columns after others; how many.

    Windows that begin above these rows are blended in, and not counted.

    Args:
      source: What they are read from.
      functions: From `make_functions`, of a model on all devices of the mesh.
      sink: Takes what they give.
      work: How.
      bar: Of pixels.
    """
    height, width = source.scene.grid.shape
    rows, columns = (window_grid(length, work.size, work.overlap) for length in (height, width))
    touching = (rows.starts + work.size > work.top) & (rows.starts < work.bottom)
    ends = np.array([*rows.starts[1:], height])
    chosen = _Rows(rows.starts[touching], ends[touching], rows.weights[touching])
    blocks = []
    for left in range(0, width, _COLUMNS):
        right = min(left + _COLUMNS, width)
        touching = (columns.starts + work.size > left) & (columns.starts < right)
        blocks.append(_Block(left, right, Grid(*(part[touching] for part in columns))))
    places = ((top, block.columns.starts) for block in blocks for top in chosen.tops)
    with closing(read_rows(source, places, work.size, work.workers)) as read:
        windows = 0
        for block in blocks:
            some = itertools.islice(read, len(chosen.tops))
            windows += _write_block(some, chosen, block, functions, sink, work, bar)
    return windows


def _write_block(read, rows, block, functions, sink, work, bar) -> int:
    # Of weighted predictions, for the rows that are not yet written.
    one_device = work.mesh.devices.flat[0]
    width = block.columns.starts[-1] + work.size - block.first
    sums = jax.device_put(np.zeros((work.size, width, sink.bands), np.float32), one_device)
    windows = 0
    # A row is written, and the next one read, while the devices are at work.
    waiting: list[Callable[[], int]] = []
    for top, end, weights, row in zip(*rows, read, strict=True):
        outputs, ready = _predict(row, functions, work), None
        if "map" in functions:
            for numbers, batch in zip(_batches(row, work), outputs, strict=True):
                which = np.searchsorted(block.columns.starts, row.lefts[numbers])
                fill = (0, work.batch_size - len(which))
                sums = _blend(
                    sums,
                    jax.device_put(batch["map"], one_device),
                    weights,
                    np.pad(block.columns.weights[which], (fill, (0, 0))),
                    np.pad(block.columns.starts[which] - block.first, fill),
                )
            ready, sums = _take(sums, int(end - top), sink.takes_sums)
        waiting.append(partial(_write_row, sink, work, block, top, end, row, outputs, ready, bar))
        if len(waiting) > 1:
            windows += waiting.pop(0)()
    return windows + sum(write() for write in waiting)


def _batches(row: Row, work: Work) -> list[np.ndarray]:
    """The positions of a row's windows, some at a time."""
    count = len(row.lefts)
    starts = range(0, count, work.batch_size)
    return [np.arange(start, min(start + work.batch_size, count)) for start in starts]


def _predict(row: Row, functions, work) -> list[dict[str, jax.Array]]:
    """The outputs of a row's windows, on the devices, which are still at work on them."""
    outputs = []
    for numbers in _batches(row, work):
        # Filled up, so that there is one compiled program.
        chips = row.chips(np.resize(numbers, work.batch_size))
        placed = jax.device_put(chips, sharding.split(work.mesh))
        outputs.append({name: function(placed) for name, function in functions.items()})
    return outputs


def _write_row(sink, work, block, top, end, row, outputs, ready, bar) -> int:
    """The rows of the map that are ready, and the features of a row of windows: how many."""
    # Of the rows that are ready, those that are to be written.
    kept = slice(max(work.top - top, 0), max(min(work.bottom, end) - top, 0))
    within = slice(block.left - block.first, block.right - block.first)
    if ready is not None and kept.stop > kept.start:
        at = top + kept.start - work.top
        sink.write_map(at, block.left, np.asarray(ready)[kept, within], row.valid[kept, within])
    # A window that lies across the block's border, or begins above the rows, is another's.
    own = (row.lefts >= block.left) & (work.top <= top)
    if own.any() and "features" in outputs[0]:
        starts = row.lefts - row.first
        shares = np.array([row.valid[:, i : i + work.size].mean() for i in starts])
        found = np.concatenate([np.asarray(batch["features"]) for batch in outputs])
        found = found[: len(row.lefts)][own]
        sink.write_features(top - work.top, row.lefts[own], work.size, shares[own], found)
    bar.update(max(kept.stop - kept.start, 0) * (block.right - block.left))
    return int(own.sum())
