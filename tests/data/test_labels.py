from contextlib import ExitStack

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine, from_origin

from elev_ssl_jax.data import labels

CLASSES = labels.Classes(("a", "b", "c"), {3: 0, 4: 0, 7: 1, 9: 2})
GRID = from_origin(500_000, 800_000, 10, 10)


@pytest.fixture
def opened(tmp_path):
    """Labels of 30 x 40 pixels, which begin at row 5, column 3 of a scene's grid."""
    cover = np.random.default_rng(0).choice([0, 3, 4, 7, 9, 11], (30, 40)).astype(np.uint8)
    path = tmp_path / "cover.tif"
    shape = {"height": 30, "width": 40, "count": 1, "dtype": "uint8", "nodata": 0}
    place = GRID @ Affine.translation(3, 5)
    with rasterio.open(
        path, "w", driver="GTiff", crs="EPSG:32618", transform=place, **shape
    ) as sink:
        sink.write(cover[None])
    scene = {"height": 60, "width": 60, "count": 1, "dtype": "uint8"}
    image = tmp_path / "image.tif"
    with rasterio.open(
        image, "w", driver="GTiff", crs="EPSG:32618", transform=GRID, **scene
    ) as sink:
        sink.write(np.ones((1, 60, 60), np.uint8))
    with ExitStack() as stack:
        grid = stack.enter_context(rasterio.open(image))
        yield labels.Labels(path, CLASSES, grid, image, stack), cover


def test_of_the_scenes_own_grid_as_by_warping_and_as_they_are(opened, monkeypatch):
    both, cover = opened
    whole = np.full((80, 80), 0, np.uint8)
    whole[15:45, 13:53] = cover
    table = np.full(256, 255, np.uint8)
    table[[3, 4, 7, 9]] = 0, 0, 1, 2
    # Inside, across each border, and beyond.
    for row, column in ((10, 8), (-5, 20), (30, 20), (10, -10), (10, 35), (-6, -8), (50, 50)):
        place = GRID @ Affine.translation(column, row)
        mask, unclassed = both.over(place, 20)
        there = whole[row + 10 : row + 30, column + 10 : column + 30]
        np.testing.assert_array_equal(mask, table[there])
        assert unclassed == (there == 11).sum()
        with monkeypatch.context() as patch:
            patch.setattr(labels.Labels, "_place", lambda *_: None)
            warped, unclassed_too = both.over(place, 20)
        np.testing.assert_array_equal(mask, warped)
        assert unclassed == unclassed_too


def test_a_mask_band_hides_labels_on_any_grid(opened, tmp_path):
    _, cover = opened
    hidden = np.zeros(cover.shape, np.uint8)
    hidden[:10] = 255
    path = tmp_path / "masked.tif"
    profile = {"height": 30, "width": 40, "count": 1, "dtype": "uint8", "crs": "EPSG:32618"}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", driver="GTiff", transform=GRID, **profile) as sink,
    ):
        sink.write(cover[None])
        sink.write_mask(hidden)
    with ExitStack() as stack:
        grid = stack.enter_context(rasterio.open(tmp_path / "image.tif"))
        mask, _ = labels.Labels(path, CLASSES, grid, path, stack).over(GRID, 20)
    assert (mask[10:] == 255).all()
    assert (mask[:10] != 255).any()


def test_large_values_are_told_apart(tmp_path):
    large = np.array([[2**31 + 5, 5], [2**32 - 1, 7]], np.uint32)
    path, shape = tmp_path / "large.tif", {"height": 2, "width": 2, "count": 1, "dtype": "uint32"}
    with rasterio.open(
        path, "w", driver="GTiff", crs="EPSG:32618", transform=GRID, **shape
    ) as sink:
        sink.write(large[None])
    classes = labels.parse_classes([f"a={2**31 + 5},7", "b=5"])
    with rasterio.open(path) as grid:
        for move in (Affine.identity(), Affine.translation(0.2, 0)):  # read, and warped
            with ExitStack() as stack:
                mask, without = labels.Labels(path, classes, grid, path, stack).over(GRID @ move, 2)
            np.testing.assert_array_equal(mask, [[0, 1], [255, 0]])
            assert without == 1


@pytest.mark.parametrize(
    "move",
    [
        Affine.translation(0.4, 0),
        Affine.scale(1.01),
        Affine.scale(1, -1) @ Affine.translation(0, -20),
        Affine.rotation(3),
    ],
)
def test_another_grid_is_not_taken_for_the_same(opened, move, monkeypatch):
    both, _ = opened
    place = GRID @ Affine.translation(12, 12) @ move
    found, _ = both.over(place, 20)
    monkeypatch.setattr(labels.Labels, "_place", lambda *_: None)
    np.testing.assert_array_equal(found, both.over(place, 20)[0])
