import signal
import subprocess
import sys
import time

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.transform import from_bounds, from_origin
from rasterio.warp import transform, transform_bounds
from shapely.geometry import box

from elev_ssl_jax.data import chips, layout
from elev_ssl_jax.errors import InputError

UTM, LEFT, TOP, SIDE = "EPSG:32618", 500_000, 800_000, 60  # a scene of 60 x 60 pixels of 10 m
SMALL = {"size": 20, "elevation_size": 7, "progress": False}


def write(path, array, transform, crs=UTM, nodata=None):
    array = array if array.ndim == 3 else array[None]
    shape = {"count": array.shape[0], "height": array.shape[1], "width": array.shape[2]}
    profile = {"dtype": array.dtype, "transform": transform, "crs": crs, "nodata": nodata}
    with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as sink:
        sink.write(array)
    return path


def plane(x, y):
    """Elevation in metres at a place in UTM."""
    return 1000 + (x - LEFT) / 2 + (TOP - y) / 5


@pytest.fixture
def scene(tmp_path, rng):
    """Three bands in one file and in three, a DEM in degrees, labels on a grid of their own."""
    grid = from_origin(LEFT, TOP, 10, 10)
    bands = rng.integers(1, 9000, (3, SIDE, SIDE)).astype(np.uint16)
    paths = {"image": write(tmp_path / "image.tif", bands, grid, nodata=0)}
    for i, name in enumerate(("red", "green", "blue")):
        paths[name] = write(tmp_path / f"{name}.tif", bands[i], grid, nodata=0)
    # The DEM ends 50 m short of the scene's right edge.
    bounds = transform_bounds(UTM, "EPSG:4326", LEFT - 300, TOP - 900, LEFT + 550, TOP + 300)
    dem_grid = from_bounds(*bounds, 60, 80)
    columns, rows = np.meshgrid(np.arange(60) + 0.5, np.arange(80) + 0.5)
    longitude, latitude = dem_grid @ (columns, rows)
    x, y = transform("EPSG:4326", UTM, longitude.ravel(), latitude.ravel())
    heights = plane(np.array(x), np.array(y)).reshape(80, 60).astype(np.float32)
    paths["dem"] = write(tmp_path / "dem.tif", heights, dem_grid, "EPSG:4326", nodata=-9999)
    cover = np.repeat([[3, 4], [7, 255]], 15, 0).repeat(15, 1).astype(np.uint8)
    paths["cover"] = write(
        tmp_path / "cover.tif", cover, from_origin(LEFT, TOP, 20, 20), nodata=255
    )
    return {"bands": bands, "folder": tmp_path, **paths}


def cut(scene, labels="cover", image=("image",), dem="dem", **kwargs):
    out = scene["folder"] / "out"
    out.mkdir(exist_ok=True)
    images = [scene[name] for name in image]
    return out, *chips.cut(images, scene[dem], scene.get(labels), out, **SMALL, **kwargs)


def read(folder, row, kind):
    top = {"Elevation": layout.ELEVATIONS, "Mask": layout.MASKS}[kind]
    with rasterio.open(folder / top / row[kind]) as source:
        return source.read(1), source.transform, source.crs


def test_chips_are_windows_of_the_scene_in_the_reference_layout(scene):
    out, rows, counts = cut(scene, stride=10, block=30)
    assert counts.kept == len(rows) == 25
    assert counts.dropped == 0
    row = next(r for r in rows if r["Image"] == "image/image_1_0/(40, 20)/chip.npy")
    image = np.load(out / "Dataset" / row["Image"])
    np.testing.assert_array_equal(image, scene["bands"][:, 40:60, 20:40])
    assert (row["left"], row["top"]) == (LEFT + 200, TOP - 400)
    assert (row["right"], row["bottom"]) == (LEFT + 400, TOP - 600)
    assert row["crs"] == UTM
    assert row["non_agricultural(km2)"] + row["agricultural_frontier(km2)"] <= 0.04


def test_single_band_files_make_the_same_chips(scene):
    out, rows, _ = cut(scene, image=("red", "green", "blue"))
    image = np.load(out / "Dataset" / rows[4]["Image"])
    np.testing.assert_array_equal(image, scene["bands"][:, 20:40, 20:40])


def test_elevation_is_that_of_the_chips_ground_and_missing_outside_the_dem(scene):
    out, rows, counts = cut(scene)
    assert counts.incomplete == 3  # the right column
    for row in rows:
        heights, grid, crs = read(out, row, "Elevation")
        assert heights.shape == (7, 7)
        assert crs == UTM
        columns, lines = np.meshgrid(np.arange(7) + 0.5, np.arange(7) + 0.5)
        x, y = grid @ (columns, lines)
        outside = x > LEFT + 560
        inside = x < LEFT + 540
        assert np.isnan(heights[outside]).all()
        np.testing.assert_allclose(heights[inside], plane(x, y)[inside], atol=1.5)
        assert (grid.c, grid.f) == (row["left"], row["top"])


def test_label_raster_is_nearest_and_its_nodata_unlabelled(scene):
    out, rows, _ = cut(scene, label_values=(4, 7))
    masks = np.block([[read(out, rows[3 * i + j], "Mask")[0] for j in range(3)] for i in range(3)])
    expected = np.repeat([[0, 2], [2, 255]], 30, 0).repeat(30, 1)
    np.testing.assert_array_equal(masks, expected)
    assert rows[4]["agricultural_frontier"] == 0.5


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp"])
def test_polygons_are_class_1_inside(scene, suffix):
    polygon = box(LEFT + 100, TOP - 300, LEFT + 300, TOP)
    path = scene["folder"] / f"fields{suffix}"
    geopandas.GeoDataFrame(geometry=[polygon], crs=UTM).to_crs("EPSG:4326").to_file(path)
    scene["fields"] = path
    out, rows, _ = cut(scene, labels="fields")
    masks = np.block([[read(out, rows[3 * i + j], "Mask")[0] for j in range(3)] for i in range(3)])
    expected = np.zeros((60, 60))
    expected[:30, 10:30] = 2
    assert (masks != expected).mean() < 0.01  # the corners' way through degrees


def test_chips_with_nodata_are_dropped(scene):
    bands = scene["bands"].copy()
    bands[1, 25, 25] = 0
    write(scene["image"], bands, from_origin(LEFT, TOP, 10, 10), nodata=0)
    _, rows, counts = cut(scene)
    assert counts.dropped == 1
    assert "image_20_20" not in {r["Id"] for r in rows}


def test_labels_may_be_left_out(scene):
    out, rows, _ = cut(scene, labels="none")
    assert (read(out, rows[0], "Mask")[0] == layout.UNLABELLED).all()


def break_dem_crs(scene):
    write(scene["dem"], np.ones((5, 5), np.float32), from_origin(LEFT, TOP, 100, 100), crs=None)
    return "dem.tif has no CRS"


def break_dem_place(scene):
    write(scene["dem"], np.ones((5, 5), np.float32), from_origin(0, 0, 100, 100))
    return "dem.tif doesn't overlap"


def break_dem_values(scene):
    grid = from_origin(LEFT, TOP, 100, 100)
    write(scene["dem"], np.full((6, 6), -9999, np.float32), grid, nodata=-9999)
    return "dem.tif has no elevation"


def break_dem_file(scene):
    data = scene["dem"].read_bytes()
    scene["dem"].write_bytes(data[: len(data) // 2])
    return "dem.tif"


def break_image_file(scene):
    data = scene["image"].read_bytes()
    scene["image"].write_bytes(data[: len(data) // 2])
    return "image.tif"


def break_image_kind(scene):
    scene["image"].write_text("not a raster")
    return "image.tif is not a readable raster"


def break_image_missing(scene):
    scene["image"].unlink()
    return "image.tif not found"


def break_labels_place(scene):
    write(scene["cover"], np.ones((5, 5), np.uint8), from_origin(0, 0, 100, 100))
    return "cover.tif doesn't overlap"


def break_labels_type(scene):
    grid = from_origin(LEFT, TOP, 100, 100)
    write(scene["cover"], np.ones((5, 5), np.float32), grid)
    return "cover.tif has type float32"


@pytest.mark.parametrize(
    "break_it",
    [
        break_dem_crs,
        break_dem_place,
        break_dem_values,
        break_dem_file,
        break_image_file,
        break_image_kind,
        break_image_missing,
        break_labels_place,
        break_labels_type,
    ],
    ids=lambda f: f.__name__,
)
def test_bad_files_are_named(scene, break_it):
    message = break_it(scene)
    with pytest.raises(InputError, match=message):
        cut(scene)


def test_bands_on_other_grids_and_scenes_below_a_chip_are_refused(scene):
    write(scene["blue"], scene["bands"][0], from_origin(LEFT + 5, TOP, 10, 10))
    with pytest.raises(InputError, match=r"blue.tif is not on the grid of .*red.tif"):
        cut(scene, image=("red", "blue"))
    with pytest.raises(InputError, match="smaller than one chip"):
        chips.cut([scene["image"]], scene["dem"], None, scene["folder"], size=61)
    with pytest.raises(InputError, match="--stride is 0"):
        chips.cut([scene["image"]], scene["dem"], None, scene["folder"], size=20, stride=0)


def test_the_command_writes_all_or_nothing(scene):
    out = scene["folder"] / "chips"
    command = [sys.executable, "-m", "elev_ssl_jax.data.chips", "--image", scene["image"]]
    command += ["--elevation", scene["dem"], "--labels", scene["cover"], "--label-values", "4"]
    command += ["--size", "20", "--elevation-size", "7", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert "9 chips kept, 0 dropped" in done.stdout
    assert "3 of those kept are incomplete" in done.stdout
    metadata = pd.read_csv(out / "metadata.csv")
    assert list(metadata)[: len(layout.COLUMNS)] == layout.COLUMNS
    assert len(layout.read_metadata(out)) == 9

    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert "exists already" in again.stderr

    command[-1] = scene["folder"] / "broken"
    break_dem_file(scene)
    broken = subprocess.run(command, capture_output=True, text=True)
    assert broken.returncode == 2
    assert "Traceback" not in broken.stderr
    assert broken.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not list(scene["folder"].glob("broken*"))


def heights_of(out, row):
    return read(out, row, "Elevation")[0]


@pytest.mark.parametrize("nodata", [None, -32768])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_voids_are_missing_and_not_blended_whether_or_not_they_are_declared(scene, dtype, nodata):
    plain = np.full((40, 40), 1500, dtype)
    plain[8:14, 8:14] = -32768
    plain[20, 30] = -32768 if nodata else -9999
    plain[21:23, 30] = -999
    grid = from_origin(LEFT - 100, TOP + 100, 30, 30)
    write(scene["dem"], plain, grid, nodata=nodata)
    out, rows, counts = cut(scene)
    assert counts.incomplete
    seen = np.stack([heights_of(out, row) for row in rows])
    np.testing.assert_array_equal(seen[~np.isnan(seen)], 1500)
    for row in rows:
        heights, cells, _ = read(out, row, "Elevation")
        columns, lines = ~grid @ (
            cells @ tuple(np.meshgrid(np.arange(7) + 0.5, np.arange(7) + 0.5))
        )
        inside = (columns > 8) & (columns < 14) & (lines > 8) & (lines < 14)
        outside = (columns < 7) | (columns > 15) | (lines < 7) | (lines > 15)
        assert np.isnan(heights[inside]).all()
        elsewhere = outside & ~((abs(columns - 30.5) < 2) & (abs(lines - 21.5) < 3))
        assert not np.isnan(heights[elsewhere]).any()


def test_scale_and_offset_of_the_dem_are_applied(scene):
    write(
        scene["dem"], np.full((40, 40), 300, np.int16), from_origin(LEFT - 100, TOP + 100, 30, 30)
    )
    with rasterio.open(scene["dem"], "r+") as sink:
        sink.scales, sink.offsets = (0.5,), (1000.0,)
    out, rows, _ = cut(scene)
    np.testing.assert_array_equal(heights_of(out, rows[0]), 1150)


@pytest.mark.parametrize("name", ["image", "cover"])
def test_scale_and_offset_of_images_and_labels_are_refused(scene, name):
    with rasterio.open(scene[name], "r+") as sink:
        sink.offsets = (-1000.0,) * sink.count
    with pytest.raises(InputError, match=rf"{scene[name].name} has a scale.*-unscale"):
        cut(scene)


def test_black_ground_is_dropped_if_it_is_said_to_be_nodata(scene, capsys):
    bands = scene["bands"].copy()
    bands[:, :, :20] = 0
    write(scene["image"], bands, from_origin(LEFT, TOP, 10, 10))
    _, _, counts = cut(scene)
    assert counts.dropped == 0
    assert "image.tif: 33% of the pixels are 0" in capsys.readouterr().err
    _, counts = chips.cut(
        [scene["image"]], scene["dem"], None, scene["folder"] / "again", nodata=0, **SMALL
    )
    assert counts == (6, 3, 3)
    assert capsys.readouterr().err == ""


WAYS = {
    "from -180 to 180": (-180, 3600),
    "from 0 to 360": (0, 3600),
    "to 182": (178, 40),
    "from -182": (-182, 40),
}


@pytest.mark.parametrize("turned", [False, True], ids=["north-up", "south-up"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("crs", ["EPSG:32601", "EPSG:32760", "EPSG:4326"])
def test_a_dem_covers_chips_across_180_degrees_however_it_is_cut(tmp_path, rng, way, turned, crs):
    west, columns = WAYS[way]
    south_up = -1 if turned else 1
    # Height depends on the place alone: on the longitude from 180, and the latitude.
    longitudes = west + (np.arange(columns) + 0.5) / 10
    latitudes = 11 - (np.arange(20) + 0.5) / 10
    east = (longitudes % 360) - 180
    heights = (1000 + 100 * np.clip(east, -3, 3) + 50 * (latitudes[:, None] - 10)).astype("f4")
    grid = from_origin(west, 11, 0.1, 0.1)
    if turned:
        heights, grid = heights[::-1], from_origin(west, 9, 0.1, -0.1)
    dem = write(tmp_path / "dem.tif", heights, grid, "EPSG:4326")
    assert south_up * grid.e < 0

    side, pixel = 40, 0.02 if crs == "EPSG:4326" else 2000.0
    x, y = transform("EPSG:4326", crs, [179.999], [10.0])
    left = x[0] if crs != "EPSG:4326" else 180.0
    left, top = left - pixel * side / 2, y[0] + pixel * side / 2
    image = rng.integers(1, 9000, (1, side, side)).astype(np.uint16)
    image = write(tmp_path / "image.tif", image, from_origin(left, top, pixel, pixel), crs)
    out = tmp_path / "out"
    rows, counts = chips.cut([image], dem, None, out, size=20, elevation_size=8, progress=False)
    assert counts == (4, 0, 0)
    for row in rows:
        seen, cells, _ = read(out, row, "Elevation")
        xs, ys = cells @ tuple(np.meshgrid(np.arange(8) + 0.5, np.arange(8) + 0.5))
        lon, lat = transform(crs, "EPSG:4326", xs.ravel(), ys.ravel())
        expected = 1000 + 100 * (np.array(lon) % 360 - 180) + 50 * (np.array(lat) - 10)
        np.testing.assert_allclose(seen.ravel(), expected, atol=12)  # a cell is 10 m


def test_a_dem_covers_chips_around_a_pole(tmp_path, rng):
    latitudes = 90 - (np.arange(30) + 0.5) / 20
    heights = np.repeat((1000 + 500 * (90 - latitudes))[:, None], 720, 1).astype(np.float32)
    dem = write(tmp_path / "dem.tif", heights, from_origin(-180, 90, 0.5, 0.05), "EPSG:4326")
    image = rng.integers(1, 9000, (1, 20, 20)).astype(np.uint16)
    grid = from_origin(-50_000, 50_000, 5000, 5000)
    image = write(tmp_path / "image.tif", image, grid, "EPSG:3413")
    out = tmp_path / "out"
    (row,), counts = chips.cut([image], dem, None, out, size=20, elevation_size=10, progress=False)
    assert counts.incomplete == 0
    seen = heights_of(out, row)
    assert seen[0, 0] == pytest.approx(1000 + 500 * 0.57, abs=60)
    assert seen[5, 5] < 1060


@pytest.mark.parametrize("factor", [1, 40])
def test_a_dem_on_a_turned_grid_or_far_finer_than_the_chips_is_read(scene, factor):
    cell = 30 / factor
    grid = from_origin(LEFT - 500, TOP + 900, cell, cell) @ rasterio.Affine.rotation(20)
    rows, columns = np.mgrid[: 60 * factor, : 60 * factor] + 0.5
    x, y = grid @ (columns, rows)
    write(scene["dem"], plane(x, y).astype(np.float32), grid)
    out, chips_, counts = cut(scene)
    assert counts.incomplete == 0
    for row in chips_:
        heights, cells, _ = read(out, row, "Elevation")
        x, y = cells @ tuple(np.meshgrid(np.arange(7) + 0.5, np.arange(7) + 0.5))
        np.testing.assert_allclose(heights, plane(x, y), atol=2)


@pytest.mark.parametrize(
    ("shape", "size", "block"),
    [((373, 485), 64, 74), ((100, 100), 64, 64), ((3000, 9000), 100, 500), ((1428, 1128), 64, 225)],
)
def test_blocks_are_a_fifth_of_the_scene_but_at_least_a_chip(tmp_path, rng, shape, size, block):
    # One row of chips is enough to see the blocks.
    image = rng.integers(1, 9000, (1, *shape)).astype(np.uint8)
    image = write(tmp_path / "i.tif", image, from_origin(LEFT, TOP, 10, 10))
    high = np.full((10, 10), 100, np.float32)
    dem = write(tmp_path / "d.tif", high, from_origin(LEFT, TOP, 9000, 9000))
    where = []
    sink = chips._write
    chips._write = lambda folder, path, *rest: where.append(path)
    try:
        chips.cut([image], dem, None, tmp_path, size=size, elevation_size=1, progress=False)
    finally:
        chips._write = sink
    for path in where:
        row, column = map(int, path.split("/")[1].split("_")[1:])
        top, left = map(int, path.split("(")[1][:-1].split(", "))
        assert (row, column) == (top // block, left // block)


def test_coordinate_systems_are_written_as_code_or_wkt(scene):
    _, rows, _ = cut(scene)
    assert rows[0]["crs"] == UTM
    warped = rasterio.crs.CRS.from_string("ESRI:54009")
    row = chips._row("a", "a", np.zeros((2, 2), np.uint8), from_origin(0, 0, 1, 1), warped)
    assert row["crs"].startswith("PROJCS[")


def test_two_commands_on_one_folder_make_it_once_and_whole(scene):
    out = scene["folder"] / "chips"
    command = [sys.executable, "-m", "elev_ssl_jax.data.chips", "--image", scene["image"]]
    command += ["--elevation", scene["dem"], "--size", "20", "--stride", "1", "--out", out]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        while not list(scene["folder"].glob(".chips.unfinished/Dataset/*")):
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 2
        assert (
            second.stderr.strip()
            == f"error: {out} is being written by another process; wait for it"
        )
        assert not out.exists()
    finally:
        first.send_signal(signal.SIGCONT)
    said, _ = first.communicate()
    assert first.returncode == 0
    assert "1681 chips kept" in said
    assert len(list(out.rglob("chip.npy"))) == len(layout.read_metadata(out)) == 1681
