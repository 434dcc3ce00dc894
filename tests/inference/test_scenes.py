import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import geopandas
import hypothesis
import numpy as np
import pandas as pd
import pytest
import rasterio
import rasterio.features
import rasterio.shutil
import scipy.ndimage
from geopandas.testing import assert_geodataframe_equal
from hypothesis import strategies as st
from rasterio.transform import Affine, from_origin
from rasterio.vrt import WarpedVRT

from elev_ssl_jax import polygons, predict
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference import maps, scenes, windows
from elev_ssl_jax.inference import model as inference
from tests import runs
from tests.data.test_chips import LEFT, TOP, UTM, write

GRID = from_origin(LEFT, TOP, 10, 10)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A segmentation, a classification and a pre-training of 32-pixel chips."""
    folder = tmp_path_factory.mktemp("runs")
    for name, head in (("unet", "unet"), ("linear", "linear"), ("elevation", None)):
        runs.save_run(folder / name, runs.settings(head), (32, 32, 3))
    return folder


@pytest.fixture
def scene(tmp_path, rng):
    """Smooth ground, 150 x 90 pixels in two files of two bands and one, a corner without data."""
    places = np.linspace(0, 3, 150)[:, None] + np.linspace(0, 2, 90)
    bands = [3000 + 2000 * np.sin(places + i) + 300 * rng.random((150, 90)) for i in range(3)]
    bands = np.stack(bands).astype(np.uint16)
    bands[2, 120:, 50:] = 0
    write(tmp_path / "two.tif", bands[:2], GRID, nodata=0)
    write(tmp_path / "one.tif", bands[2], GRID, nodata=0)
    return [tmp_path / "two.tif", tmp_path / "one.tif"], np.moveaxis(bands, 0, -1)


def read(path):
    with rasterio.open(path) as source:
        assert (source.crs, source.transform) == (UTM, GRID)
        return np.moveaxis(source.read(), 0, -1)


@hypothesis.given(st.integers(32, 300), st.integers(32, 80), st.data())
def test_windows_cover_every_pixel_once_in_all(length, size, data):
    hypothesis.assume(size <= length)
    overlap = data.draw(st.integers(0, size - 1))
    starts, weights = windows.window_grid(length, size, overlap)
    assert starts[0] == 0
    assert starts[-1] == length - size
    assert (np.diff(starts) <= size - overlap).all()
    total = np.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        assert (weight > 0).all()
        total[start : start + size] += weight
    np.testing.assert_allclose(total, 1, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"overlap": 0}, {"overlap": 25, "window": 47}])
def test_windows_of_what_needs_no_surroundings_make_the_whole(
    folders, scene, tmp_path, monkeypatch, options
):
    images, pixels = scene

    def pointwise(chips):
        second = chips["image"][..., 1:2] / np.float32(6000)
        return np.concatenate([second, 1 - second], axis=-1)

    monkeypatch.setattr(windows, "make_functions", lambda *_, **__: {"map": pointwise})
    monkeypatch.setattr(windows, "_COLUMNS", 64)  # two parts of the width, which windows straddle
    model = inference.load(folders / "unet")
    out, probabilities = tmp_path / "map.tif", tmp_path / "probabilities.tif"
    scenes.map_scene(
        model, images, out=out, probabilities=probabilities, progress=False, batch_size=5, **options
    )
    wanted = pixels[..., 1] / 6000
    valid = pixels[..., 2] > 0
    got = read(probabilities)
    np.testing.assert_allclose(got[valid], np.stack([wanted, 1 - wanted], -1)[valid], rtol=1e-5)
    assert np.isnan(got[~valid]).all()
    clear = valid & (abs(wanted - 0.5) > 1e-3)
    np.testing.assert_array_equal(read(out)[clear, 0], wanted[clear] < 0.5)
    assert (read(out)[~valid] == 255).all()


def test_polygons_and_confidence_say_what_the_map_says(folders, scene, tmp_path, monkeypatch):
    pixels = scene[1][60:]  # 90 x 90, a corner without data
    second = np.where(pixels[..., 1] > 3000, 0.9, 0.2)
    second[40:43, 20:24] = np.where(second[40, 20] > 0.5, 0.2, 0.9)  # 12 pixels of another class

    def by_place(chips):  # of a single window that is the whole scene
        return np.stack([1 - second, second], -1)[None].repeat(len(chips["image"]), 0)

    monkeypatch.setattr(windows, "make_functions", lambda *_, **__: {"map": by_place})
    model = inference.load(folders / "unet")
    write(tmp_path / "square.tif", np.moveaxis(pixels, -1, 0), GRID, nodata=0)
    paths = {n: tmp_path / f"{n}.tif" for n in ("out", "confidence", "probabilities")}
    options = {"window": 90, "overlap": 0, "progress": False, "overwrite": True, **paths}
    vector = tmp_path / "classes.gpkg"
    scenes.map_scene(model, [tmp_path / "square.tif"], vector=vector, **options)
    classes = read(paths["out"])[..., 0]
    percent = np.rint(100 * read(paths["probabilities"]).max(axis=-1))
    percent = np.where(np.isnan(percent), 255, percent)
    np.testing.assert_array_equal(read(paths["confidence"])[..., 0], percent)
    assert set(np.unique(percent)) == {80, 90, 255}
    found = geopandas.read_file(vector)
    assert found.crs == UTM
    assert found.geometry.is_valid.all()
    for number in (0, 1):
        mine = found[found["class"] == number]
        assert set(mine["name"]) == {f"class {number}"}
        assert mine.area.sum() == pytest.approx(100 * np.sum(classes == number))
        np.testing.assert_allclose(mine["area_m2"], mine.area, rtol=2e-3)  # UTM's own scale
    back = rasterio.features.rasterize(
        zip(found.geometry, found["class"], strict=True), classes.shape, 255, transform=GRID
    )
    np.testing.assert_array_equal(back, classes)
    # Of 12 pixels, 1,200 square metres, nothing is left.
    scenes.map_scene(model, [tmp_path / "square.tif"], vector=vector, min_area=1300.0, **options)
    larger = geopandas.read_file(vector)
    assert larger.area.min() >= 1300
    assert len(larger) < len(found)
    assert larger.area.sum() == pytest.approx(found.area.sum())
    np.testing.assert_array_equal(read(paths["out"])[..., 0], classes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vector": "a.shp", "out": "map.tif"}, "name a .gpkg"),
        ({"vector": "a.gpkg"}, "and the map it is made of by --out"),
        ({"out": "map.tif", "min_area": 5.0}, "--min-area is 5.0"),
        ({"vector": "a.gpkg", "out": "map.tif", "min_area": -1.0}, "--min-area is -1.0"),
    ],
)
def test_polygons_that_cannot_be_are_refused(folders, scene, tmp_path, options, message):
    paths = {n: tmp_path / v if isinstance(v, str) else v for n, v in options.items()}
    with pytest.raises(InputError, match=message):
        scenes.map_scene(inference.load(folders / "unet"), scene[0], **paths)
    with pytest.raises(InputError, match="--confidence is for runs that tell classes"):
        scenes.map_scene(
            inference.load(folders / "elevation"), scene[0], confidence=tmp_path / "c.tif"
        )
    assert not [*tmp_path.glob("*.gpkg"), *tmp_path.glob("map.*")]


def test_polygons_of_ground_of_unknown_size_are_refused_before_anything_is_predicted(
    folders, tmp_path, monkeypatch
):
    monkeypatch.setattr(windows, "write", None)
    turned = Affine.translation(10, 50) @ Affine.rotation(20) @ Affine.scale(1e-4, -1e-4)
    bands = np.full((3, 64, 64), 3000, np.uint16)
    write(tmp_path / "turned.tif", bands, turned, crs="EPSG:4326")
    paths = {"out": tmp_path / "map.tif", "vector": tmp_path / "classes.gpkg"}
    with pytest.raises(InputError, match="its pixels' size is not known in WGS 84"):
        scenes.map_scene(inference.load(folders / "unet"), [tmp_path / "turned.tif"], **paths)
    assert [path.name for path in tmp_path.iterdir()] == ["turned.tif"]


def test_a_map_has_no_seams(folders, scene, tmp_path):
    images, _ = scene
    model = inference.load(folders / "unet")
    path = tmp_path / "probabilities.tif"

    def jumps(overlap):
        """The mean step between neighbouring pixels at windows' borders, over that elsewhere."""
        scenes.map_scene(
            model, images, probabilities=path, overlap=overlap, overwrite=True, progress=False
        )
        steps = np.abs(np.diff(read(path)[:120, :, 1], axis=0))
        starts = windows.window_grid(150, 32, overlap).starts
        borders = np.unique([starts[1:] - 1, starts[:-1] + 31])
        borders = borders[borders < len(steps)]
        return steps[borders].mean() / np.delete(steps, borders, axis=0).mean()

    assert jumps(0) > 1.5
    assert jumps(16) < 1.15


def test_windows_that_overlap_give_what_one_large_window_gives(
    folders, scene, tmp_path, monkeypatch
):
    images, pixels = scene

    def local(chips):
        """What a network with zero padding and 5 x 5 pixels of surroundings might say."""
        mean = scipy.ndimage.uniform_filter(
            chips["image"][..., 1] / 6000, (0, 5, 5), mode="constant"
        )
        return np.stack([mean, 1 - mean], axis=-1)

    monkeypatch.setattr(windows, "make_functions", lambda *_, **__: {"map": local})
    model = inference.load(folders / "unet")
    whole = local({"image": pixels[None, :120]})[0, 4:110, 4:86, 0]

    def error(**options):
        path = tmp_path / "probabilities.tif"
        path.unlink(missing_ok=True)
        scenes.map_scene(model, images, probabilities=path, progress=False, **options)
        return np.abs(read(path)[4:110, 4:86, 0] - whole)

    blended, side_by_side = error(), error(overlap=0)
    assert blended.mean() < side_by_side.mean() / 5
    assert blended.max() < side_by_side.max() / 5


def test_the_command_writes_a_map_for_a_desktop_gis(folders, scene, tmp_path, monkeypatch, capsys):
    images, _ = scene
    out = tmp_path / "map.tif"
    words = ["predict", "--run", folders / "unet", "--image", *images, "--out", out]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    predict.main()
    assert "pixels/s" in capsys.readouterr().out
    with rasterio.open(out) as source:
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (source.dtypes, source.nodata, source.descriptions) == (("uint8",), 255, ("class",))
        assert len({source.colormap(1)[i] for i in range(2)}) == 2
        assert source.tags()["run"] == "unet"
    assert out.with_suffix(".png").stat().st_size > 5000
    assert {*tmp_path.iterdir()} - {*images} == {out, out.with_suffix(".png")}


def test_outputs_on_several_disks_get_their_names_together(folders, scene, tmp_path, monkeypatch):
    images, _ = scene
    model = inference.load(folders / "unet")
    other = tmp_path / "other"
    other.mkdir()
    paths = {"out": tmp_path / "map.tif", "confidence": other / "sure.tif"}

    def is_another_disk(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "rename", is_another_disk)
    with monkeypatch.context() as full:
        move, moved = shutil.move, []

        def move_one(source, target):
            moved.append(target)
            if len(moved) > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            move(source, target)

        full.setattr(shutil, "move", move_one)
        with pytest.raises(InputError, match="No space left"):
            scenes.map_scene(model, images, progress=False, **paths)
    assert {*tmp_path.rglob("*")} - {*images} == {other}
    scenes.map_scene(model, images, progress=False, **paths)
    made = {*paths.values(), paths["out"].with_suffix(".png")}
    assert {*tmp_path.rglob("*")} - {*images} == {other, *made}
    assert read(paths["out"]).shape == read(paths["confidence"]).shape


def test_elevation_and_classes_of_windows(folders, scene, tmp_path):
    images, pixels = scene
    out = tmp_path / "map.tif"
    model = inference.load(folders / "elevation")
    scenes.map_scene(model, images, out=out, overlap=0, progress=False)
    got = read(out)[..., 0]
    assert np.isnan(got[pixels[..., 2] == 0]).all()
    cells = model.elevation(pixels[None, 32:64, 32:64])[0]
    # The centre of a cell of 32 / 11 pixels is near the pixel it lies in.
    at = (np.arange(1, 10) + 0.5) * 32 / 11
    inside = got[32:64, 32:64][np.ix_(at.astype(int), at.astype(int))]
    spread = np.ptp(cells)
    assert np.abs(inside - cells[1:10, 1:10]).mean() < 0.25 * spread

    model = inference.load(folders / "linear")
    probabilities = tmp_path / "probabilities.tif"
    scenes.map_scene(
        model,
        images,
        out=out,
        probabilities=probabilities,
        overlap=0,
        overwrite=True,
        progress=False,
    )
    wanted = model.probabilities(pixels[None, 32:64, 32:64])[0]
    got = read(probabilities)[32:64, 32:58]  # the last window of a row begins at 58
    np.testing.assert_allclose(got, np.broadcast_to(wanted, got.shape), atol=1e-5)


def _check_polygons_of_parts(model, images, folder):
    """A map's polygons are those of its parts, named in any order."""
    of_map, of_parts, of_one = (folder / f"{name}.gpkg" for name in ("map", "parts", "one"))
    written = {"out": folder / "again.tif", "vector": of_map, "min_area": 2000}
    scenes.map_scene(model, images, progress=False, overlap=20, **written)
    parts = [*(folder / "shards").glob("map.*of3.tif")]
    polygons.write(parts, of_parts, min_area=2000)
    polygons.write([folder / "again.tif"], of_one, min_area=2000)
    wanted, *others = (geopandas.read_file(path) for path in (of_map, of_parts, of_one))
    for found in others:
        assert_geodataframe_equal(found, wanted)
    missing = folder / "missing.gpkg"
    two = [path for path in parts if "2of3" not in path.name]
    for paths in (two, [*parts, parts[0]], [*parts, folder / "again.tif"]):
        with pytest.raises(InputError, match=r"doesn't go on where .* ends; name the parts of one"):
            polygons.write(paths, missing)
    with pytest.raises(InputError, match=r"p.1of3.tif is no map of classes"):
        polygons.write([folder / "shards" / "p.1of3.tif"], missing)
    torn = folder / "torn.tif"
    content = parts[0].read_bytes()
    torn.write_bytes(content[: len(content) * 3 // 4])
    # Its CRS may be in what is gone.
    with pytest.raises(InputError, match=r"torn.tif (can't be read; is it truncated|has no CRS)"):
        polygons.write([torn], missing)
    assert not missing.exists()
    assert not [*folder.glob(".missing*")]


def test_shards_are_parts_of_the_whole_and_several_may_read(folders, scene, tmp_path, monkeypatch):
    images, _ = scene
    model = inference.load(folders / "unet")
    monkeypatch.setattr(windows, "_COLUMNS", 64)

    def paths(folder):
        (tmp_path / folder).mkdir()
        names = {"out": "map.tif", "probabilities": "p.tif", "features": "f.parquet"}
        return {name: tmp_path / folder / file for name, file in names.items()}

    def whole(folder, **options):
        its = paths(folder)
        counts = scenes.map_scene(model, images, progress=False, overlap=20, **its, **options)
        table = geopandas.read_parquet(its["features"])
        return counts, table, [read(its[name]) for name in ("out", "probabilities")]

    alone, together = whole("alone"), whole("together", workers=2)
    its = paths("shards")
    parts: dict = {name: [] for name in its}
    counts = []
    for shard in ((1, 3), (2, 3), (3, 3)):
        counts.append(
            scenes.map_scene(model, images, progress=False, overlap=20, shard=shard, **its)
        )
        for name, path in its.items():
            part = scenes.part_of(path, shard)
            assert part.name == f"{path.stem}.{shard[0]}of3{path.suffix}"
            if name == "features":
                parts[name].append(geopandas.read_parquet(part))
                continue
            with rasterio.open(part) as source:
                assert source.transform == GRID @ rasterio.Affine.translation(
                    0, 50 * (shard[0] - 1)
                )
                parts[name].append(np.moveaxis(source.read(), 0, -1))
    assert not list((tmp_path / "shards").glob("*.png"))
    _check_polygons_of_parts(model, images, tmp_path)
    assert alone[0][:2] == together[0][:2]
    assert alone[0][:2] == tuple(sum(c[i] for c in counts) for i in (0, 1))
    joined = [np.concatenate(parts[name]) for name in ("out", "probabilities")]
    for one, two, three in zip(alone[2], together[2], joined, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)
    tables = alone[1], together[1], pd.concat(parts["features"])
    first, *others = (
        sorted((shape.wkt, *said) for shape, said in zip(t.geometry, t.features, strict=True))
        for t in tables
    )
    assert others == [first, first]


def test_a_shard_may_have_nothing_to_tell(folders, scene, tmp_path):
    pixels = scene[1].copy()
    pixels[90:] = 0
    pixels[30:60] = 300  # calm water
    path = write(tmp_path / "half.tif", np.moveaxis(pixels, -1, 0), GRID, nodata=0)
    model, out = inference.load(folders / "unet"), tmp_path / "map.tif"
    counts = scenes.map_scene(model, [path], out=out, shard=(5, 5), overlap=0, progress=False)
    assert counts == (30 * 90, 0, counts.seconds)
    with rasterio.open(tmp_path / "map.5of5.tif") as source:
        assert (source.read(1) == 255).all()
    scenes.map_scene(model, [path], out=out, shard=(2, 5), overlap=0, progress=False)
    with rasterio.open(tmp_path / "map.2of5.tif") as source:
        assert (source.read(1) < 255).all()


def test_features_are_a_table_of_windows(folders, scene, tmp_path, monkeypatch):
    images, pixels = scene
    monkeypatch.setattr(windows, "_COLUMNS", 50)
    model = inference.load(folders / "elevation")
    path = tmp_path / "features.parquet"
    counts = scenes.map_scene(model, images, features=path, progress=False)
    table = geopandas.read_parquet(path)
    assert table.crs == UTM
    assert len(table) == counts.windows == len(table.geometry.drop_duplicates())
    corners = [
        (top, left) for top in (0, 32, 64, 96, 118) for left in (0, 32, 58)
    ]  # the last corner is 118, 58: without data from 120, 50
    assert counts.windows == len(corners)
    for row in table.itertuples():
        left, bottom, right, top = row.geometry.bounds
        column, line = round((left - LEFT) / 10), round((TOP - top) / 10)
        assert (line, column) in corners
        assert (right - left, top - bottom) == (320, 320)
        window = pixels[line : line + 32, column : column + 32]
        assert row.valid == pytest.approx((window[..., 2] > 0).mean(), abs=1e-6)
        if row.valid == 1:
            wanted = model.features(window[None])[0]
            np.testing.assert_allclose(row.features, wanted, rtol=1e-4, atol=1e-5)


def test_bad_input_is_told_in_one_line_and_leaves_nothing(folders, scene, tmp_path):
    images, pixels = scene
    unet, elevation = (inference.load(folders / name) for name in ("unet", "elevation"))
    bands = np.moveaxis(pixels, -1, 0)
    bad = tmp_path / "bad"
    bad.mkdir()

    def file(name, array, **more):
        return [write(bad / name, array, GRID, **more)]

    nowhere = file("turned.tif", bands, crs=None)
    small = file("small.tif", bands[:, :20])
    torn = file("torn.tif", bands)
    torn[0].write_bytes(torn[0].read_bytes()[: 2 * 150 * 90])
    empty = file("empty.tif", 0 * bands, nodata=0)
    share = file("share.tif", bands / 1e4)
    before = set(os.listdir(bad))
    out = bad / "map.tif"
    for model, files, options, message in (
        (unet, images[:1], {}, r"two.tif has 2 bands; .*unet takes 3"),
        (unet, nowhere, {}, "turned.tif has no CRS; assign one"),
        (unet, [bad / "none.tif"], {}, "none.tif not found"),
        (unet, small, {}, "small.tif is 20 x 90 pixels, smaller than a window of 32"),
        (unet, torn, {}, "torn.tif can't be read at row .*; is it truncated"),
        (unet, empty, {}, "every pixel is nodata"),
        (unet, share, {}, "has values from 0 to 0.* trained on 0 to 6000"),
        (unet, images, {"window": 16}, "--window is 16; it must be at least 32"),
        (unet, images, {"overlap": 32}, "--overlap is 32; it must be 0 to 31"),
        (unet, images, {"batch_size": 0}, "--batch-size is 0"),
        (unet, images, {"features": out}, "map.tif would be written twice"),
        (unet, images, {"features": out.with_suffix(".png")}, "map.png would be written twice"),
        (unet, images, {"features": bad / "no" / "f"}, "there is no folder"),
        (unet, images, {"features": tmp_path}, "is a folder; name a file"),
        (elevation, images, {"window": 64}, "--window is 64; .* from 32 x 32"),
        (elevation, images, {"probabilities": bad / "p.tif"}, "is for runs that tell classes"),
        (unet, images, {"workers": 0}, "--workers is 0"),
        (unet, images, {"shard": (1, 200)}, "--shard is 1/200; .* has 150 rows alone"),
        (unet, images, {"shard": (1, 2), "vector": bad / "v.gpkg"}, "polygons go on from one"),
    ):
        with pytest.raises(InputError, match=message) as told:
            scenes.map_scene(model, files, out=out, progress=False, **options)
        assert "\n" not in str(told.value)
        assert set(os.listdir(bad)) == before
    with pytest.raises(InputError, match="nothing to write"):
        scenes.map_scene(unet, images)


def test_no_input_and_no_file_of_others_is_overwritten(folders, scene, tmp_path):
    images, _ = scene
    model = inference.load(folders / "unet")
    mosaic = tmp_path / "mosaic.vrt"
    with rasterio.open(images[1]) as source, WarpedVRT(source) as warped:
        rasterio.shutil.copy(warped, mosaic, driver="VRT")
    (tmp_path / "a").mkdir()
    (tmp_path / "map.png").write_text("a picture of mine")
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    two, one = images
    for options in (
        {"out": two},
        {"out": one},
        {"probabilities": tmp_path / "a" / ".." / "one.tif"},
        {"features": two},
    ):
        with pytest.raises(InputError, match="is an input"):
            scenes.map_scene(model, images, overwrite=True, progress=False, **options)
    with pytest.raises(InputError, match="is an input"):  # which the mosaic only names
        scenes.map_scene(model, [two, mosaic], out=one, overwrite=True, progress=False)
    own = next(path for path in (folders / "unet").rglob("*") if path.is_file())
    with pytest.raises(InputError, match="is an input"):
        scenes.map_scene(model, images, features=own, overwrite=True, progress=False)
    with pytest.raises(InputError, match=r"name a .tif"):
        scenes.map_scene(model, images, out=tmp_path / "new.png", progress=False)
    with pytest.raises(InputError, match=r"map.png exists already; .* add --overwrite"):
        scenes.map_scene(model, images, out=tmp_path / "map.tif", progress=False)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def test_a_value_that_means_no_data_can_be_named(folders, scene, tmp_path):
    _, pixels = scene
    path = write(tmp_path / "undeclared.tif", np.moveaxis(pixels, -1, 0), GRID)
    out = tmp_path / "map.tif"
    scenes.map_scene(inference.load(folders / "unet"), [path], out=out, nodata=0, progress=False)
    np.testing.assert_array_equal(read(out)[..., 0] == 255, pixels[..., 2] == 0)


def test_a_full_disk_is_told_and_leaves_nothing(folders, scene, tmp_path):
    images, _ = scene
    out = tmp_path / "out"
    out.mkdir()
    # Files may not grow beyond some bytes, which to a program is a full disk.
    code = f"""
import resource, signal, sys
from elev_ssl_jax import polygons, predict
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
sys.argv = {["predict", "--run", str(folders / "unet"), "--image", *map(str, images)]!r}
sys.argv += ["--out", {str(out / "map.tif")!r}]
predict.main()
"""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "map.tif: can't be written" in done.stderr.splitlines()[-1]
    assert not os.listdir(out)


def test_a_map_of_several_sensors_and_elevation(scene, tmp_path, rng, capsys):
    images, pixels = scene
    radar = rng.normal(-12, 4, (2, 150, 90)).astype(np.float32)
    radar[1, :30, :20] = np.nan
    heights = rng.uniform(0, 900, (50, 30)).astype(np.float32)
    write(tmp_path / "radar.tif", radar, GRID)
    write(tmp_path / "dem.tif", heights, from_origin(LEFT, TOP, 30, 30))
    settings = runs.settings("unet")
    settings.data.inputs = ("s2", "s1", "elevation")
    settings.data.value_range = (*[(0.0, 6000.0)] * 3, (-25.0, 0.0), (-30.0, -5.0))
    settings.data.std, settings.data.rgb = (2.0,), (0, 1, 2)
    settings.finetune.classes = ("wild", "farmed")
    shapes = {"s2": (32, 32, 3), "s1": (32, 32, 2), "elevation": (11, 11)}
    runs.save_run(tmp_path / "run", settings, (32, 32, 6), shapes=shapes)
    words = ["predict", "--run", tmp_path / "run", "--image", f"s1={tmp_path / 'radar.tif'}"]
    words += ["--image", f"s2={images[0]}", images[1], "--out", tmp_path / "map.tif"]
    words += ["--elevation", tmp_path / "dem.tif", "--overlap", 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, words)))
        predict.main()
    got = read(tmp_path / "map.tif")[..., 0]
    valid = (pixels[..., 2] > 0) & ~np.isnan(radar[1])
    np.testing.assert_array_equal(got == 255, ~valid)
    with rasterio.open(tmp_path / "map.tif") as source:
        assert source.tags(1)["class_1"] == "farmed"

    model = inference.load(tmp_path / "run")
    window = {
        "s2": pixels[None, 32:64, 32:64],
        "s1": np.moveaxis(radar, 0, -1)[None, 32:64, 32:64],
    }
    with pytest.raises(InputError, match="takes s2, s1, elevation; there is no elevation"):
        model.predict(window)
    with pytest.raises(InputError, match="a dictionary with an array for each"):
        model.predict(pixels[None])
    # Bilinear, so that the chip's heights have to be cut as the map's are.
    from contextlib import ExitStack

    from elev_ssl_jax.data.rasters import open_raster
    from elev_ssl_jax.data.terrain import field_over

    with ExitStack() as stack:
        dem = open_raster(tmp_path / "dem.tif", stack)
        place = GRID @ rasterio.Affine.translation(32, 32)
        window["elevation"] = field_over(tmp_path, dem, place, dem.crs, 32, 11)[None]
    wanted = model.predict(window)[0, :, :26]  # the last window of a row begins at 58
    np.testing.assert_array_equal(wanted, got[32:64, 32:58])

    named = {"s1": [tmp_path / "radar.tif"], "s2": images}
    for given, options, message in (
        (images, {}, "--image gives image; .* takes s2, s1"),
        (named, {}, "needs --elevation"),
        ({**named, "s1": images}, {"elevation": tmp_path / "dem.tif"}, "has 3 bands; .* takes 2"),
    ):
        with pytest.raises(InputError, match=message):
            scenes.map_scene(model, given, out=tmp_path / "no.tif", progress=False, **options)

    # One sensor will do, and a warning says what that means.
    without = tmp_path / "without.tif"
    capsys.readouterr()
    scenes.map_scene(
        *(model, {"s1": named["s1"]}),
        **{"elevation": tmp_path / "dem.tif", "out": without, "overlap": 0, "progress": False},
    )
    assert "warning: there is no s2" in capsys.readouterr().err
    window.pop("s2")
    wanted = model.predict(window)[0, :, :26]
    np.testing.assert_array_equal(wanted, read(without)[32:64, 32:58, 0])


def test_each_tile_is_written_once(folders, tmp_path, monkeypatch, rng):
    bands = rng.integers(1, 6000, (3, 150, 600)).astype(np.uint16)
    image = write(tmp_path / "scene.tif", bands, GRID)
    monkeypatch.setattr(maps, "_TILE", 64)
    monkeypatch.setattr(windows, "_COLUMNS", 256)
    written = []

    class Watched:
        """A raster that tells what is written to it."""

        def __init__(self, raster):
            self.raster = raster

        def write(self, array, window):
            written.append(window.toranges())
            self.raster.write(array, window=window)

        def __getattr__(self, name):
            return getattr(self.raster, name)

    class Files(maps.MapFiles):
        def _create(self, name, *rest):
            super()._create(name, *rest)
            self.rasters[name] = Watched(self.rasters[name])

    monkeypatch.setattr(scenes, "MapFiles", Files)
    model = inference.load(folders / "unet")
    scenes.map_scene(model, [image], out=tmp_path / "map.tif", progress=False)
    count = np.zeros((150, 600), int)
    for (top, bottom), (left, right) in written:
        count[int(top) : int(bottom), int(left) : int(right)] += 1
        assert top % 64 == left % 64 == 0
        assert bottom % 64 == 0 or bottom == 150
        assert right % 64 == 0 or right == 600
    assert (count == 1).all()
