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

import numpy as np
import rasterio
from rasterio import warp
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.windows import Window
from shapely.geometry import box
from tqdm import tqdm

from elev_ssl_jax import files
from elev_ssl_jax.data import layout, vectors
from elev_ssl_jax.data.rasters import LARGEST, check_unscaled, open_raster, read_heights
from elev_ssl_jax.data.scene import open_scene
from elev_ssl_jax.errors import InputError, reported

LARGEST_BLOCK = 500  # pixels, of the default


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
    block: int | None = None,
    tile: str | None = None,
    nodata: float | None = None,
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
      block: Side in pixels of the spatial blocks, the second part of a chip's path; by default a
        fifth of the scene's shorter side, but at least a chip and at most `LARGEST_BLOCK`.
      tile: First part of the path; the first image's name by default.
      nodata: The value of the images that means "no data", whatever they say of it.
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
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    if max(size, elevation_size) > LARGEST:
        raise InputError(f"--size and --elevation-size are at most {LARGEST}")
    tile = re.sub(r"[^\w-]+", "_", tile or images[0].stem)
    with ExitStack() as stack:
        rasters = open_scene(images, stack, nodata)
        scene = rasters.grid
        if min(scene.shape) < size:
            raise InputError(f"{images[0]} is {scene.shape}, smaller than one chip (--size {size})")
        if block is None:
            block = max(size, min(LARGEST_BLOCK, min(scene.shape) // 5))
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
    left, bottom, right, top = warp.transform_bounds(scene.crs, crs, *scene.bounds)
    turns = (-360, 0, 360) if crs.is_geographic else (0,)
    if left > right and crs.is_geographic:  # across 180 degrees
        right += 360
    ground = box(*bounds)
    if not any(box(left + turn, bottom, right + turn, top).intersects(ground) for turn in turns):
        raise InputError(f"{path} doesn't overlap {scene_path}; check both files' CRS and extent")


def _elevation(path, dem, grid, size, elevation_size, crs):
    """The DEM over a chip's ground: float32 [elevation_size, elevation_size], NaN where missing."""
    elevation = np.full((elevation_size, elevation_size), np.nan, np.float32)
    cells = grid @ Affine.scale(size / elevation_size)
    try:
        for window in _windows(dem, cells, elevation_size, crs):
            # Of a far finer DEM a part of the cells will do: 8 along the side of one of ours.
            step = max(1, int(min(window.width, window.height) / elevation_size / 8)) | 1
            # Voids are taken out first: warping would blend those that aren't declared.
            heights = read_heights(path, dem, window, step)
            if np.isnan(heights).all():
                continue
            part = np.full_like(elevation, np.nan)
            warp.reproject(
                heights,
                part,
                src_transform=dem.transform
                @ Affine.translation(window.col_off, window.row_off)
                @ Affine.scale(step),
                src_crs=dem.crs,
                src_nodata=math.nan,
                dst_transform=cells,
                dst_crs=crs,
                dst_nodata=math.nan,
                resampling=Resampling.bilinear,
            )
            elevation = np.where(np.isnan(elevation), part, elevation)
    except rasterio.errors.RasterioError as error:
        raise InputError(f"{path} can't be read; is it truncated?") from error
    return elevation


def _windows(dem, cells, count, crs):
    """The windows of a DEM that hold a chip's ground of `count` x `count` cells, and some around.

    There are several where the chip lies across a meridian at which the DEM begins and ends.
    """
    places = np.linspace(0, count, 17)
    xs, ys = cells @ tuple(part.ravel() for part in np.meshgrid(places, places))
    xs, ys = map(np.array, warp.transform(crs, dem.crs, xs.tolist(), ys.tolist()))
    found = np.isfinite(xs) & np.isfinite(ys)
    if not found.any():
        return
    xs, ys = xs[found], ys[found]
    turns = [0]
    if dem.crs.is_geographic:
        middle = xs[len(xs) // 2]
        xs = middle + (xs - middle + 180) % 360 - 180
        if np.ptp(xs) > 180:  # around a pole
            xs = np.append(xs, [middle - 180, middle + 180])
            ys = np.append(ys, [math.copysign(90, ys[0])] * 2)
        turns = [-720, -360, 0, 360, 720]
    for turn in turns:
        columns, rows = ~dem.transform @ (xs + turn, ys)
        ends = []
        for values, length in ((columns, dem.width), (rows, dem.height)):
            extent = np.ptp(values)
            # What bilinear weights reach, and the bend between the places above.
            margin = 2 + 2 * extent / count + extent / 16
            first = max(0, math.floor(values.min() - margin))
            ends += [first, min(length, math.ceil(values.max() + margin)) - first]
        column, width, row, height = ends
        if width > 0 and height > 0:
            yield Window(column, row, width, height)


def _open_labels(path, values, scene, scene_path, stack):
    """A function of a chip's grid and size that returns its mask in the reference's values."""
    if path is None:
        return lambda grid, size: np.full((size, size), layout.UNLABELLED, np.uint8)

    if path.suffix.lower() in vectors.SUFFIXES:
        polygons = vectors.read_polygons(path).to_crs(scene.crs)
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
    check_unscaled(path, source)
    if np.dtype(source.dtypes[0]).kind not in "ui":
        raise InputError(f"{path} has type {source.dtypes[0]}; a label raster holds integers")

    def from_raster(grid, size):
        # A type and a value for nodata that no raster of classes has.
        outside = np.iinfo(np.int32).min
        cover = np.full((size, size), outside, np.int32)
        try:
            warp.reproject(
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
        "crs": name if (name := crs.to_string()).startswith("EPSG:") else crs.to_wkt(),
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
        "--block",
        type=int,
        help="pixels along a spatial block's side (default: a fifth of the scene's shorter side, "
        f"at least --size, at most {LARGEST_BLOCK})",
    )
    parser.add_argument(
        "--nodata", type=float, help="image value that means no data, whatever the files say"
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
