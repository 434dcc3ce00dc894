import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_bounds, from_origin
from rasterio.warp import transform, transform_bounds
from shapely.geometry import box

from elev_ssl_jax.data import chips, labels, store
from elev_ssl_jax.data.planning import Quantity, Settings, plan
from elev_ssl_jax.data.scene import parse_images
from elev_ssl_jax.data.scene_files import SceneFiles
from elev_ssl_jax.errors import InputError
from tests import commands

UTM, LEFT, TOP, SIDE = "EPSG:32618", 500_000, 800_000, 60  # a scene of 60 x 60 pixels of 10 m
SMALL = Settings(size=20, elevation_size=7)


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


def cut_files(out, images, dem=None, cover=None, settings=SMALL, *, name="image", **kwargs):
    """Chips of one scene: their table, what was counted, and their arrays."""
    scene = SceneFiles(name, images, dem, cover)
    counts = chips.cut_scenes([scene], settings, out, progress=False, **kwargs)
    return read(out, counts)


def read(out, counts=None):
    """A folder of chips whole: `rows`, `counts`, and an array for each feature."""
    about, rows = store.read_about(out), store.read_table(out)
    names = [*about.sensors, *["elevation"] * bool(about.elevation_size)]
    names += ["mask"] * (about.classes is not None) + ["quantity"] * (about.quantity is not None)
    places = list(zip(map(Path, rows["part"]), rows["index"], strict=True))
    arrays = {
        name: np.stack([store.open_array(part, about, name)[i] for part, i in places])
        for name in names
    }
    return types.SimpleNamespace(rows=rows, counts=counts, about=about, **arrays)


def cut(scene, cover="cover", image=("image",), values=(4,), **kwargs):
    """The scene's chips, in a folder that is new each time."""
    number = len(list(scene["folder"].glob("out*")))
    vector = cover in scene and scene[cover].suffix != ".tif"
    classes = labels.inside() if vector else labels.two_classes(values)
    settings = SMALL._replace(classes=classes, **kwargs)
    images = {"image": tuple(scene[name] for name in image)}
    out = scene["folder"] / f"out{number}"
    return cut_files(out, images, scene["dem"], scene.get(cover), settings)


def whole(masks):
    """Nine masks side by side."""
    return np.block([[masks[3 * i + j] for j in range(3)] for i in range(3)])


def cells_of(row, count, size=20, pixel=10.0):
    """Where the centres of a chip's elevation cells lie."""
    step = size * pixel / count
    columns, lines = np.meshgrid(np.arange(count) + 0.5, np.arange(count) + 0.5)
    return row["left"] + columns * step, row["top"] - lines * step


def test_chips_are_windows_of_the_scene(scene):
    done = cut(scene, stride=10, block=30)
    assert done.counts.kept == len(done.rows) == 25
    assert done.counts.dropped == 0
    (i,) = np.flatnonzero(done.rows["key"] == "image/image_1_0/(40, 20)/chip.npy")
    row = done.rows.iloc[i]
    np.testing.assert_array_equal(
        done.image[i], np.moveaxis(scene["bands"][:, 40:60, 20:40], 0, -1)
    )
    assert done.image.dtype == np.uint16
    assert (row["left"], row["top"]) == (LEFT + 200, TOP - 400)
    assert (row["right"], row["bottom"]) == (LEFT + 400, TOP - 600)
    assert (row["crs"], row["Id"], row["block"]) == (UTM, "image_40_20", "image/image_1_0")


def test_a_quantity_is_of_every_pixel_whatever_its_numbers_are(scene):
    """Of another grid and coordinate system, with numbers that no height has."""
    bounds = transform_bounds(UTM, "EPSG:4326", LEFT - 300, TOP - 900, LEFT + 550, TOP + 300)
    grid = from_bounds(*bounds, 120, 160)
    columns, rows = np.meshgrid(np.arange(120) + 0.5, np.arange(160) + 0.5)
    x, y = transform("EPSG:4326", UTM, *(part.ravel() for part in grid @ (columns, rows)))
    values = 50 * plane(np.array(x), np.array(y)).reshape(160, 120).astype(np.float32)
    path = write(scene["folder"] / "people.tif", values, grid, "EPSG:4326", nodata=-1)
    files = SceneFiles("image", {"image": (scene["image"],)}, None, None, path)
    settings = SMALL._replace(quantity=Quantity("people", "1/km2"))
    out = scene["folder"] / "chips"
    done = read(out, chips.cut_scenes([files], settings, out, progress=False))
    assert done.about.quantity == {"name": "people", "unit": "1/km2"}
    assert done.about.elevation_size is None
    for found, row in zip(done.quantity, done.rows.to_dict("records"), strict=True):
        x, y = cells_of(row, 20)
        known = ~np.isnan(found)
        np.testing.assert_array_equal(known[x < LEFT + 530], True)
        np.testing.assert_array_equal(known[x > LEFT + 560], False)
        np.testing.assert_allclose(found[known], 50 * plane(x, y)[known], rtol=2e-3)
        assert row["labelled"] == pytest.approx(known.mean())


def cut_quantity(scene, values, out="chips"):
    """The summary of chips with a quantity [..., 60, 60] of each pixel of the scene."""
    values = np.asarray(values, np.float32)
    path = write(scene["folder"] / "quantity.tif", values, from_origin(LEFT, TOP, 10, 10))
    files = SceneFiles("image", {"image": (scene["image"],)}, None, None, path)
    settings = SMALL._replace(quantity=Quantity("height", "m"))
    folder = scene["folder"] / out
    return str(chips.cut_scenes([files], settings, folder, progress=False))


def test_a_quantity_that_is_not_known_is_counted_and_one_of_nowhere_refused(scene):
    values = np.ones((60, 60))
    assert "quantity" not in cut_quantity(scene, values, "whole")
    values[:20, :30] = np.nan
    values[0, 59] = np.inf
    said = cut_quantity(scene, values, "part")
    assert f"the quantity isn't known of {601 / 3600:.1%} of their pixels" in said
    for nothing in (np.nan, np.inf):
        with pytest.raises(InputError, match=r"quantity.tif has no value under any chip of"):
            cut_quantity(scene, np.full((60, 60), nothing), "none")
    with pytest.raises(InputError, match=r"quantity.tif has 2 bands, and one is needed; .* -b N"):
        cut_quantity(scene, np.ones((2, 60, 60)), "none")
    assert not (scene["folder"] / "none").exists()


@pytest.mark.parametrize("flag", ["--unit", "--quantity-name"])
def test_what_is_said_of_a_quantity_that_is_not_there_is_refused(scene, flag, monkeypatch, capsys):
    words = ["--image", scene["image"], "--out", scene["folder"] / "out", flag, "t/ha"]
    monkeypatch.setattr(sys, "argv", ["chips", *map(str, words)])
    with pytest.raises(SystemExit):
        chips.main()
    assert capsys.readouterr().err == f"error: {flag} is of --quantity, which is missing\n"


@pytest.mark.parametrize("name", ["quantity", "places", "counts", "known"])
def test_a_sensor_has_no_name_of_another_file(name):
    with pytest.raises(InputError, match=f"'{name}' can't be the name of a sensor"):
        parse_images([[f"{name}=a.tif"]])


def test_single_band_files_make_the_same_chips(scene):
    done = cut(scene, image=("red", "green", "blue"))
    wanted = np.moveaxis(scene["bands"][:, 20:40, 20:40], 0, -1)
    np.testing.assert_array_equal(done.image[4], wanted)


def test_elevation_is_that_of_the_chips_ground_and_missing_outside_the_dem(scene):
    done = cut(scene)
    assert done.counts.incomplete == 3  # the right column
    assert done.elevation.shape == (9, 7, 7)
    for heights, row in zip(done.elevation, done.rows.to_dict("records"), strict=True):
        x, y = cells_of(row, 7)
        outside = x > LEFT + 560
        inside = x < LEFT + 540
        assert np.isnan(heights[outside]).all()
        np.testing.assert_allclose(heights[inside], plane(x, y)[inside], atol=1.5)


def test_label_raster_is_nearest_and_its_nodata_unlabelled(scene):
    done = cut(scene, values=(4, 7))
    expected = np.repeat([[0, 1], [1, 255]], 30, 0).repeat(30, 1)
    np.testing.assert_array_equal(whole(done.mask), expected)
    row = done.rows.iloc[4]
    assert (row["label"], row["share"], row["labelled"]) == (1, 2 / 3, 0.75)
    assert done.about.classes == ("other", "values 4, 7")


def test_named_classes_and_values_of_none(scene):
    classes = labels.parse_classes(["crops=7", "wood=3,9"])
    settings, images = SMALL._replace(classes=classes), {"image": (scene["image"],)}
    done = cut_files(scene["folder"] / "out", images, scene["dem"], scene["cover"], settings)
    expected = np.repeat([[1, 255], [0, 255]], 30, 0).repeat(30, 1)
    np.testing.assert_array_equal(whole(done.mask), expected)
    assert done.about.classes == ("crops", "wood")
    # Those of value 4; the fourth quarter has no data.
    assert "900 of their pixels have label values of no class" in str(done.counts)
    assert done.rows["label"].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0]  # of equal shares the first


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp"])
def test_polygons_are_class_1_inside(scene, suffix):
    polygon = box(LEFT + 100, TOP - 300, LEFT + 300, TOP)
    path = scene["folder"] / f"fields{suffix}"
    geopandas.GeoDataFrame(geometry=[polygon], crs=UTM).to_crs("EPSG:4326").to_file(path)
    scene["fields"] = path
    expected = np.zeros((60, 60))
    expected[:30, 10:30] = 1
    # The corners' way through degrees.
    assert (whole(cut(scene, cover="fields").mask) != expected).mean() < 0.01


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp"])
def test_a_field_of_polygons_has_their_class(scene, suffix):
    boxes = [box(LEFT + 300 * i, TOP - 600, LEFT + 300 * i + 200, TOP) for i in range(2)]
    boxes.append(box(LEFT + 100, TOP - 100, LEFT + 200, TOP))  # over the first: the later counts
    path = scene["folder"] / f"fields{suffix}"
    fields = {"crop": ["rice", "maize", None], "number": [2, 1, 2]}
    geopandas.GeoDataFrame(fields, geometry=boxes, crs=UTM).to_file(path)
    images = {"image": (scene["image"],)}
    for field, wanted, names in (
        ("crop", (1, 0, 255), ("maize", "rice")),
        ("number", (1, 0, 1), ("1", "2")),
    ):
        settings = SMALL._replace(classes=labels.classes_of_field({"image": path}, field))
        out = scene["folder"] / f"out_{field}"
        done = cut_files(out, images, scene["dem"], path, settings)
        assert done.about.classes == names
        expected = np.full((60, 60), 255)
        expected[:, :20], expected[:, 30:50], expected[:10, 10:20] = wanted
        np.testing.assert_array_equal(whole(done.mask), expected)
    grouped = labels.parse_classes(["grass=rice,maize", "none=x"], "crop")
    done = cut_files(
        scene["folder"] / "grouped", images, None, path, SMALL._replace(classes=grouped)
    )
    assert set(np.unique(done.mask)) == {0, 255}
    assert done.counts.unclassed == {"image": 100}  # of the polygon without a value
    with pytest.raises(InputError, match=f"fields{suffix} has no field kind; it has crop, number"):
        labels.classes_of_field({"image": path}, "kind")
    with pytest.raises(InputError, match=r"scene b: --label-field is for polygons; .*cover\.tif"):
        labels.classes_of_field({"a": path, "b": scene["cover"]}, "crop")
    typo = SMALL._replace(classes=labels.parse_classes(["a=ryce", "b=mayze"], "crop"))
    done = cut_files(scene["folder"] / "typo", images, None, path, typo)
    assert "no pixel is of a or b; 2,400 of their pixels" in str(done.counts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a=1", "a=2"], "the class a is given twice"),
        (["a=1,2", "b=2"], "the value 2 is of a and of b"),
        (["a=1,1", "b=2"], "the value 1 is there twice"),
        (["a", "b=2"], r"NAME=VALUE\[,VALUE...\] is needed"),
        (["a=x", "b=2"], "'x' is no whole number"),
        (["a=1"], "1 classes .* are needed"),
    ],
)
def test_impossible_classes_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        labels.parse_classes(arguments)


def test_chips_with_nodata_are_dropped(scene):
    bands = scene["bands"].copy()
    bands[1, 25, 25] = 0
    write(scene["image"], bands, from_origin(LEFT, TOP, 10, 10), nodata=0)
    done = cut(scene)
    assert done.counts.dropped == 1
    assert "image_20_20" not in set(done.rows["Id"])


def test_chips_with_little_nodata_are_kept_if_that_is_wished_and_it_stays_nodata(scene):
    bands = scene["bands"].astype(np.int16) - 3000
    bands[1, 20:24, 20:25] = -9999  # 5 % of the chip in the middle
    bands[0, :20, :20] = -9999
    write(scene["image"], bands, from_origin(LEFT, TOP, 10, 10), nodata=-9999)
    done = cut(scene, max_nodata=0.05)
    assert (done.counts.kept, done.counts.dropped) == (8, 1)
    assert done.about.sensors == {"image": {"bands": 3, "dtype": "int16", "nodata": -9999.0}}
    (i,) = np.flatnonzero(done.rows["Id"] == "image_20_20")
    assert (done.image[i, :4, :5] == -9999).all()  # in all bands
    wanted = np.moveaxis(bands[:, 24:40, 20:40], 0, -1)
    np.testing.assert_array_equal(done.image[i, 4:], wanted)
    assert wanted.min() < 0
    decibels = (bands / 300).astype(np.float64)
    decibels[bands == -9999] = np.nan
    write(scene["image"], decibels, from_origin(LEFT, TOP, 10, 10))
    done = cut(scene, max_nodata=0.05)
    assert done.about.sensors["image"] == {"bands": 3, "dtype": "float32", "nodata": None}
    assert np.isnan(done.image[i, :4, :5]).all()
    np.testing.assert_allclose(done.image[i, 4:], wanted / 300, rtol=1e-6)


def test_several_sensors_are_cut_alike(scene):
    radar = np.random.default_rng(0).normal(-12, 4, (2, SIDE, SIDE)).astype(np.float32)
    radar[0, 5, 50] = np.nan
    path = write(scene["folder"] / "radar.tif", radar, from_origin(LEFT, TOP, 10, 10))
    images = {"s2": (scene["red"], scene["green"]), "s1": (path,)}
    done = cut_files(scene["folder"] / "out", images, scene["dem"])
    assert done.counts.dropped == 1  # for both
    assert [(s["bands"], s["dtype"]) for s in done.about.sensors.values()] == [
        (2, "uint16"),
        (2, "float32"),
    ]
    for i, row in enumerate(done.rows.to_dict("records")):
        top, left = map(int, row["Id"].split("_")[1:])
        window = (slice(None), slice(top, top + 20), slice(left, left + 20))
        np.testing.assert_array_equal(done.s1[i], np.moveaxis(radar[window], 0, -1))
        np.testing.assert_array_equal(done.s2[i], np.moveaxis(scene["bands"][:2][window], 0, -1))


def test_labels_and_elevation_may_be_left_out(scene):
    done = cut_files(scene["folder"] / "out", {"image": (scene["image"],)})
    assert done.about.classes is done.about.elevation_size is None
    assert set(np.unique(cut(scene, cover="none").image)) == set(np.unique(done.image))


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
        cut(scene, size=61)
    with pytest.raises(InputError, match="--stride is 0"):
        cut(scene, stride=0)
    with pytest.raises(InputError, match="--max-nodata is 1"):
        cut(scene, max_nodata=1.0)
    assert not list(scene["folder"].glob("*out*"))


def test_the_command_writes_all_or_nothing(scene):
    out = scene["folder"] / "chips"
    command = ["elev_ssl_jax.data.chips", "--image", scene["image"]]
    command += ["--elevation", scene["dem"], "--labels", scene["cover"], "--label-values", "4"]
    command += ["--size", "20", "--elevation-size", "7", "--out", out]
    done = commands.forked(*command)
    assert done.returncode == 0
    assert "9 chips kept, 0 dropped" in done.stdout
    assert "3 of those kept are incomplete" in done.stdout
    assert len(store.read_table(out)) == 9
    assert {path.name for path in out.iterdir()} == {"chips.json", "image"}

    again = commands.forked(*command)
    assert again.returncode == 2
    assert "exists already" in again.stderr

    command[-1] = scene["folder"] / "broken"
    break_dem_file(scene)
    broken = commands.forked(*command)
    assert broken.returncode == 2
    assert "Traceback" not in broken.stderr
    assert broken.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not list(scene["folder"].glob("*broken*"))


@pytest.mark.parametrize("nodata", [None, -32768])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_voids_are_missing_and_not_blended_whether_or_not_they_are_declared(scene, dtype, nodata):
    plain = np.full((40, 40), 1500, dtype)
    plain[8:14, 8:14] = -32768
    plain[20, 30] = -32768 if nodata else -9999
    plain[21:23, 30] = -999
    grid = from_origin(LEFT - 100, TOP + 100, 30, 30)
    write(scene["dem"], plain, grid, nodata=nodata)
    done = cut(scene)
    assert done.counts.incomplete
    np.testing.assert_array_equal(done.elevation[~np.isnan(done.elevation)], 1500)
    for heights, row in zip(done.elevation, done.rows.to_dict("records"), strict=True):
        columns, lines = ~grid @ cells_of(row, 7)
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
    np.testing.assert_array_equal(cut(scene).elevation[0], 1150)


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
    assert cut(scene).counts.dropped == 0
    assert "image.tif: 33% of the pixels are 0" in capsys.readouterr().err
    counts = cut(scene, nodata={"": 0.0}).counts
    assert (counts.kept, counts.dropped, counts.incomplete) == (6, 3, 3)
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
    done = cut_files(out, {"image": (image,)}, dem, settings=Settings(20, elevation_size=8))
    assert (done.counts.kept, done.counts.dropped, done.counts.incomplete) == (4, 0, 0)
    for seen, row in zip(done.elevation, done.rows.to_dict("records"), strict=True):
        xs, ys = cells_of(row, 8, pixel=pixel)
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
    done = cut_files(out, {"image": (image,)}, dem, settings=Settings(20, elevation_size=10))
    assert done.counts.incomplete == 0
    (seen,) = done.elevation
    assert seen[0, 0] == pytest.approx(1000 + 500 * 0.57, abs=60)
    assert seen[5, 5] < 1060


@pytest.mark.parametrize("factor", [1, 40])
def test_a_dem_on_a_turned_grid_or_far_finer_than_the_chips_is_read(scene, factor):
    cell = 30 / factor
    grid = from_origin(LEFT - 500, TOP + 900, cell, cell) @ rasterio.Affine.rotation(20)
    rows, columns = np.mgrid[: 60 * factor, : 60 * factor] + 0.5
    x, y = grid @ (columns, rows)
    write(scene["dem"], plane(x, y).astype(np.float32), grid)
    done = cut(scene)
    assert done.counts.incomplete == 0
    for heights, row in zip(done.elevation, done.rows.to_dict("records"), strict=True):
        np.testing.assert_allclose(heights, plane(*cells_of(row, 7)), atol=2)


@pytest.mark.parametrize(
    ("shape", "size", "block"),
    [((373, 485), 64, 74), ((100, 100), 64, 64), ((3000, 9000), 100, 500), ((1428, 1128), 64, 225)],
)
def test_blocks_are_a_fifth_of_the_scene_but_at_least_a_chip(tmp_path, rng, shape, size, block):
    image = np.zeros((1, *shape), np.uint8)
    image = write(tmp_path / "i.tif", image, from_origin(LEFT, TOP, 10, 10), nodata=255)
    scene = SceneFiles("i", {"image": (image,)}, None, None)
    about, _ = plan(scene, Settings(size, elevation_size=None), tmp_path)
    assert about["block"] == block


def test_coordinate_systems_are_written_as_code_or_wkt(scene):
    assert cut(scene).rows["crs"][0] == UTM
    path = write(scene["folder"] / "m.tif", scene["bands"], from_origin(0, 0, 9, 9), "ESRI:54009")
    about, _ = plan(SceneFiles("m", {"image": (path,)}, None, None), SMALL, scene["folder"])
    assert about["crs"].startswith("PROJCS[")


def test_two_commands_on_one_folder_make_it_once_and_whole(scene):
    out = scene["folder"] / "chips"
    command = [sys.executable, "-m", "elev_ssl_jax.data.chips", "--image", scene["image"]]
    command += ["--elevation", scene["dem"], "--size", "20", "--stride", "1", "--out", out]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        while not list(scene["folder"].glob(".chips.unfinished/image/0*")):
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        second = commands.forked(*command[2:])
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
    assert len(store.read_table(out)) == 1681
