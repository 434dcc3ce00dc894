"""A scene: rasters of one or several sensors on one grid."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.enums import MaskFlags
from rasterio.windows import Window

from elev_ssl_jax.data.rasters import check_unscaled, open_raster, reading
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.storage import local_path

_ROWS, _COLUMNS = 512, 8192  # of a block, which bounds the memory
_BLANK = 0.01  # the share of pixels that are 0 without meaning no data, above which there is a word
_RESERVED = {  # other features, files of a part, and columns of a table
    *("elevation", "quantity", "mask", "label", "labels", "id", "scene", "tile", "block", "name"),
    *("counts", "known", "places"),
}

_PIXELS = 10**11  # of a scene: 3,000 km a side at 10 m

SensorFiles = Mapping[str, Sequence[Path]]  # the files of each sensor
Nodata = Mapping[str, float]  # by sensor; that under "" is for all


class Raster(NamedTuple):
    """An open file of a scene."""

    path: Path
    dataset: rasterio.DatasetReader


class Scene(NamedTuple):
    """Open rasters on one grid, in which the bands of each sensor follow one another."""

    sensors: dict[str, list[Raster]]
    nodata: Nodata  # instead of what the files declare

    @property
    def rasters(self) -> list[Raster]:
        """Of all sensors."""
        return [raster for rasters in self.sensors.values() for raster in rasters]

    @property
    def path(self) -> Path:
        """Of the first raster, by which the scene is called in messages."""
        return self.rasters[0].path

    @property
    def grid(self) -> rasterio.DatasetReader:
        """The first raster, which has the CRS, the transform and the size of all."""
        return self.rasters[0].dataset

    def bands(self, sensor: str) -> int:
        """Of a sensor."""
        return sum(raster.dataset.count for raster in self.sensors[sensor])

    def dtype(self, sensor: str) -> np.dtype:
        """Of a sensor's pixels in chips: uint16 or int16 where they hold them all, or float32."""
        types = [np.dtype(name) for r in self.sensors[sensor] for name in r.dataset.dtypes]
        fitting = [t for t in ("uint16", "int16") if all(np.can_cast(kind, t) for kind in types)]
        return np.dtype(fitting[0] if fitting else "float32")

    def nodata_of(self, sensor: str) -> float | None:
        """What a sensor's pixels without a value hold in chips; None where all have one.

        In float32 that is NaN; in integers what is declared, or the type's extreme.
        """
        dtype, declared = self.dtype(sensor), self._declared(sensor)
        if dtype.kind == "f":
            return math.nan
        if declared is not None:
            return declared
        flags = [f for r in self.sensors[sensor] for f in r.dataset.mask_flag_enums]
        if all(MaskFlags.all_valid in f for f in flags):
            return None
        return float(np.iinfo(dtype).max if dtype.kind == "u" else np.iinfo(dtype).min)

    def _declared(self, sensor):
        """The one value that all bands of a sensor have for none, if there is one."""
        if (given := _given(self.nodata, sensor)) is not None:
            return given
        values = {v for r in self.sensors[sensor] for v in r.dataset.nodatavals}
        (value,) = values if len(values) == 1 else (None,)
        return value if value is not None and np.isfinite(value) else None

    def read(self, window: Window) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Pixels [C, H, W] of each sensor in a window, and where all have values: bool [H, W].

        Raises:
          InputError: A file is truncated, or holds other than numbers.
        """
        pixels, valid = {}, []
        for name, rasters in self.sensors.items():
            parts = []
            for path, raster in rasters:
                with reading(path, f" at row {window.row_off}"):
                    parts.append(raster.read(window=window))
                    nodata = _given(self.nodata, name)
                    valid.append(_valid(raster, parts[-1], window, nodata))
                if parts[-1].dtype.kind not in "uif":
                    raise InputError(
                        f"{path} has type {parts[-1].dtype}; integers or floats are needed"
                    )
            pixels[name] = np.concatenate(parts)
        return pixels, np.logical_and.reduce(valid)

    def blank_share(self) -> float:
        """Which share of the pixels is 0 in all bands, and by all that is said has data there.

        Of a large scene 64 places are looked at.
        """
        blank = seen = 0
        for top in _places(self.grid.height):
            for left in _places(self.grid.width):
                size = min(_ROWS, self.grid.width - left), min(_ROWS, self.grid.height - top)
                pixels, valid = self.read(Window(left, top, *size))
                zero = np.logical_or.reduce([(p == 0).all(axis=0) for p in pixels.values()])
                blank += (zero & valid).sum()
                seen += valid.size
        return float(blank / seen)

    def sample(
        self, longest: int, first: int = 0, after: int | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """As `read`, of every so many-th pixel, so that no side has more than `longest`.

        Of the rows from `first` to before `after`, or to the last.
        """
        height, width = self.grid.shape
        after = height if after is None else after
        step = math.ceil(max(after - first, width) / longest)
        rows = []
        # By blocks: GDAL, asked for fewer pixels, may decode a tile again for each row of them.
        for top in range(first, after, _ROWS):
            blocks = []
            for left in range(0, width, _COLUMNS):
                size = min(_COLUMNS, width - left), min(_ROWS, after - top)
                pixels, valid = self.read(Window(left, top, *size))
                every = slice((first - top) % step, None, step), slice(-left % step, None, step)
                parts = {name: part[:, *every] for name, part in pixels.items()}
                blocks.append({**parts, "": valid[every]})
            rows.append({n: np.concatenate([b[n] for b in blocks], axis=-1) for n in blocks[0]})
        whole = {n: np.concatenate([row[n] for row in rows], axis=-2) for n in rows[0]}
        return whole, whole.pop("")


def parse_images(groups: Sequence[Sequence[str]]) -> dict[str, list[Path]]:
    """The files of each sensor from `--image` arguments: FILE ..., or NAME=FILE ... for several.

    Raises:
      InputError: A sensor has no name, a reserved one, or one that is there already.
    """
    images: dict[str, list[Path]] = {}
    for group in groups:
        match = re.fullmatch(r"(\w+)=(.*)", group[0])
        name, first = (
            ("image", group[0]) if not match or Path(group[0]).exists() else match.groups()
        )
        check_name(name, images)
        images[name] = [local_path(file) for file in (first, *group[1:])]
    return images


def check_name(name: str, others: Mapping[str, object]) -> None:
    """Raises `InputError` if a sensor can't have a name beside others."""
    if name in others:
        raise InputError(
            f"the sensor {name} is given twice; name each of several: --image s2=a.tif --image "
            "s1=b.tif"
        )
    if not name.isidentifier() or name in _RESERVED:
        raise InputError(f"{name!r} can't be the name of a sensor; use another, like s2")


def parse_nodata(values: Sequence[str], sensors: Sequence[str]) -> dict[str, float]:
    """`--nodata` arguments: a number for all sensors, or NAME=number.

    Raises:
      InputError: There is no such sensor, or it is no number.
    """
    nodata = {}
    for value in values:
        name, _, number = value.rpartition("=")
        if name and name not in sensors:
            raise InputError(f"--nodata {value}: there is no sensor {name}")
        try:
            nodata[name] = float(number)
        except ValueError as error:
            raise InputError(f"--nodata {value}: {number!r} is no number") from error
    return nodata


def open_scene(images: SensorFiles, stack: ExitStack, nodata: Nodata | None = None) -> Scene:
    """Opens the rasters of a scene until `stack` closes.

    Args:
      images: The files of each sensor.
      stack: Closes them.
      nodata: The values that mean "no data", whatever the files say of it.

    Raises:
      InputError: As in `open_raster`, the files are not on one grid, their numbers have a scale or
        an offset, or they can't hold `nodata`.
    """
    opened = {
        name: [Raster(path, open_raster(path, stack)) for path in paths]
        for name, paths in images.items()
    }
    scene = Scene(opened, nodata or {})
    height, width = scene.grid.shape
    if height * width > _PIXELS:
        raise InputError(
            f"{scene.path} has {width:,} x {height:,} pixels, too many for one scene; cut it "
            "(gdal_translate -srcwin) and take the parts for scenes of their own"
        )
    for name, rasters in scene.sensors.items():
        for path, raster in rasters:
            if not _same_grid(scene.grid, raster):
                raise InputError(f"{path} is not on the grid of {scene.path}; resample it first")
            check_unscaled(path, raster)
            if (value := _given(scene.nodata, name)) is not None:
                _check_nodata(path, raster, value)
    return scene


def warn_of_blanks(scene: Scene) -> None:
    """Says so if much of a scene is 0, and nobody has said that it means no data."""
    # Who says what means no data knows.
    blank = 0.0 if scene.nodata else scene.blank_share()
    if blank > _BLANK:
        print(
            f"warning: {scene.path}: {blank:.0%} of the pixels are 0 in all bands, and the file "
            "doesn't say that this means no data; if it does, add --nodata 0",
            file=sys.stderr,
        )


def _given(nodata, sensor):
    return nodata.get(sensor, nodata.get(""))


def _places(length, count=8):
    """Where at most `count` blocks of `_ROWS` pixels begin, evenly over a length."""
    blocks = -(-length // _ROWS)
    return [i * _ROWS for i in sorted({j * (blocks - 1) // (count - 1) for j in range(count)})]


def _valid(raster, pixels, window, nodata):
    """Where bands [C, H, W] have values: bool [H, W]."""
    valid = np.isfinite(pixels)
    if nodata is not None:
        return (valid & (pixels != nodata)).all(axis=0)
    only_nodata = all(flags == [MaskFlags.nodata] for flags in raster.mask_flag_enums)
    if only_nodata and pixels.dtype.kind in "ui":
        # As `read_masks` has it, which would read the pixels again.
        for band, nodata in enumerate(raster.nodatavals):
            valid[band] &= pixels[band] != nodata
    elif any(MaskFlags.all_valid not in flags for flags in raster.mask_flag_enums):
        valid &= raster.read_masks(window=window) > 0
    return valid.all(axis=0)


def _same_grid(grid, other):
    """Whether two rasters have one CRS and size, and corners within a thousandth of a pixel."""
    if grid.crs != other.crs or grid.shape != other.shape:
        return False
    columns, rows = np.array([0, grid.width] * 2), np.array([0, 0, grid.height, grid.height])
    apart = ~grid.transform @ (other.transform @ (columns, rows))
    return bool(np.allclose(apart, (columns, rows), rtol=0, atol=1e-3))


def _check_nodata(path, raster, nodata):
    for name in raster.dtypes:
        if np.dtype(name).kind in "ui":
            limits = np.iinfo(name)
            if not (limits.min <= nodata <= limits.max and nodata == math.floor(nodata)):
                raise InputError(f"--nodata is {nodata:g}, which {path} ({name}) can't hold")
