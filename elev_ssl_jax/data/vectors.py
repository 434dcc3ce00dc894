"""Polygons from files, each opened as what its first bytes say it is."""

import json
import re
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyproj
import shapely

from elev_ssl_jax.errors import InputError
from elev_ssl_jax.files import check_regular
from elev_ssl_jax.storage import is_remote_raster

# GeoJSON is read here; the others by GDAL, which would take a text file of any name for a list of
# other files.
_MAGIC = {".gpkg": b"SQLite format 3\0", ".shp": b"\0\0\x27\x0a", ".fgb": b"fgb\x03fgb"}
_GEOJSON = (".geojson", ".json")
SUFFIXES = {*_MAGIC, *_GEOJSON}  # labels.VECTORS, which does without geopandas


def read_polygons(path: Path) -> geopandas.GeoDataFrame:
    """Polygons and multipolygons of a file, with their CRS.

    Raises:
      InputError: The file is missing, broken, not what its name says, has no CRS, or holds
        anything but polygons.
    """
    if is_remote_raster(path):
        raise InputError(f"{path}: polygons are not read from a bucket; copy them here first")
    check_regular(path)
    suffix = path.suffix.lower()
    if suffix in _GEOJSON:
        polygons = _read_geojson(path)
    else:
        with path.open("rb") as file:
            if not file.read(16).startswith(_MAGIC[suffix]):
                raise InputError(f"{path} can't be read as polygons: it is no {suffix} file")
        try:
            polygons = geopandas.read_file(path.absolute(), engine="pyogrio")
        except Exception as error:  # pyogrio and pyproj each have their own
            raise InputError(f"{path} can't be read as polygons: {error}") from error
    if getattr(polygons, "crs", None) is None:
        raise InputError(f"{path} has no CRS; assign one")
    polygons = polygons[polygons.geometry.notna() & ~polygons.geometry.is_empty]
    if polygons.empty or not polygons.geom_type.isin(["Polygon", "MultiPolygon"]).all():
        raise InputError(f"{path} must hold polygons and nothing else")
    if not np.isfinite(polygons.total_bounds).all():
        raise InputError(f"{path} has coordinates that are not finite")
    return polygons


def _read_geojson(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        kind = content["type"]
        features = content["features"] if kind == "FeatureCollection" else [content]
        geometries = [f["geometry"] if f["type"] == "Feature" else f for f in features]
        shapes = [None if g is None else shapely.geometry.shape(g) for g in geometries]
        fields = pd.DataFrame([f.get("properties") or {} for f in features])
        fields = fields.drop(columns="geometry", errors="ignore").set_index(np.arange(len(shapes)))
        return geopandas.GeoDataFrame(fields, geometry=shapes, crs=_crs(content.get("crs"), path))
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(f"{path} can't be read as polygons: it is no GeoJSON") from error
    except (OSError, shapely.errors.ShapelyError, pyproj.exceptions.ProjError) as error:
        raise InputError(f"{path} can't be read as polygons: {error}") from error


def _crs(member, path):
    """The coordinate system of the `crs` that GeoJSON had before RFC 7946; degrees without."""
    if member is None:
        return pyproj.CRS.from_authority("OGC", "CRS84")
    name = str(member["properties"].get("name", "")) if member["type"] == "name" else ""
    match = re.fullmatch(r"(?:urn:ogc:def:crs:)?(EPSG|OGC):(?:[\d.]*:)?(\w+)", name)
    if not match:
        raise InputError(
            f"{path} has a crs other than a name like EPSG:4326; name one, or write it in degrees"
        )
    return pyproj.CRS.from_authority(*match.groups())
