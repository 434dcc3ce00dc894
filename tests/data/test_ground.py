import numpy as np
import pandas as pd
import pytest

from elev_ssl_jax.data import ground


def table(*boxes, crs="EPSG:32618"):
    """Chips of (left, bottom, right, top) or (left, bottom, right, top, crs)."""
    rows = [box if len(box) == 5 else (*box, crs) for box in boxes]
    return pd.DataFrame(rows, columns=["left", "bottom", "right", "top", "crs"])


def sharing(chips):
    every = np.arange(len(chips))
    return list(ground.shared(chips, every, every))


def test_neighbours_only_touch_and_a_row_of_pixels_is_shared():
    chips = table((0, 0, 1000, 1000), (1000, 0, 2000, 1000), (3000, 0, 4000, 1000),
                  (3990, 990, 4990, 1990))  # fmt: skip
    assert sharing(chips) == [False, False, True, True]
    a, b = np.array([2]), np.array([0, 1])
    assert list(ground.shared(chips, a, b)) == [False]
    assert list(ground.shared(chips, a, np.array([3]))) == [True]
    assert list(ground.shared(chips, a, a[:0])) == [False]


def test_degrees_go_on_at_180():
    chips = table(
        (179.9, 0, 180.1, 1),
        (-180.0, 0, -179.95, 1),  # within the first
        (-179.9, 0, -179.8, 1),  # touches the first
        (10, 0, 11, 1),
        (179.95, 2, -179.95, 3),
        (179.8, 2.5, 179.96, 3),
        (539.96, 2, 540.2, 2.2),
        crs="EPSG:4326",
    )
    assert sharing(chips) == [True, True, False, False, True, True, True]


def test_a_chip_across_180_in_one_of_several_systems_leaves_its_latitude_alone():
    # UTM zone 1 begins at 180 degrees, at 166,021 m on the equator.
    chips = table(
        (165_000, 10_000, 167_000, 12_000, "EPSG:32601"),  # across 180
        (833_000, 10_000, 835_000, 12_000, "EPSG:32660"),  # the same from the other side
        (500_000, 10_000, 502_000, 12_000, "EPSG:32630"),  # far away, same latitude
        (179.999, 0.1, 180.001, 0.101, "EPSG:4326"),
        (-179.5, 0.1, -179.49, 0.101, "EPSG:4326"),
    )
    assert sharing(chips) == [True, True, False, True, False]


def test_chips_side_by_side_in_several_systems_share_nothing():
    # Turned by the meridians' convergence their boxes in degrees overlap.
    row = [(700_000 + 1000 * i, 6_500_000, 701_000 + 1000 * i, 6_501_000) for i in range(4)]
    other = (500_000, 100_000, 501_000, 101_000, "EPSG:32619")
    assert sharing(table(*row, other)) == [False] * 5
    # Zone 19 shows the second chip's middle, too.
    from pyproj import Transformer

    x, y = Transformer.from_crs(32618, 32619, always_xy=True).transform(701_500, 6_500_500)
    seen = (x - 100, y - 100, x + 100, y + 100, "EPSG:32619")
    assert sharing(table(*row, seen)) == [False, True, False, False, True]


def test_chips_around_a_pole_are_compared():
    chips = table(
        (-500, -500, 500, 500, "EPSG:3413"),
        (-1000, -1000, -400, -400, "EPSG:3413"),
        (500, 500, 1000, 1000, "EPSG:3413"),
        (120.0, 89.998, 120.5, 89.999, "EPSG:4326"),
        (120.0, 80, 120.5, 81, "EPSG:4326"),
    )
    assert sharing(chips) == [True, True, False, True, False]


@pytest.mark.parametrize("seed", range(3))
def test_as_every_pair_compared_by_itself(seed, monkeypatch):
    monkeypatch.setattr(ground, "_AT_ONCE", 7)  # more chips are compared in several goes
    rng = np.random.default_rng(seed)
    left, bottom = rng.uniform(0, 3000, (2, 60))
    chips = table(*zip(left, bottom, left + 200, bottom + 300, strict=True))
    x, y = np.abs(left[:, None] - left), np.abs(bottom[:, None] - bottom)
    expected = (x < 200) & (y < 300) & ~np.eye(60, dtype=bool)
    assert sharing(chips) == list(expected.any(axis=1))
