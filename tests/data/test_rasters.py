import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from tfds_nwrc import layout

from elev_ssl_jax.data import rasters, scene, scene_files
from elev_ssl_jax.errors import InputError
from tests import buckets
from tests.data import hostile

SIDE = 20


def write(path, array, crs="EPSG:32618", driver="GTiff", **profile):
    height, width = array.shape
    profile = {"count": 1, "height": height, "width": width, "dtype": array.dtype} | profile
    grid = from_origin(500_000, 800_000, 10, 10)
    with rasterio.open(path, "w", driver=driver, crs=crs, transform=grid, **profile) as sink:
        sink.write(array, 1)
    return path


def read(path):
    """As a user's own raster."""
    with ExitStack() as stack:
        return rasters.open_raster(path, stack).read(1)


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    return write(tmp_path / "elsewhere" / "secret.tif", np.full((SIDE, SIDE), 777, np.float32))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.mark.parametrize("kind", ["vrt", "vrt in the network", "wms"])
@pytest.mark.parametrize("name", ["elevation.tif", "mask.tif", "scene.tif", "scene.img"])
def test_text_under_a_rasters_name_opens_nothing(folder, secret, name, kind):
    path = folder / name
    with hostile.web_server() as (url, asked):
        path.write_text(
            {
                "vrt": hostile.vrt(secret, SIDE),
                "vrt in the network": hostile.vrt(f"/vsicurl/{url}/x.tif", SIDE),
                "wms": hostile.wms(url, SIDE),
            }[kind]
        )
        reader = {
            "elevation.tif": lambda: layout.read_elevation(path, (SIDE, SIDE)),
            "mask.tif": lambda: layout.read_mask(path, (SIDE, SIDE)),
        }.get(name, lambda: read(path))
        with pytest.raises(InputError, match=f"{name} .*readable"):
            reader()
    assert asked == []


def test_a_mosaic_named_vrt_is_the_users_own(folder, secret):
    path = folder / "mosaic.vrt"
    path.write_text(hostile.vrt(secret, SIDE))
    assert (read(path) == 777).all()


@pytest.mark.parametrize("name", ["/vsicurl/{}/x.tif", "/&#118;sicurl/{}/x.tif", "{}/x.tif"])
def test_a_mosaic_asks_nothing_in_the_network(folder, name):
    path = folder / "mosaic.vrt"
    with hostile.web_server() as (url, asked):
        path.write_text(hostile.vrt(name.format(url), SIDE))
        text = path.read_text()
        attribute = f'<SimpleSource SourceFilename="{name.format(url)}">'
        for written in (text, text.replace("<SimpleSource>", attribute).replace("x.tif</", "</")):
            path.write_text(written)
            with pytest.raises(InputError, match=r"mosaic.vrt names .*files of this machine"):
                read(path)
    assert asked == []


@pytest.mark.parametrize("kind", ["vrt", "wms"])
def test_a_mosaics_files_ask_nothing_in_the_network(folder, kind):
    path = folder / "mosaic.vrt"
    with hostile.web_server() as (url, asked):
        remote = hostile.vrt(f"/vsicurl/{url}/x.tif", SIDE)
        for name in ("inner.vrt", "inner.tif"):
            text = remote if kind == "vrt" else hostile.wms(url, SIDE)
            (folder / name).write_text(text)
            path.write_text(hostile.vrt(folder / name, SIDE))
            with pytest.raises(InputError, match=name):
                read(path)
            relative = hostile.vrt(name, SIDE).replace(
                "Filename>", 'Filename relativeToVRT="1">', 1
            )
            path.write_text(relative)
            with pytest.raises(InputError, match=name):
                read(path)
    assert asked == []


def test_mosaics_of_mosaics_and_with_their_source_named_are_read(folder, secret):
    path, inner = folder / "mosaic.vrt", folder / "inner.vrt"
    inner.write_text(hostile.vrt(secret, SIDE))
    said = '<Metadata><MDI key="from">https://x.org/secret.tif</MDI></Metadata>'
    path.write_text(hostile.vrt(inner, SIDE).replace("<SRS>", f"{said}<SRS>"))
    assert (read(path) == 777).all()
    inner.unlink()
    with pytest.raises(InputError, match=r"mosaic.vrt names .*inner.vrt, which is not there"):
        read(path)
    inner.write_text(hostile.vrt(path, SIDE))  # each of the other
    with pytest.raises(InputError, match="names itself"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"<VRTDataset>", b"\xff\xfe<", "<é/>".encode("latin-1")])
def test_a_mosaic_that_is_none_is_refused(folder, content):
    path = folder / "mosaic.vrt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"mosaic.vrt is not a readable raster"):
        read(path)


def test_rasters_in_a_bucket_are_read_where_a_command_names_them(folder, rng):
    array = rng.integers(0, 6000, (SIDE, SIDE)).astype(np.uint16)
    content = write(folder / "a.tif", array).read_bytes()
    with buckets.amazon(**{"a.tif": content, "m.vrt": b"<VRTDataset/>"}):
        there = Path(f"/vsis3/{buckets.NAME}/a.tif")
        np.testing.assert_array_equal(read(there), array)
        assert scene.parse_images([[str(there)]]) == {"image": [there]}
        table = folder / "scenes.csv"
        table.write_text(f"name,image\none,{there}\n")
        with pytest.raises(InputError, match=r"scenes.csv names /vsis3/bucket/a.tif"):
            scene_files.read_scenes(table, all_there=False)
        with pytest.raises(InputError, match=r"m.vrt is a mosaic in a bucket"):
            read(there.with_name("m.vrt"))
        with pytest.raises(InputError, match=r"/vsis3/bucket/b.tif is not a readable raster"):
            read(there.with_name("b.tif"))
        with pytest.raises(InputError, match=r"/vsis3/none/b.tif is not a readable raster"):
            read(Path("/vsis3/none/b.tif"))
    for address in ("s3://bucket/a.tif", "https://x.org/a.tif"):
        with pytest.raises(InputError, match=f"^{address} is an address"):
            scene.parse_images([[address]])


@pytest.mark.parametrize("suffix", [".ovr", ".msk"])
def test_sidecars_open_nothing(folder, secret, suffix):
    for name in ("scene.tif", "elevation.tif"):
        write(folder / name, np.ones((SIDE, SIDE), np.float32))
        (folder / (name + suffix)).write_text(hostile.vrt(secret, SIDE // 2))
    with pytest.raises(InputError, match=f"scene.tif{suffix} is not a TIFF"):
        read(folder / "scene.tif")
    for side in (SIDE, SIDE - 2):
        assert (layout.read_elevation(folder / "elevation.tif", (side, side)) == 1).all()


def test_overviews_elsewhere_are_refused_and_not_asked_for(folder):
    for name in ("scene.tif", "elevation.tif"):
        write(folder / name, np.ones((SIDE, SIDE), np.float32))
    with hostile.web_server() as (url, asked):
        for name in ("scene.tif", "elevation.tif"):
            with rasterio.open(folder / name, "r+") as sink:
                sink.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{url}/x.tif")
        with pytest.raises(InputError, match=r"scene.tif refers to files elsewhere"):
            read(folder / "scene.tif")
        assert (layout.read_elevation(folder / "elevation.tif", (18, 18)) == 1).all()
    assert asked == []


@pytest.mark.parametrize(
    ("driver", "name", "dtype"),
    [
        ("GTiff", "a.tif", np.float32),
        ("HFA", "a.img", np.float32),
        ("ENVI", "a.dat", np.float32),
        ("EHdr", "a.bil", np.float32),
        ("AAIGrid", "a.asc", np.float32),
        ("PNG", "a.png", np.uint8),
        ("JP2OpenJPEG", "a.jp2", np.uint8),
    ],
)
def test_common_formats_are_read(folder, driver, name, dtype):
    array = np.arange(SIDE * SIDE).reshape(SIDE, SIDE).astype(dtype)
    first = write(folder / "first.tif", array)
    from rasterio import shutil

    path = folder / name
    if driver != "GTiff":
        options = {"QUALITY": 100, "REVERSIBLE": "YES"} if driver == "JP2OpenJPEG" else {}
        shutil.copy(first, path, driver=driver, **options)
    else:
        path = first
    np.testing.assert_array_equal(read(path), array)


def test_pipes_and_devices_are_refused_at_once(folder):
    os.mkfifo(folder / "scene.tif")
    (folder / "null.tif").symlink_to("/dev/zero")
    for name in ("scene.tif", "null.tif"):
        with pytest.raises(InputError, match=f"{name} is not a regular file"):
            read(folder / name)


@pytest.mark.parametrize("text", ["EPSG:32618", " epsg:4326", "ESRI:54009", "wkt"])
def test_codes_and_wkt_are_coordinate_systems(text):
    wkt = rasterio.crs.CRS.from_epsg(32618).to_wkt()
    assert rasters.parse_crs(wkt if text == "wkt" else text, "a.csv") is not None


def test_other_texts_are_no_coordinate_systems(folder, capfd):
    wkt = rasterio.crs.CRS.from_epsg(32618).to_wkt()
    (folder / "wkt.prj").write_text(wkt)
    with hostile.web_server() as (url, asked):
        for text in (
            f"{url}/crs",
            f"/vsicurl/{url}/crs",
            str(folder / "wkt.prj"),
            "+proj=utm +zone=18",
            "EPSG:99999999",
            "PROJCS[nothing",
            "",
            f'PROJCS["x",EXTENSION["PROJ4","+proj=longlat +nadgrids={folder}/wkt.prj"]]',
        ):
            with pytest.raises(InputError, match=r"a.csv: row 2 has"):
                rasters.parse_crs(text, "a.csv: row 2")
    assert asked == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_heights_that_no_place_has_are_missing_and_scale_and_offset_applied(folder, dtype):
    stored = np.array([[100, -32768, -9999], [8848, 9000, -430]], dtype)
    path = write(folder / "dem.tif", stored)
    expected = np.array([[100, np.nan, np.nan], [8848, np.nan, -430]], np.float32)
    with ExitStack() as stack:
        source = rasters.open_raster(path, stack)
        np.testing.assert_array_equal(rasters.read_values(path, source), expected)
    with rasterio.open(path, "r+") as sink:
        sink.scales, sink.offsets = (0.1,), (50.0,)
    expected = np.array([[60, np.nan, np.nan], [934.8, 950, 7]], np.float32)
    with ExitStack() as stack:
        source = rasters.open_raster(path, stack)
        np.testing.assert_allclose(rasters.read_values(path, source), expected, rtol=1e-6)


def test_every_so_manyth_height_is_the_middle_of_its_cells(folder):
    stored = np.arange(30 * 24).reshape(30, 24).astype(np.float32)
    path = write(folder / "dem.tif", stored)
    with ExitStack() as stack:
        source = rasters.open_raster(path, stack)
        heights = rasters.read_values(path, source, rasterio.windows.Window(3, 6, 15, 21), 3)
    np.testing.assert_array_equal(heights, stored[7:27:3, 4:18:3])


def scene_of(paths, nodata=None):
    with ExitStack() as stack:
        given = None if nodata is None else {"": nodata}
        opened = scene.open_scene({"image": paths}, stack, given)
        scene.warn_of_blanks(opened)
        pixels, valid = opened.read(rasterio.windows.Window(0, 0, SIDE, SIDE))
        return pixels["image"], valid


def test_grids_a_hair_apart_are_one(folder):
    a = write(folder / "a.tif", np.ones((SIDE, SIDE), np.uint8))
    for shift, stretch, same in ((1e-9, 1, True), (0.005, 1, True), (0.02, 1, False),
                                 (0, 1 + 1e-6, True), (0, 1.001, False)):  # fmt: skip
        grid = from_origin(500_000 + shift, 800_000, 10 * stretch, 10)
        profile = {"height": SIDE, "width": SIDE, "count": 1, "dtype": np.uint8}
        with rasterio.open(
            folder / "b.tif", "w", driver="GTiff", crs="EPSG:32618", transform=grid, **profile
        ) as sink:
            sink.write(np.ones((SIDE, SIDE), np.uint8), 1)
        if same:
            assert scene_of([a, folder / "b.tif"])[0].shape == (2, SIDE, SIDE)
        else:
            with pytest.raises(InputError, match=r"b.tif is not on the grid of .*a.tif"):
                scene_of([a, folder / "b.tif"])


def test_nodata_of_the_command_goes_before_that_of_the_file(folder, capsys):
    array = np.full((SIDE, SIDE), 9, np.uint8)
    array[:2], array[-3:] = 0, 7
    plain = write(folder / "plain.tif", array)
    tagged = write(folder / "tagged.tif", array, nodata=7)
    np.testing.assert_array_equal(scene_of([tagged])[1], array != 7)
    assert "tagged.tif: 10% of the pixels are 0 in all bands" in capsys.readouterr().err
    scene_of([write(folder / "declared.tif", array, nodata=0)])
    assert capsys.readouterr().err == ""
    for path in (plain, tagged):
        np.testing.assert_array_equal(scene_of([path], nodata=0)[1], array != 0)
    assert capsys.readouterr().err == ""
    assert scene_of([plain])[1].all()
    said = capsys.readouterr().err
    assert "plain.tif: 10% of the pixels are 0 in all bands" in said
    assert "--nodata 0" in said
    assert said.count("\n") == 1
    for value in (-1, 256, 0.5, float("nan")):
        with pytest.raises(InputError, match=r"--nodata is .*plain.tif \(uint8\) can't hold"):
            scene_of([plain], nodata=value)


def test_dark_pixels_and_zeros_in_one_band_alone_are_nothing_to_speak_of(folder, capsys):
    array = np.full((SIDE, SIDE), 9, np.uint8)
    array[0, :4] = 0
    a = write(folder / "a.tif", array)
    zeros = write(folder / "zeros.tif", array * 0)
    scene_of([a])
    scene_of([zeros, write(folder / "b.tif", array * 0 + 1)])
    assert capsys.readouterr().err == ""


def test_places_are_all_of_a_small_scene_and_64_of_a_large_one():
    assert scene._places(100) == [0]
    assert scene._places(1500) == [0, 512, 1024]
    places = scene._places(100_000)
    assert len(places) == 8
    assert places[0] == 0
    assert places[-1] == 195 * 512


def test_images_with_a_scale_are_refused(folder):
    path = write(folder / "a.tif", np.ones((SIDE, SIDE), np.uint16))
    with rasterio.open(path, "r+") as sink:
        sink.scales, sink.offsets = (0.0001,), (-0.1,)
    with pytest.raises(InputError, match=r"a.tif has a scale.*0.0001.*-unscale.*-unsetscale"):
        scene_of([path])
    with pytest.raises(InputError, match=r"a.tif has a scale"):
        layout.read_mask(path, (SIDE, SIDE))
