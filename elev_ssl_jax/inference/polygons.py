"""The classes of a map as polygons."""

import math
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import rasterio.features
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError
from shapely.geometry import shape

from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference.area import pixel_areas

LAYER = "classes"


def check_least(least: float) -> None:
    """Refuses what can't be the least area of polygons.

    Raises:
      InputError: It is no number of square metres.
    """
    if not 0 <= least < math.inf:
        raise InputError(f"--min-area is {least}; it is 0 or more square metres")


def write(
    path: Path, source: rasterio.DatasetReader, names: tuple[str, ...], least: float = 0.0
) -> int:
    """Writes what lies together and is of one class, by edges; the number of polygons.

    The map is held whole, a byte a pixel.

    Args:
      path: GeoPackage, with `class` (number), `name`, `area_m2` and `geometry`.
      source: A map of classes, as `MapFiles` writes it.
      names: Of the classes.
      least: Square metres; what is smaller becomes part of its largest neighbour (GDAL's sieve,
        which leaves what has small neighbours only).
    """
    classes, known = source.read(1), source.dataset_mask() > 0
    sizes = pixel_areas(Path(source.name), source)
    pixels = math.ceil(least / sizes.mean())
    if pixels > 1:
        classes = rasterio.features.sieve(classes, pixels, mask=known, connectivity=4)
    found = rasterio.features.shapes(
        classes, mask=known, connectivity=4, transform=source.transform
    )
    outlines, numbers = [], []
    for outline, number in found:
        outlines.append(shape(outline))
        numbers.append(int(number))
    frame = geopandas.GeoDataFrame(
        {"class": numbers, "name": [names[number] for number in numbers]},
        geometry=outlines,
        crs=source.crs,
    )
    if frame.crs.is_projected:
        rows = (~source.transform @ (frame.centroid.x.to_numpy(), frame.centroid.y.to_numpy()))[1]
        each = sizes[np.clip(rows, 0, source.height - 1).astype(int)]
        frame["area_m2"] = frame.area * each / abs(source.transform.determinant)
    else:
        geod = frame.crs.get_geod()
        frame["area_m2"] = [abs(geod.geometry_area_perimeter(o)[0]) for o in frame.geometry]
    frame = frame.astype({"class": np.int16})
    try:
        frame.to_file(path, layer=LAYER, driver="GPKG")
    except (DataSourceError, DataLayerError, FeatureError) as error:
        raise InputError(
            f"polygons can't be written ({error}); is there space left on the disk?"
        ) from error
    return len(frame)
