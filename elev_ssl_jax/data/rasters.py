"""Rasters, opened by named drivers, so that no file can make the program read another.

Left to itself, GDAL takes a text file for a list of other files and of addresses in the network,
whatever the file is called.
"""

import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.windows import Window

from elev_ssl_jax.errors import InputError
from elev_ssl_jax.files import check_regular
from elev_ssl_jax.storage import is_remote_raster

# What GDAL warns of in a damaged file stands beside the error that it ends in.
logging.getLogger("rasterio._env").setLevel(logging.ERROR)

# Each reads the file, and headers of the same name beside it. HDF5 and netCDF are not among them:
# such a file may keep its numbers in any other file.
DRIVERS = (
    "GTiff",
    "JP2OpenJPEG",
    "HFA",
    "ENVI",
    "EHdr",
    "AAIGrid",
    "SRTMHGT",
    "DTED",
    "USGSDEM",
    "PNG",
    "JPEG",
)
LARGEST = 4096  # pixels or cells along a chip's side
_SMALLEST = 1e-12  # side of a pixel, in whatever unit
_BLOCK = 2**26  # bytes that GDAL may unpack at once for a chip's raster
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIGHTS = -1000, 9000  # metres between which all ground lies
_VOIDS = (-999, -9999, -32768)  # what SRTM and its kin hold where they know nothing
_WKT = re.compile(
    r"(PROJ|GEOG|GEOD|GEOC|COMPD_|COMPOUND|LOCAL_|ENG|VERT_?)"
    r"(ETIC|RAPHIC|INEERING)?(CRS|CS)\s*\[",
    re.IGNORECASE,
)


@contextmanager
def reading(path: Path, where: str = "") -> Iterator[None]:
    """Names the raster that can't be read within, and the place in it.

    Raises:
      InputError: GDAL's errors don't name it.
    """
    try:
        yield
    except rasterio.errors.RasterioError as error:
        raise InputError(f"{path} can't be read{where}; is it truncated?") from error


def open_raster(path: Path, stack: ExitStack) -> rasterio.DatasetReader:
    """Opens a raster of the user's own until `stack` closes.

    A file named .vrt may refer to others of this machine: the user's own scene may be a mosaic.

    Raises:
      InputError: It is missing, no raster of one of `DRIVERS`, refers to other folders, or has no
        CRS; or a .vrt lies in a bucket or refers to one.
    """
    if path.suffix.lower() == ".vrt":
        _check_mosaic(path)
        source = stack.enter_context(_open(path, ("VRT",)))
    else:
        source = stack.enter_context(_open_alone(path))
    if source.crs is None:
        raise InputError(f"{path} has no CRS; assign one (gdal_edit.py -a_srs EPSG:... {path})")
    _check_grids(source.crs.to_wkt(), str(path))
    if not (source.crs.is_geographic or source.crs.is_projected):
        raise InputError(f"{path} has a local coordinate system, whose place on Earth isn't known")
    if not 0 < abs(source.transform.determinant) < math.inf or min(source.res) < _SMALLEST:
        raise InputError(f"{path} has a grid of no size (transform {source.transform[:6]})")
    return source


def _open_alone(path):
    """A raster that is one file, and headers of the same name."""
    check_regular(path)
    _check_beside(path)
    source = _open(path, DRIVERS)
    folder = path.absolute().parent
    if "OVERVIEW_FILE" in source.tags(ns="OVERVIEWS") or any(
        Path(file).parent != folder for file in source.files
    ):
        source.close()
        raise InputError(f"{path} refers to files elsewhere; write it as one GeoTIFF")
    return source


def _open(path, drivers):
    """The raster, by the first driver that takes it."""
    first = None
    for driver in drivers:
        try:
            # An absolute path: a name may begin with what GDAL takes for an instruction.
            if not is_remote_raster(path):
                return rasterio.open(path.absolute(), driver=driver)
            # What lies beside it would be one request more for each name that GDAL knows.
            with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
                return rasterio.open(path, driver=driver)
        except rasterio.errors.RasterioError as error:
            first = first or error
    raise InputError(f"{path} is not a readable raster: {first}") from first


def _check_mosaic(path, above=()):
    """A mosaic's files are read because it names them, which is no reason to ask in the network.

    Each must be what the user could have named: GDAL would take it for whatever it is.
    """
    if is_remote_raster(path):
        raise InputError(f"{path} is a mosaic in a bucket; name its files, or mount the bucket")
    check_regular(path)
    _check_beside(path)
    above = (*above, path.resolve())
    try:  # as GDAL does, whatever encoding the file says it has
        root = ElementTree.fromstring(path.read_text(encoding="utf-8-sig"))
    except (ElementTree.ParseError, ValueError, OSError) as error:
        raise InputError(f"{path} is not a readable raster: {error}") from error
    for text in _texts(root):
        if re.search("/vsi|://", text):
            raise InputError(
                f"{path} names {text.strip()[:200]}, and a mosaic is of files of this machine; "
                "name its files to the command themselves, mount the bucket or unpack the archive"
            )
    for name in _sources(root):
        found = {file.resolve() for file in (Path(name), path.parent / name) if file.exists()}
        if not found:
            raise InputError(f"{path} names {name}, which is not there")
        for file in found:
            if file.suffix.lower() != ".vrt":
                _open_alone(file).close()
            elif file in above:
                raise InputError(f"{path} names itself, or a mosaic that does")
            else:
                _check_mosaic(file, above)


def _texts(element):
    """All texts of a mosaic but what is said about it, such as where it was downloaded."""
    if element.tag.lower() == "metadata" and not element.attrib:
        return
    yield element.text or ""
    yield from element.attrib.values()
    for child in element:
        yield from _texts(child)


def _sources(root):
    """The names of a mosaic's files; to GDAL an attribute is as good as an element."""
    for element in root.iter():
        for tag, text in ((element.tag, element.text), *element.attrib.items()):
            if tag.lower() in ("sourcefilename", "sourcedataset") and text:
                yield text


def _check_beside(path):
    """Overviews and masks in files of their own, which GDAL opens by any driver."""
    if is_remote_raster(path):  # it is opened without them
        return
    for suffix in (".ovr", ".msk"):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            check_regular(beside)
            with beside.open("rb") as file:
                if file.read(4) not in _TIFF:
                    raise InputError(f"{beside} is not a TIFF file; delete it or write it again")


@contextmanager
def open_chip(path: Path, why: str = "") -> Iterator[rasterio.DatasetReader]:
    """A GeoTIFF of a folder of chips, whose open and read errors are told as ours.

    Nothing beside the file is looked at.

    Args:
      path: The file.
      why: What to add if it is not there.

    Raises:
      InputError: The file is missing, no GeoTIFF, broken, or would take much memory.
    """
    check_regular(path, why)
    try:
        with (
            warnings.catch_warnings(),
            rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),
        ):
            # The reference files lie by their folders' names, not all by a geotransform.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path.absolute(), driver="GTiff") as source:
                block = max(map(np.prod, source.block_shapes)) * source.count
                if block * np.dtype(source.dtypes[0]).itemsize > _BLOCK:
                    raise InputError(f"{path} has blocks too large for a chip; write it again")
                yield source
    except rasterio.errors.RasterioError as error:
        raise InputError(
            f"{path} is truncated or not a readable GeoTIFF; write it again"
        ) from error


def check_unscaled(path: Path, source: rasterio.DatasetReader) -> None:
    """Raises `InputError` if the numbers in the file aren't what they stand for."""
    for scale, offset in zip(source.scales, source.offsets, strict=True):
        if (scale, offset) != (1, 0):
            raise InputError(
                f"{path} has a scale and an offset ({scale:g}, {offset:g}): apply them with "
                f"`gdal_translate -unscale -ot Float32 {path} OUT.tif`, or, if the numbers as "
                f"stored are meant, remove them with `gdal_edit.py -unsetscale -unsetoffset {path}`"
            )


def read_values(
    path: Path,
    source: rasterio.DatasetReader,
    window: Window | None = None,
    step: int = 1,
    *,
    heights: bool = True,
) -> np.ndarray:
    """Numbers of a raster's first band: float32 [H, W], NaN where missing.

    Scale and offset are applied. Missing is nodata and what isn't finite; of heights, in metres,
    what no place on Earth has, too: voids are often stored as -32768 or -9999 without being
    declared.

    Args:
      path: The file, for messages.
      source: The raster.
      window: What to read; everything by default.
      step: Take the middle of each `step` x `step` cells alone; odd.
      heights: Whether they are.

    Raises:
      InputError: The raster holds other than numbers.
    """
    if np.dtype(source.dtypes[0]).kind not in "uif":
        raise InputError(f"{path} has type {source.dtypes[0]}; integers or floats are needed")
    scale, offset = source.scales[0], source.offsets[0]
    if not (np.isfinite(scale) and np.isfinite(offset) and scale != 0):
        raise InputError(f"{path} has a scale of {scale:g} and an offset of {offset:g}")
    window = Window(0, 0, source.width, source.height) if window is None else window
    column, row, width, height = (int(value) for value in window.flatten())
    lines = max(step, 2**22 // max(width, 1) // step * step)  # read at a time
    parts = []
    for top in range(0, height, lines):
        part = Window(column, row + top, width, min(lines, height - top))
        every = slice(step // 2, None, step)
        stored = source.read(1, window=part)[every, every]
        missing = source.read_masks(1, window=part)[every, every] == 0
        values = stored.astype(np.float64)
        if heights:
            missing |= np.isin(values, _VOIDS)
        values = values * scale + offset
        low, high = _HEIGHTS if heights else (-np.inf, np.inf)
        with np.errstate(invalid="ignore"):
            missing |= ~((values > low) & (values < high))
        values[missing] = np.nan
        parts.append(values.astype(np.float32))
    return np.concatenate(parts)


def parse_crs(text: str, where: str) -> CRS:
    """The coordinate system that a text names: EPSG:n or WKT, nothing that would be opened.

    Args:
      text: The name.
      where: The file and the row, for messages.

    Raises:
      InputError: It is something else (a URL, a path, a PROJ string), or there is no such system.
    """
    text = text.strip()
    try:
        with rasterio.Env():  # else GDAL prints its errors
            if match := re.fullmatch(r"(EPSG|ESRI|OGC):(\w+)", text, re.IGNORECASE):
                return CRS.from_string(f"{match[1].upper()}:{match[2]}")
            if _WKT.match(text):
                _check_grids(text, where)
                return CRS.from_wkt(text)
    except rasterio.errors.CRSError as error:
        raise InputError(f"{where} has an unknown crs: {text[:80]!r}") from error
    raise InputError(f"{where} has the crs {text[:80]!r}; write EPSG:n or WKT")


def _check_grids(wkt, where):
    """Refuses coordinate systems that have PROJ open a file of their choice."""
    if re.search(r"grids=(?!@null)|PARAMETERFILE", wkt, re.IGNORECASE):
        raise InputError(f"{where} has a coordinate system with grid files; use a plain one")
