"""Classes over a chip's ground, from a raster of values or from polygons."""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from rasterio import warp
from rasterio.enums import MaskFlags, Resampling
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.windows import Window
from shapely.geometry import box

from elev_ssl_jax.data.rasters import check_unscaled, open_raster, reading
from elev_ssl_jax.data.terrain import bounds_of, check_overlap
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.files import UNLABELLED

VECTORS = {".gpkg", ".shp", ".fgb", ".geojson", ".json"}
_OUTSIDE = np.iinfo(np.int64).min  # a type and a value for nodata that no raster of classes has
_NO_CLASS = -1  # of a polygon whose value is of none
_HAIR = 0.01  # of a pixel: grids that lie so close are one
_MOST = 255  # classes, in eight bits beside UNLABELLED


class Classes(NamedTuple):
    """The classes of a data set, and which values of a raster or of polygons are which."""

    names: tuple[str, ...]
    values: Mapping[Any, int]  # numbers of a raster, or texts of a field, to classes
    others: int = UNLABELLED  # what all other values are
    field: str | None = None  # of polygons; without one, a polygon is of class 1


def two_classes(values: Sequence[int]) -> Classes:
    """Class 1 where a raster has one of these values, class 0 where it has another."""
    name = f"value{'s' * (len(values) > 1)} {', '.join(map(str, values))}"
    return Classes(("other", name), dict.fromkeys(values, 1), others=0)


def inside() -> Classes:
    """Class 1 inside of polygons, class 0 outside."""
    return Classes(("outside", "inside"), {}, others=0)


def parse_classes(arguments: Sequence[str], field: str | None = None) -> Classes:
    """`--classes` arguments, NAME=VALUE[,VALUE...] each, in their order.

    Args:
      arguments: As they come.
      field: The values are those of this field of polygons.

    Raises:
      InputError: A name or a value is missing, or there twice; there are too many classes.
    """
    names: list[str] = []
    values: dict[Any, int] = {}
    for argument in arguments:
        name, _, listed = argument.partition("=")
        name = name.strip()
        if not name or not listed:
            raise InputError(f"--classes {argument!r}: NAME=VALUE[,VALUE...] is needed")
        if name in names:
            raise InputError(
                f"--classes: the class {name} is given twice; give all its values once"
            )
        for text in listed.split(","):
            value: Any = text.strip()
            if field is None:
                if not re.fullmatch(r"-?\d+", value):
                    raise InputError(f"--classes {argument!r}: {value!r} is no whole number")
                value = int(value)
            if value in values:
                raise InputError(
                    f"--classes: the value {value} is of {names[values[value]]} and of {name}"
                    if values[value] < len(names)
                    else f"--classes {argument!r}: the value {value} is there twice"
                )
            values[value] = len(names)
        names.append(name)
    _check_count(names)
    return Classes(tuple(names), values, field=field)


def classes_of_field(paths: Mapping[str, Path], field: str) -> Classes:
    """A class for each value that polygons have in a field, in alphabetical order.

    Args:
      paths: Of each scene's labels, by its name.
      field: The field's name.

    Raises:
      InputError: A file is no file of polygons, or has no such field.
    """
    found: set[str] = set()
    for scene, path in paths.items():
        try:
            if path.suffix.lower() not in VECTORS:
                raise InputError(f"--label-field is for polygons; {path} is a raster")
            found |= set(_texts(_read_polygons(path), field, path))
        except InputError as error:
            raise InputError(f"scene {scene}: {error}" if len(paths) > 1 else str(error)) from error
    names = sorted(found - {""})
    _check_count(names, f"--label-field {field}: ")
    return Classes(tuple(names), {name: i for i, name in enumerate(names)}, field=field)


def _check_count(names, where="--classes: "):
    if not 2 <= len(names) <= _MOST:
        some = ", ".join(names[:9])
        raise InputError(f"{where}{len(names)} classes ({some}); 2 to {_MOST} are needed")


class Labels:
    """Labels of a scene, open until the stack closes."""

    def __init__(
        self,
        path: Path,
        classes: Classes,
        grid: rasterio.DatasetReader,
        scene: Path,
        stack: ExitStack,
    ):
        """Opens labels.

        Args:
          path: A raster, or polygons.
          classes: What their values mean.
          grid: Of the scene.
          scene: Its path, for messages.
          stack: Closes the file.

        Raises:
          InputError: The file is missing, broken, doesn't overlap the scene, or has no such field.
        """
        self.path, self.classes, self.crs = path, classes, grid.crs
        self._source: Any = None
        self._polygons: Any = None
        if path.suffix.lower() in VECTORS:
            polygons = _read_polygons(path).to_crs(grid.crs)
            check_overlap(path, grid.crs, polygons.total_bounds, grid, scene)
            if classes.field is None:
                codes = np.ones(len(polygons), np.int16)
            else:
                texts = _texts(polygons, classes.field, path)
                codes = np.array([classes.values.get(t, _NO_CLASS) for t in texts], np.int16)
            self._polygons, self._codes = polygons, codes
            return
        self._source = open_raster(path, stack)
        check_overlap(path, self._source.crs, self._source.bounds, grid, scene)
        check_unscaled(path, self._source)
        if np.dtype(self._source.dtypes[0]).kind not in "ui":
            kind = self._source.dtypes[0]
            raise InputError(f"{path} has type {kind}; a label raster holds integers")

    def over(self, grid: Affine, size: int) -> tuple[np.ndarray, int]:
        """Classes uint8 [size, size] of a chip, and how many pixels have a value of no class.

        Args:
          grid: The transform of the chip's pixels.
          size: Along its side.
        """
        if self._source is not None:
            return self._of_raster(grid, size)
        outside = 0 if self.classes.field is None else UNLABELLED
        mask = np.full((size, size), outside, np.int16)
        near = self._polygons.sindex.query(box(*bounds_of(grid, size)))
        near = np.sort(near)  # where polygons overlap, the later one counts
        if len(near):
            shapes = zip(self._polygons.geometry.iloc[near], self._codes[near], strict=True)
            rasterize(((shape, int(code)) for shape, code in shapes), out=mask, transform=grid)
        without = mask == _NO_CLASS
        mask[without] = UNLABELLED
        return mask.astype(np.uint8), int(without.sum())

    def _of_raster(self, grid, size):
        cover = np.full((size, size), _OUTSIDE, np.int64)
        with reading(self.path):
            place = self._place(grid, size)
            if place is None:
                self._warp(grid, cover)
            else:
                self._copy(*place, cover)
        mask = np.full(cover.shape, self.classes.others, np.uint8)
        known = cover == _OUTSIDE
        for value, code in self.classes.values.items():
            where = cover == value
            mask[where] = code
            known |= where
        mask[cover == _OUTSIDE] = UNLABELLED
        unclassed = 0 if self.classes.others != UNLABELLED else int((~known).sum())
        return mask, unclassed

    def _place(self, grid: Affine, size: int) -> tuple[int, int] | None:
        """Row and column of a chip whose pixels are the raster's own; None of any other."""
        flags = self._source.mask_flag_enums[0]
        # Warping knows what a mask or an alpha band leaves out.
        masked = flags not in ([MaskFlags.all_valid], [MaskFlags.nodata])
        kind = self._source.dtypes[0]
        if self._source.crs != self.crs or masked or not np.can_cast(kind, np.int64):
            return None
        between = ~self._source.transform @ grid
        row, column = round(between.f), round(between.c)
        apart = np.subtract(between[:6], (1, 0, column, 0, 1, row)) * (size, size, 1, size, size, 1)
        return (row, column) if np.abs(apart).max() < _HAIR else None

    def _copy(self, row, column, cover):
        size = len(cover)
        top, left = max(row, 0), max(column, 0)
        bottom = min(row + size, self._source.height)
        right = min(column + size, self._source.width)
        if top >= bottom or left >= right:
            return
        found = self._source.read(1, window=Window(left, top, right - left, bottom - top))
        inside = cover[top - row : bottom - row, left - column : right - column]
        nodata = self._source.nodata
        np.copyto(inside, found, where=True if nodata is None else found != nodata)

    def _warp(self, grid, cover):
        warp.reproject(
            rasterio.band(self._source, 1),
            cover,
            dst_transform=grid,
            dst_crs=self.crs,
            src_nodata=self._source.nodata,
            dst_nodata=_OUTSIDE,
            resampling=Resampling.nearest,
        )


def _read_polygons(path):
    from elev_ssl_jax.data import vectors  # brings in geopandas, which rasters can do without

    return vectors.read_polygons(path)


def _texts(polygons, field, path):
    """The values of a field as texts, whole numbers without a fraction."""
    if field not in polygons or field == polygons.geometry.name:
        others = [name for name in polygons.columns if name != polygons.geometry.name]
        raise InputError(f"{path} has no field {field}; it has {', '.join(others) or 'none'}")

    def text(value):
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return str(value).strip()

    column = polygons[field]
    return [
        text(value) if known else "" for value, known in zip(column, column.notna(), strict=True)
    ]
