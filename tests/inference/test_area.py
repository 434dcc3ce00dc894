import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.warp
import shapely
from rasterio.transform import from_origin

from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference import area

# The worked example of Olofsson et al. (2014), their table 8: deforestation, forest gain, stable
# forest, stable other, told by rows; 900,000 ha were mapped.
TOLD = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
MAPPED = np.array([200_000, 150_000, 3_200_000, 6_450_000]) * 0.09


def test_the_published_example_comes_out():
    found = area.estimate(TOLD.T[None], MAPPED, alone=True)
    hectares = 900_000 * np.stack([found.estimated, (found.high - found.low) / 2])
    # As the paper prints them, to their last digit of rounded proportions.
    np.testing.assert_allclose(hectares[0], [21_158, 11_686, 285_770, 581_386], rtol=2e-4)
    np.testing.assert_allclose(hectares[1], [6_158, 3_756, 15_510, 16_282], rtol=2e-3)
    np.testing.assert_allclose(found.mapped, MAPPED / MAPPED.sum())


def test_intervals_over_blocks_are_those_of_blocks_drawn_again(rng):
    """Blocks that err together leave more doubt than as many targets that err alone."""
    right, wrong = np.array([[40, 0], [0, 40]]), np.array([[20, 20], [20, 20]])
    together = np.stack([right, wrong] * 6)
    apart = np.stack([(right + wrong) // 2] * 12)
    mapped = np.array([0.3, 0.7])
    wide, narrow = (area.estimate(m, mapped, alone=False) for m in (together, apart))
    np.testing.assert_allclose(wide.estimated, narrow.estimated)
    assert (narrow.high - narrow.low < 1e-9).all()
    # The share of wrong blocks is binomial; a class's area is linear in it.
    shares = rng.binomial(12, 0.5, 20_000) / 12
    first = 0.3 * (1 - shares / 2) + 0.7 * shares / 2
    low, high = np.quantile(first, (0.025, 0.975))
    np.testing.assert_allclose([wide.low[0], wide.high[0]], [low, high], atol=0.01)
    few = area.estimate(together[:4], mapped, alone=False)
    assert np.isnan(few.low).all()


def test_a_class_that_was_never_told_counts_as_it_is_mapped():
    matrix = np.array([[30, 10, 0], [0, 20, 0], [0, 5, 0]])  # the third class was never told
    found = area.estimate(matrix[None], np.array([1.0, 2.0, 1.0]), alone=False)
    told_second = np.array([10, 20, 5]) / 35
    wanted = 0.25 * np.array([1, 0, 0]) + 0.5 * told_second + 0.25 * np.array([0, 0, 1])
    np.testing.assert_allclose(found.estimated, wanted)
    assert found.estimated.sum() == pytest.approx(1)


def write_map(path, classes, crs, transform):
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "crs": crs, "transform": transform}
    height, width = classes.shape
    with rasterio.open(path, "w", height=height, width=width, nodata=255, **profile) as raster:
        raster.write(classes, 1)


def test_pixels_have_the_size_that_their_grid_says(tmp_path, rng):
    classes = rng.choice([0, 1, 255], (90, 70)).astype(np.uint8)
    counts = np.array([(classes == k).sum() for k in (0, 1)])
    path = tmp_path / "map.tif"
    for crs, side, unit, corner in (
        ("EPSG:32612", 30.0, 1.0, (500_000, 4_100_000)),
        ("EPSG:2263", 100.0, 1200 / 3937, (1_000_000, 200_000)),
    ):
        write_map(path, classes, crs, from_origin(*corner, side, side))
        with rasterio.open(path) as source:
            np.testing.assert_allclose(
                area.of_map(path, source, 2), counts * (side * unit) ** 2, rtol=1e-3
            )
    # Web Mercator makes areas at 60 degrees four times what they are.
    top = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(10, 60)
    write_map(path, np.zeros((4, 4), np.uint8), "EPSG:3857", from_origin(*top, 10, 10))
    with rasterio.open(path) as source:
        corners = rasterio.warp.transform_bounds(3857, 4326, *source.bounds)
        whole = pyproj.Geod(ellps="WGS84").geometry_area_perimeter(shapely.box(*corners))[0]
        found = area.of_map(path, source, 1)
    np.testing.assert_allclose(found, abs(whole), rtol=5e-3)  # its formulas are a sphere's
    assert found[0] < 0.26 * 1600
    # Of degrees a cell is the smaller the nearer to a pole: on a sphere, by the sine's difference.
    one = np.zeros((2, 3), np.uint8)
    one[1] = 1
    write_map(path, one, "EPSG:4047", from_origin(10, 61, 1, 1))
    with rasterio.open(path) as source:
        found = area.of_map(path, source, 2)
    radians = np.deg2rad([61, 60, 59])
    wanted = 3 * 6_371_007**2 * np.deg2rad(1) * -np.diff(np.sin(radians))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    write_map(path, one, None, from_origin(0, 2, 1, 1))
    with rasterio.open(path) as source, pytest.raises(InputError, match="no coordinate system"):
        area.of_map(path, source, 2)
