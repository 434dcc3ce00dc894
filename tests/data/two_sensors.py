"""Patches in the folders and under the names that SEN12MS and DFC2020 have; values are random."""

import numpy as np
import rasterio
from rasterio.transform import from_origin

SIDE = 256
STEP = 10 * SIDE  # metres from a patch to the next


def make(rng):
    """The bands of a patch: s1 in dB, s2."""
    s1 = rng.normal(-14, 5, (2, SIDE, SIDE)).astype(np.float32)
    s2 = rng.integers(0, 2**16, (13, SIDE, SIDE)).astype(np.uint16)
    return {"s1": s1, "s2": s2}


def write_tif(path, bands, place=None, crs="EPSG:32632", **profile):
    """Writes bands [C, H, W]; `place` is the left and upper corner in metres, None is nowhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    if place is not None:
        profile |= {"crs": crs, "transform": from_origin(*place, 10, 10)}
    profile |= {"count": count, "height": height, "width": width, "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", **profile) as sink:
        sink.write(bands)
    return path


def write_patch(root, area, scene, patch, arrays, folder="{kind}_{scene}", **place):
    """Writes the files of a patch, below the folder of its area; their paths by kind."""
    inside = root / area
    return {
        kind: write_tif(
            inside / folder.format(kind=kind, scene=scene) / f"{area}_{kind}_{scene}_p{patch}.tif",
            bands,
            **place,
        )
        for kind, bands in arrays.items()
    }


def last(bands):
    """Bands as an example has them: [H, W, C]."""
    return bands.transpose(1, 2, 0)


def by_id(split):
    """The examples of a split by their ids; each is there once."""
    records = {record["id"].decode(): record for record in split}
    assert len(records) == len(split)
    return records
