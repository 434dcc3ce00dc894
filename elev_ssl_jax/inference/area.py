"""Area by class, of a map and of what its errors say of it (Olofsson et al. 2014).

Pixels of a map are counted as they were told, and a class that is often taken for another is not as
large as it looks. The confusion matrix of test chips says how often: area is then estimated by
class of the map, as strata (doi 10.1016/j.rse.2014.02.015, equations 9 to 11).
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyproj
import rasterio
from numpy.typing import NDArray

from elev_ssl_jax.data.rasters import reading
from elev_ssl_jax.errors import InputError

LEAST_BLOCKS = 5  # of ground, below which no interval is drawn from them
_DRAWS = 2000
_NORMAL = 1.959964  # 95 % of a normal distribution lie within so many deviations


class Areas(NamedTuple):
    """Shares of all that is mapped, by class: float64 [K] each."""

    mapped: NDArray[np.float64]
    estimated: NDArray[np.float64]
    low: NDArray[np.float64]  # of the 95 % interval; NaN where none can be drawn
    high: NDArray[np.float64]


def estimate(matrices: NDArray[np.int64], mapped: NDArray[np.float64], *, alone: bool) -> Areas:
    """The share of each class in the ground that is mapped.

    Intervals are of blocks of ground drawn again, where there are five: pixels of one chip, and
    chips of one block, err together, and their number says little. Of fewer, and if each target was
    drawn for itself, it is equation 11's.

    Args:
      matrices: Confusion matrices [G, K, K] of the test's blocks, true classes by those that were
        told; one, if blocks are unknown.
      mapped: How much the map has of each class, in any unit [K].
      alone: Whether a target is a chip, and not one of the many pixels of one.
    """
    shares = mapped / mapped.sum()
    together = matrices.sum(axis=0)
    point = _estimated(together, shares, together)
    low = high = np.full(len(shares), np.nan)
    if len(matrices) >= LEAST_BLOCKS:
        rng = np.random.default_rng(0)
        drawn = rng.multinomial(len(matrices), np.full(len(matrices), 1 / len(matrices)), _DRAWS)
        every = [_estimated(np.tensordot(times, matrices, 1), shares, together) for times in drawn]
        low, high = np.quantile(every, (0.025, 0.975), axis=0)
    elif alone:
        half = _NORMAL * _standard_error(together, shares)
        low, high = np.maximum(point - half, 0), np.minimum(point + half, 1)
    return Areas(shares, point, low, high)


def _rates(matrix, instead):
    """Of what is told of each class, the shares of the true ones: [told, true].

    A class that no target was told is taken as in `instead`, and if it isn't there either, as true.
    """
    counts = matrix.sum(axis=0)[:, None]
    told = instead.sum(axis=0)[:, None]
    known = np.where(told > 0, instead.T / np.maximum(told, 1), np.eye(len(matrix)))
    return np.where(counts > 0, matrix.T / np.maximum(counts, 1), known)


def _estimated(matrix, shares, instead):
    return shares @ _rates(matrix, instead)


def _standard_error(matrix, shares):
    """Equation 11; a class that was told once or never has no variance to be seen."""
    rates, counts = _rates(matrix, matrix), matrix.sum(axis=0)[:, None]
    return np.sqrt(
        np.sum(shares[:, None] ** 2 * rates * (1 - rates) / np.maximum(counts - 1, 1), 0)
    )


def of_map(path: Path, source: rasterio.DatasetReader, count: int) -> NDArray[np.float64]:
    """Square metres of each of `count` classes in a map of classes, float64 [K].

    Raises:
      InputError: It has no coordinate system that says how large a pixel is.
    """
    areas = pixel_areas(path, source)
    total = np.zeros(count)
    for _, window in source.block_windows(1):
        with reading(path):
            classes = source.read(1, window=window)
        rows = areas[window.row_off : window.row_off + window.height]
        for value in np.unique(classes[classes < count]):
            total[value] += rows @ (classes == value).sum(axis=1)
    return total


def pixel_areas(path: Path, source: rasterio.DatasetReader) -> NDArray[np.float64]:
    """Square metres of a pixel of each row, float64 [H].

    Raises:
      InputError: The coordinate system doesn't say.
    """
    if source.crs is None:
        raise InputError(f"{path} has no coordinate system, so that its pixels have no size")
    crs, grid = pyproj.CRS.from_user_input(source.crs), source.transform
    if crs.is_projected:
        unit = crs.axis_info[0].unit_conversion_factor
        # What the projection makes of areas, which is 4 times too much of them in Web Mercator at
        # 60 degrees: by row, over some columns.
        columns = np.linspace(0.5, source.width - 0.5, 5)
        x, y = grid @ np.meshgrid(columns, np.arange(source.height) + 0.5)
        to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
        scale = pyproj.Proj(crs).get_factors(*to_degrees.transform(x, y)).areal_scale
        return abs(grid.determinant) * unit**2 / np.asarray(scale).mean(axis=1)
    geod = crs.get_geod()
    if geod is None or not crs.is_geographic or grid.b or grid.d:
        raise InputError(
            f"{path}: its pixels' size is not known in {crs.name}; warp it to a projected grid"
        )
    tops = grid.f + grid.e * np.arange(source.height + 1)
    return np.array(
        [
            abs(geod.polygon_area_perimeter([0, grid.a, grid.a, 0], [top, top, low, low])[0])
            for top, low in itertools.pairwise(tops)
        ]
    )
