import subprocess
import sys

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
