"""Which chips show the same ground, told from their bounds."""

import numpy as np
import pandas as pd
import pyproj
import shapely

from elev_ssl_jax.data import store
from elev_ssl_jax.data.rasters import parse_crs

_HAIR = 1e-4  # of a side: neighbours only touch, however their bounds were rounded
_AT_ONCE = 10_000  # chips that are compared
_EDGE = 8  # points along a side, where it is bent by going to another coordinate system


def is_known(chips: pd.DataFrame) -> bool:
    """Whether the chips have bounds and coordinate systems."""
    return {*store.BOUNDS, "crs"} <= set(chips)


def shared(chips: pd.DataFrame, positions: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which chips at `positions` share ground with one at `others`: bool [len(positions)].

    They do if the area in common is positive; a chip doesn't count against itself. Each may have a
    coordinate system of its own, and lie across 180 degrees.

    Args:
      chips: A row for each chip, with `left`, `bottom`, `right`, `top` and `crs`, as
        `store.read_table` has them.
      positions: Of the chips to judge.
      others: Of the chips they are compared with.
    """
    bounds = np.array(chips[store.BOUNDS], float)
    codes, names = pd.factorize(chips["crs"])
    systems = [parse_crs(name, "a chip") for name in names]
    geographic = np.array([system.is_geographic for system in systems])[codes]
    bounds[:, 2] += np.where(geographic & (bounds[:, 2] < bounds[:, 0]), 360, 0)
    hair = _HAIR * (bounds[:, 2:] - bounds[:, :2])
    bounds = np.hstack([bounds[:, :2] + hair, bounds[:, 2:] - hair])

    wkts = [pyproj.CRS.from_wkt(system.to_wkt()) for system in systems]
    flat = bounds if len(systems) == 1 else _degrees(bounds, codes, wkts)
    wraps = len(systems) > 1 or bool(geographic.all())
    boxes, box_owner = _boxes(flat[others], wraps)
    tree, found = shapely.STRtree(boxes), np.zeros(len(positions), bool)
    for start in range(0, len(positions), _AT_ONCE):  # there are many more pairs than chips
        some = positions[start : start + _AT_ONCE]
        mine, my_owner = _boxes(flat[some], wraps)
        owner, j = tree.query(mine, predicate="intersects")
        owner = my_owner[owner]
        i, j = some[owner], others[box_owner[j]]
        meet = i != j
        if len(systems) > 1:
            meet[meet] = _meet(bounds, codes, wkts, geographic, i[meet], j[meet])
        found[start + owner[meet]] = True
    return found


def _boxes(bounds, wraps):
    """Boxes of bounds [N, 4], in two pieces across 180 degrees, and whose each is."""
    owner = np.arange(len(bounds))
    left, bottom, right, top = bounds.T
    if not wraps:
        return shapely.box(left, bottom, right, top), owner
    width = np.minimum(right - left, 360)
    left = (left + 180) % 360 - 180
    right = left + width
    across = right > 180
    pieces = [
        shapely.box(left, bottom, np.minimum(right, 180), top),
        shapely.box(-180, bottom[across], right[across] - 360, top[across]),
    ]
    return np.concatenate(pieces), np.concatenate([owner, owner[across]])


def _rings(bounds):
    """The outlines of bounds [N, 4]: [N, P, 2]."""
    left, bottom, right, top = (side[:, None] for side in bounds.T)
    along = np.linspace(0, 1, _EDGE, endpoint=False)
    xs = [left + along * (right - left), right + 0 * along]
    xs += [right - along * (right - left), left + 0 * along]
    ys = [bottom + 0 * along, bottom + along * (top - bottom)]
    ys += [top + 0 * along, top - along * (top - bottom)]
    return np.stack([np.hstack(xs), np.hstack(ys)], axis=-1)


def _moved(rings, source, target):
    """Outlines in another coordinate system; infinite where they have no place in it."""
    to = pyproj.Transformer.from_crs(source, target, always_xy=True)
    return np.stack(to.transform(rings[..., 0], rings[..., 1]), axis=-1)


def _degrees(bounds, codes, systems):
    """Bounds [N, 4] in degrees that hold the chips, a little generously."""
    rings = _rings(bounds)
    for code, system in enumerate(systems):
        its = codes == code
        rings[its] = _moved(rings[its], system, "EPSG:4326")
    longitude, latitude = rings[..., 0], rings[..., 1]
    with np.errstate(invalid="ignore"):  # infinite: see `found`
        steps = np.diff(longitude, axis=1, append=longitude[:, :1])
        steps = (steps + 180) % 360 - 180
        longitude = longitude[:, :1] + np.cumsum(steps, axis=1) - steps
    found = np.isfinite(rings).all(axis=(1, 2))
    around_pole = ~found | (np.abs(steps.sum(axis=1)) > 180)
    left, right = longitude.min(axis=1), longitude.max(axis=1)
    bottom, top = latitude.min(axis=1), latitude.max(axis=1)
    margin = 0.02 * np.maximum(right - left, top - bottom)
    result = np.stack([left - margin, bottom - margin, right + margin, top + margin], axis=1)
    result[around_pole] = -180, -90, 180, 90
    return result


def _meet(bounds, codes, systems, geographic, i, j):
    """Whether chips i and j overlap: bool [N], compared in the coordinate system of one of them."""
    # Not in degrees, if there is a choice: they have no place for a chip around a pole.
    swap = geographic[i] & ~geographic[j]
    i, j = np.where(swap, j, i), np.where(swap, i, j)
    meet = np.zeros(len(i), bool)
    for a in range(len(systems)):
        for b in range(len(systems)):
            pairs = np.flatnonzero((codes[i] == a) & (codes[j] == b))
            if not len(pairs):
                continue
            rings = _rings(bounds[j[pairs]])
            if a != b:
                rings = _moved(rings, systems[b], systems[a])
            mine = bounds[i[pairs]]
            if geographic[i[pairs[0]]]:
                middle = (mine[:, 0] + mine[:, 2]) / 2
                turns = np.round((middle[:, None] - rings[..., 0]) / 360)
                rings[..., 0] += 360 * turns
            found = np.isfinite(rings).all(axis=(1, 2))
            outlines = shapely.polygons(np.where(found[:, None, None], rings, 0.0))
            boxes = shapely.box(*mine.T)
            meet[pairs] = ~found | shapely.intersects(outlines, boxes)
    return meet
