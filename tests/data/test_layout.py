import os
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import rasterio
from tfds_nwrc import layout

from elev_ssl_jax.errors import InputError
from tests.data import reference


@pytest.fixture
def folder(tmp_path):
    reference.write_folder(tmp_path, count=6, size=12, elevation_size=4)
    return tmp_path


def edit(folder, **changes):
    """Changes row 0 of metadata.csv."""
    rows = pd.read_csv(folder / "metadata.csv", dtype=str)
    for name, value in changes.items():
        rows.loc[0, name] = value
    rows.to_csv(folder / "metadata.csv", index=False)


def test_legal_exclusions_are_left_out_and_tiles_and_blocks_read_from_paths(folder):
    rows = layout.read_metadata(folder)
    assert len(rows) == 6
    assert list(rows["tile"][:3]) == ["18NVN", "18NWN", "18NVM"]
    assert rows["block"][1] == "18NWN/18NWN_1_0"


@pytest.mark.parametrize("column", ["Image", "Elevation", "Mask"])
@pytest.mark.parametrize("path", ["../../../etc/passwd", "/etc/passwd", "a/../../x.npy"])
def test_paths_must_stay_in_the_folder(folder, column, path):
    edit(folder, **{column: path})
    with pytest.raises(InputError, match=f"{column} .* leaves the folder"):
        layout.read_metadata(folder)


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (folder / "Dataset" / "away").symlink_to(outside)
    edit(folder, Image="away/chip.npy")
    with pytest.raises(InputError, match="leaves the folder"):
        layout.read_metadata(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "metadata.csv can't be read"),
        ("a,b\n1,2\n", "no column Id"),
        ("Id,Image,Elevation,Mask\n", "lists no chips"),
        ("Id,Image,Elevation,Mask\n1,a,b,c\n1,d,e,f\n", "Id 1 more than once"),
        ("Id,Image,Elevation,Mask\n1,a,,c\n", "row without"),
    ],
)
def test_malformed_metadata_are_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=r"metadata.csv not found"):
        layout.read_metadata(tmp_path)
    (tmp_path / "metadata.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        layout.read_metadata(tmp_path)


def test_images_come_channels_last_without_time_and_with_the_bands_asked_for(tmp_path, rng):
    chip = rng.integers(0, 7000, (5, 8, 9)).astype(np.int16)
    np.save(tmp_path / "a.npy", chip)
    np.save(tmp_path / "b.npy", np.stack([chip, chip + 1]))
    for name in ("a", "b"):
        image = layout.read_image(tmp_path / f"{name}.npy", (3, 1))
        assert image.dtype == np.uint16
        np.testing.assert_array_equal(image, chip[[3, 1]].transpose(1, 2, 0))
    np.save(tmp_path / "c.npy", chip + 0.4)
    np.testing.assert_array_equal(layout.read_image(tmp_path / "c.npy"), chip.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 8), np.uint16), "shape"),
        (np.zeros((2, 2, 3, 8, 8), np.uint16), "shape"),
        (np.zeros((3, 0, 8), np.uint16), "shape"),
        (np.zeros((2, 8, 8), np.uint16), "2 bands"),
        (np.full((3, 8, 8), -1, np.int16), "outside 0..65535"),
        (np.full((3, 8, 8), 70000, np.int32), "outside 0..65535"),
        (np.full((3, 8, 8), np.nan, np.float32), "not finite"),
        (np.full((3, 8, 8), 0.5, np.float32), "multiply it by 10000"),
        (np.full((3, 8, 8), 1j), "type complex"),
        (np.full((3, 8, 8), "x"), "type"),
    ],
)
def test_bad_images_are_named(tmp_path, array, message):
    np.save(tmp_path / "chip.npy", array)
    with pytest.raises(InputError, match=rf"chip.npy .*{message}"):
        layout.read_image(tmp_path / "chip.npy", (0, 1, 2))


def test_broken_and_pickled_images_are_refused_and_never_run(tmp_path):
    path = tmp_path / "chip.npy"
    with pytest.raises(InputError, match="not found"):
        layout.read_image(path)
    np.save(path, np.zeros((3, 8, 8), np.uint16))
    whole = path.read_bytes()
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return marker.touch, ()

    np.save(tmp_path / "object.npy", np.array([Evil()], object), allow_pickle=True)
    for content in (
        b"",
        whole[:50],
        whole[:-10],
        b"no array",
        pickle.dumps(Evil()),
        (tmp_path / "object.npy").read_bytes(),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"chip.npy is truncated or not a plain .npy array"):
            layout.read_image(path)
    assert not marker.exists()


def write_tif(path, array, **profile):
    height, width = array.shape
    profile = {"count": 1, "height": height, "width": width, "dtype": array.dtype} | profile
    with rasterio.open(path, "w", driver="GTiff", **profile) as sink:
        sink.write(array, 1)


def test_elevation_may_be_a_pixel_off_and_in_parts_missing(tmp_path):
    path = tmp_path / "elevation.tif"
    ramp = np.tile(np.linspace(0, 330, 34, dtype=np.float32), (33, 1))
    write_tif(path, ramp)
    elevation = layout.read_elevation(path, (33, 33))
    assert elevation.shape == (33, 33)
    assert elevation.dtype == np.float32
    np.testing.assert_allclose(elevation[5], np.linspace(0, 330, 33), atol=6)
    integers = np.full((33, 33), 700, np.int16)
    integers[3, 4], integers[5, 6] = -9999, -32768
    write_tif(path, integers, nodata=-9999)
    elevation = layout.read_elevation(path, (33, 33))
    assert np.isnan(elevation).sum() == 2
    assert np.nanmax(elevation) == 700
    with pytest.raises(InputError, match=r"elevation.tif is 33 x 33 cells; 20 x 20"):
        layout.read_elevation(path, (20, 20))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"elevation.tif is truncated"):
        layout.read_elevation(path, (33, 33))


def test_masks_become_two_classes_and_unlabelled(tmp_path):
    path = tmp_path / "mask.tif"
    write_tif(path, np.array([[0, 1], [2, 255]], np.uint8))
    np.testing.assert_array_equal(layout.read_mask(path, (2, 2)), [[0, 0], [1, 255]])
    with pytest.raises(InputError, match=r"mask.tif is 2 x 2"):
        layout.read_mask(path, (3, 3))
    write_tif(path, np.array([[0, 9]], np.uint8))
    with pytest.raises(InputError, match="has the value 9"):
        layout.read_mask(path, (1, 2))


def test_resampling_blends_no_void_that_is_not_declared(tmp_path):
    path = tmp_path / "elevation.tif"
    plain = np.full((34, 33), 1500, np.int16)
    plain[10:20, 10:20] = -32768
    plain[30, 5] = -9999
    write_tif(path, plain)
    elevation = layout.read_elevation(path, (33, 33))
    known = elevation[~np.isnan(elevation)]
    np.testing.assert_allclose(known, 1500, atol=0.01)
    assert 85 <= np.isnan(elevation).sum() <= 115


def test_resampling_is_bilinear(tmp_path):
    path = tmp_path / "elevation.tif"
    rows, columns = np.mgrid[:35, :32]
    write_tif(path, (10 * rows + 3 * columns).astype(np.float32))
    elevation = layout.read_elevation(path, (33, 33))
    rows, columns = np.mgrid[:33, :33] + 0.5
    expected = 10 * (rows * 35 / 33 - 0.5) + 3 * (columns * 32 / 33 - 0.5)
    np.testing.assert_allclose(elevation[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-2)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("left", "nan", "no finite numbers"),
        ("top", "inf", "no finite numbers"),
        ("right", "", "no finite numbers"),
        ("bottom", "x", "no finite numbers"),
        ("right", "-5", "left, bottom, right, top are needed"),
        ("top", "0", "left, bottom, right, top are needed"),
        ("crs", "", "has no crs"),
        ("crs", "http://127.0.0.1:9/crs", "has the crs 'http"),
        ("crs", "/etc/passwd", "has the crs '/etc/passwd'"),
        ("crs", "EPSG:99999999", "unknown crs"),
    ],
)
def test_bounds_that_are_no_places_are_named_with_their_row(folder, column, value, message):
    rows = pd.read_csv(folder / "metadata.csv", dtype=str)
    for i, name in enumerate(layout.BOUNDS):
        rows[name] = str(i)
    rows["crs"] = "EPSG:32618"
    rows.to_csv(folder / "metadata.csv", index=False)
    assert len(layout.read_metadata(folder)) == 6
    rows.loc[3, column] = value
    rows.to_csv(folder / "metadata.csv", index=False)
    with pytest.raises(InputError, match=rf"metadata.csv: row 5 \(Id 3\) .*{message}"):
        layout.read_metadata(folder)


def memory_of(code, *args):
    """Peak memory of a Python program in MiB, over that of its imports, and its message."""
    program = """
import resource, sys
from pathlib import Path
from tfds_nwrc import layout
from elev_ssl_jax.errors import InputError
import rasterio
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
try:
    %s
except InputError as error:
    print(error)
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program % code, *args], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    *message, mib = done.stdout.splitlines()
    return "\n".join(message), float(mib)


@pytest.mark.parametrize("kind", ["size", "blocks"])
def test_a_small_file_that_unpacks_to_gigabytes_is_refused_before_it_does(tmp_path, kind):
    path = tmp_path / "mask.tif"
    side = 40_000 if kind == "size" else 20
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "compress": "deflate"}
    profile |= {"tiled": True, "sparse_ok": True}
    profile |= {"blockxsize": 512, "blockysize": 512} if kind == "size" else {
        "blockxsize": 40_000, "blockysize": 32_000}  # fmt: skip
    with rasterio.open(path, "w", width=side, height=side, **profile):
        pass
    assert path.stat().st_size < 200_000
    message, mib = memory_of("layout.read_mask(Path(sys.argv[1]), (20, 20))", path)
    assert "mask.tif" in message
    assert mib < 50
    message, mib = memory_of("layout.read_elevation(Path(sys.argv[1]), (20, 20))", path)
    assert "mask.tif" in message
    assert mib < 50


def test_a_header_that_promises_more_than_the_file_holds_takes_no_memory(tmp_path):
    path = tmp_path / "chip.npy"
    for shape, size in (((3, 40_000, 40_000), 128), ((3, 40_000, 40_000), 10 * 2**30),
                        ((100_000, 100, 100), 4 * 2**30), ((-3, 10, 10), 128)):  # fmt: skip
        with path.open("wb") as file:
            header = {"descr": "<u2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(size)  # the file's end is a hole
        message, mib = memory_of("layout.read_image(Path(sys.argv[1]))", path)
        assert "chip.npy" in message
        assert mib < 50
    # Of many bands and dates those asked for are read.
    with path.open("wb") as file:
        shape = (20, 10_000, 100, 100)
        np.lib.format.write_array_header_1_0(file, header | {"shape": shape})
        file.truncate(4 * 10**9 + 128)
    message, mib = memory_of("print(layout.read_image(Path(sys.argv[1]), (2, 1)).shape)", path)
    assert message == "(100, 100, 2)"
    assert mib < 50


def test_an_image_of_another_size_is_refused_before_it_is_read(tmp_path):
    np.save(tmp_path / "chip.npy", np.zeros((3, 8, 9), np.uint16))
    with pytest.raises(InputError, match=r"chip.npy is 8 x 9 pixels; the first chip is 8 x 8"):
        layout.read_image(tmp_path / "chip.npy", None, (8, 8))


@pytest.mark.parametrize("name", ["chip.npy", "elevation.tif", "mask.tif"])
def test_pipes_and_devices_are_no_chips(tmp_path, name):
    read = {
        "chip.npy": lambda path: layout.read_image(path),
        "elevation.tif": lambda path: layout.read_elevation(path, (3, 3)),
        "mask.tif": lambda path: layout.read_mask(path, (3, 3)),
    }[name]
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is not a regular file"):
        read(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=f"{name} is not a regular file"):
        read(tmp_path / name)
