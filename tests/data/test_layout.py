import pickle

import numpy as np
import pandas as pd
import pytest
import rasterio

from elev_ssl_jax.data import layout
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
        ("", "not a readable CSV"),
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
