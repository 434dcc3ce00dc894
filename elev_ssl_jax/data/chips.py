r"""Cuts a scene, a DEM and labels into chips.

python -m elev_ssl_jax.data.chips --image R.tif G.tif B.tif --elevation dem.tif \
    --labels cover.tif --label-values 4 --size 100 --stride 50 --elevation-size 33 --out CHIPS
"""

import argparse
import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import geopandas
import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.warp import reproject, transform_bounds
from rasterio.windows import Window
from shapely.geometry import box
from tqdm import tqdm

from elev_ssl_jax import files
from elev_ssl_jax.data import layout
from elev_ssl_jax.data.scene import open_raster, open_scene
from elev_ssl_jax.errors import InputError, reported

VECTOR_SUFFIXES = {".gpkg", ".shp", ".geojson", ".json", ".fgb"}


class Counts(NamedTuple):
    """How many chips were kept, dropped (image nodata), and kept with elevation missing."""

    kept: int
    dropped: int
    incomplete: int


def cut(
    images: Sequence[Path],
    elevation: Path,
    labels: Path | None,
    folder: Path,
    *,
    label_values: Sequence[int] = (1,),
    size: int = 100,
    stride: int | None = None,
    elevation_size: int = 33,
    block: int = 500,
    tile: str | None = None,
    progress: bool = True,
) -> tuple[list[dict], Counts]:
    """Cuts one scene into `folder`, in the reference layout, and returns its metadata rows.

    Args:
      images: Rasters on one grid; their bands follow one another in this order.
      elevation: A DEM in metres, on any grid; resampled (bilinear) to each chip.
      labels: A class raster on any grid (nearest), or polygons (inside is class 1), or None.
      folder: Where the chips go.
      label_values: Values of a label raster that are class 1.
      size: Side of a chip in pixels.
      stride: Pixels from chip to chip; `size` by default, so that chips don't overlap.
      elevation_size: Cells along the side of a chip's elevation, over the same ground.
      block: Side in pixels of the spatial blocks, the second part of a chip's path.
      tile: First part of the path; the first image's name by default.
      progress: Whether to show a bar.

    Raises:
      InputError: A file is missing or broken, has no CRS, doesn't overlap, or no chip is left.
    """
    stride = size if stride is None else stride
    for name, value in (
        ("--size", size),
        ("--stride", stride),
        ("--elevation-size", elevation_size),
        ("--block", block),
    ):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    tile = re.sub(r"[^\w-]+", "_", tile or images[0].stem)
    with ExitStack() as stack:
        rasters = open_scene(images, stack)
        scene = rasters.grid
        if min(scene.shape) < size:
            raise InputError(f"{images[0]} is {scene.shape}, smaller than one chip (--size {size})")
        dem = open_raster(elevation, stack)
        _check_overlap(elevation, dem.crs, dem.bounds, scene, images[0])
        classes = _open_labels(labels, label_values, scene, images[0], stack)

        rows, dropped, incomplete, with_elevation = [], 0, 0, 0
        tops = range(0, scene.height - size + 1, stride)
        lefts = range(0, scene.width - size + 1, stride)
        count = len(tops) * len(lefts)
        bar = stack.enter_context(tqdm(total=count, desc=tile, unit=" chips", disable=not progress))
        for top in tops:
            strip, valid = rasters.read(Window(0, top, scene.width, size))
            for left in lefts:
                bar.update()
                columns = slice(left, left + size)
                if not valid[:, columns].all():
                    dropped += 1
                    continue
                grid = scene.transform @ Affine.translation(left, top)
                heights = _elevation(elevation, dem, grid, size, elevation_size, scene.crs)
                missing = np.isnan(heights)
                incomplete += bool(missing.any())
                with_elevation += not missing.all()
                mask = classes(grid, size)
                where = f"{tile}/{tile}_{top // block}_{left // block}/({top}, {left})"
                image = strip[:, :, columns]
                _write(folder, where, image, heights, mask, grid, scene.crs)
                rows.append(_row(f"{tile}_{top}_{left}", where, mask, grid, scene.crs))
    if not rows:
        raise InputError(f"{images[0]}: every chip has nodata; nothing is left")
    if not with_elevation:
        raise InputError(f"{elevation} has no elevation under any chip of {images[0]}")
    return rows, Counts(len(rows), dropped, incomplete)


def _check_overlap(path, crs, bounds, scene, scene_path):
    # The scene goes to the other's CRS: a DEM of the whole globe has no place in the scene's.
    if not box(*transform_bounds(scene.crs, crs, *scene.bounds)).intersects(box(*bounds)):
        raise InputError(f"{path} doesn't overlap {scene_path}; check both files' CRS and extent")


def _elevation(path, dem, grid, size, elevation_size, crs):
    """The DEM over a chip's ground: float32 [elevation_size, elevation_size], NaN outside it."""
    heights = np.full((elevation_size, elevation_size), np.nan, np.float32)
    try:
        reproject(
            rasterio.band(dem, 1),
            heights,
            dst_transform=grid @ Affine.scale(size / elevation_size),
            dst_crs=crs,
            src_nodata=dem.nodata,
            dst_nodata=math.nan,
            resampling=Resampling.bilinear,
        )
    except rasterio.errors.RasterioError as error:
        raise InputError(f"{path} can't be read; is it truncated?") from error
    return heights


def _open_labels(path, values, scene, scene_path, stack):
    """A function of a chip's grid and size that returns its mask in the reference's values."""
    if path is None:
        return lambda grid, size: np.full((size, size), layout.UNLABELLED, np.uint8)

    if path.suffix.lower() in VECTOR_SUFFIXES:
        if not path.is_file():
            raise InputError(f"{path} not found")
        try:
            polygons = geopandas.read_file(path)
        except Exception as error:  # pyogrio and fiona each have their own
            raise InputError(f"{path} can't be read as polygons: {error}") from error
        if polygons.crs is None:
            raise InputError(f"{path} has no CRS; assign one")
        polygons = polygons[polygons.geometry.notna()].to_crs(scene.crs)
        if polygons.empty or not polygons.geom_type.isin(["Polygon", "MultiPolygon"]).all():
            raise InputError(f"{path} must hold polygons and nothing else")
        _check_overlap(path, scene.crs, polygons.total_bounds, scene, scene_path)

        def from_polygons(grid, size):
            near = polygons.sindex.query(box(*_bounds(grid, size)))
            mask = np.full((size, size), layout.NON_AGRICULTURAL, np.uint8)
            if len(near):
                shapes = polygons.geometry.iloc[near]
                rasterize(
                    shapes, out=mask, transform=grid, default_value=layout.AGRICULTURAL_FRONTIER
                )
            return mask

        return from_polygons

    source = open_raster(path, stack)
    _check_overlap(path, source.crs, source.bounds, scene, scene_path)
    if np.dtype(source.dtypes[0]).kind not in "ui":
        raise InputError(f"{path} has type {source.dtypes[0]}; a label raster holds integers")

    def from_raster(grid, size):
        # A type and a value for nodata that no raster of classes has.
        outside = np.iinfo(np.int32).min
        cover = np.full((size, size), outside, np.int32)
        try:
            reproject(
                rasterio.band(source, 1),
                cover,
                dst_transform=grid,
                dst_crs=scene.crs,
                src_nodata=source.nodata,
                dst_nodata=outside,
                resampling=Resampling.nearest,
            )
        except rasterio.errors.RasterioError as error:
            raise InputError(f"{path} can't be read; is it truncated?") from error
        mask = np.where(
            np.isin(cover, values), layout.AGRICULTURAL_FRONTIER, layout.NON_AGRICULTURAL
        ).astype(np.uint8)
        mask[cover == outside] = layout.UNLABELLED
        return mask

    return from_raster


def _bounds(grid, size):
    """left, bottom, right, top of a chip (the grid may be turned or upside down)."""
    corners = [grid @ corner for corner in ((0, 0), (size, 0), (0, size), (size, size))]
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _write(folder, path, image, heights, mask, grid, crs):
    target = folder / layout.IMAGES / path
    target.mkdir(parents=True)
    np.save(target / "chip.npy", image)
    cells = grid @ Affine.scale(mask.shape[0] / heights.shape[0])
    for top, name, array, transform, nodata in (
        (layout.ELEVATIONS, "elevation.tif", heights, cells, math.nan),
        (layout.MASKS, "mask.tif", mask, grid, layout.UNLABELLED),
    ):
        target = folder / top / path
        target.mkdir(parents=True)
        with rasterio.open(
            target / name,
            "w",
            driver="GTiff",
            height=array.shape[0],
            width=array.shape[1],
            count=1,
            dtype=array.dtype,
            crs=crs,
            transform=transform,
            nodata=nodata,
        ) as sink:
            sink.write(array, 1)


def _row(chip_id, path, mask, grid, crs):
    """The chip's line of metadata.csv."""
    bounds = _bounds(grid, mask.shape[0])
    pixel_km2 = abs(grid.determinant) / 1e6
    if crs.is_geographic:  # degrees: 111.32 km each, less towards the poles along parallels
        latitude = math.radians((bounds[1] + bounds[3]) / 2)
        pixel_km2 = abs(grid.determinant) * 111.32**2 * math.cos(latitude)
    else:
        pixel_km2 *= crs.linear_units_factor[1] ** 2
    row = {
        "Id": chip_id,
        "Elevation": f"{path}/elevation.tif",
        "Image": f"{path}/chip.npy",
        "Mask": f"{path}/mask.tif",
        **dict(zip(layout.BOUNDS, bounds, strict=True)),
        "crs": crs.to_string(),
    }
    for name, value in (
        ("non_agricultural", layout.NON_AGRICULTURAL),
        ("legal_exclusions", layout.LEGAL_EXCLUSIONS),
        ("agricultural_frontier", layout.AGRICULTURAL_FRONTIER),
    ):
        pixels = int((mask == value).sum())
        row[f"{name}(km2)"] = pixels * pixel_km2
        row[name] = pixels / mask.size
    return row


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, nargs="+", required=True, help="GeoTIFFs on one grid")
    parser.add_argument("--elevation", type=Path, required=True, help="DEM in metres, any grid")
    parser.add_argument("--labels", type=Path, help="class raster or polygons; may be left out")
    parser.add_argument(
        "--label-values", type=int, nargs="+", default=[1], help="raster values of class 1"
    )
    parser.add_argument("--size", type=int, default=100, help="pixels along a chip's side")
    parser.add_argument("--stride", type=int, help="pixels from chip to chip (default: --size)")
    parser.add_argument("--elevation-size", type=int, default=33, help="elevation cells a side")
    parser.add_argument(
        "--block", type=int, default=500, help="pixels along a spatial block's side"
    )
    parser.add_argument("--tile", help="name of the scene (default: the first image's)")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    args = vars(parser.parse_args())
    images, elevation, labels, out = (args.pop(k) for k in ("image", "elevation", "labels", "out"))
    with reported():
        with files.new_folder(out) as folder:
            rows, counts = cut(images, elevation, labels, folder, **args)
            layout.write_metadata(folder, rows)
        print(
            f"{out}: {counts.kept} chips kept, {counts.dropped} dropped for image nodata; "
            f"{counts.incomplete} of those kept are incomplete (elevation missing in part)"
        )


if __name__ == "__main__":
    main()
