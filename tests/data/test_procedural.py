import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from elev_ssl_jax.data import procedural
from elev_ssl_jax.data.procedural import LAND_COVER


def test_scenes_are_seeded_and_within_their_ranges():
    image, dem, labels = procedural.make_scene(3, 96)
    for ours, again in zip((image, dem, labels), procedural.make_scene(3, 96), strict=True):
        np.testing.assert_array_equal(ours, again)
    assert not np.array_equal(image, procedural.make_scene(4, 96)[0])
    assert image.shape == (3, 96, 96)
    assert image.dtype == np.uint16
    assert dem.shape == (32, 32)
    assert 0 <= dem.min() < dem.max() < 5000
    assert image.min() >= 1
    assert image.max() <= 10_000


def test_both_classes_are_common_and_elevation_matters():
    scenes = [procedural.make_scene(seed, 48) for seed in range(60)]
    shares = np.array([labels.mean() for _, _, labels in scenes])
    heights = np.array([dem.mean() for _, dem, _ in scenes])
    assert 0.3 < shares.mean() < 0.7
    assert np.corrcoef(shares, heights)[0, 1] < -0.4


@pytest.fixture(scope="module")
def scenes():
    return [procedural.make_two_sensor_scene(seed, 96) for seed in range(24)]


def test_two_sensors_see_one_place_each_in_its_way(scenes):
    radar, optics, dem, labels = scenes[3]
    for ours, again in zip(scenes[3], procedural.make_two_sensor_scene(3, 96), strict=True):
        np.testing.assert_array_equal(ours, again)
    assert not np.array_equal(radar, scenes[4][0])
    assert (radar.shape, radar.dtype) == ((2, 96, 96), np.float32)
    assert (optics.shape, optics.dtype) == ((13, 96, 96), np.uint16)
    assert dem.shape == (32, 32)
    assert (labels.shape, labels.dtype) == ((96, 96), np.uint8)
    assert -45 < radar.min() < radar.max() < 10
    every = np.bincount(np.concatenate([s[3].ravel() for s in scenes]), minlength=8)
    assert every.min() > 0.02 * every.sum()
    # Speckle is gamma distributed: over a class, sigma0 in linear units differs by its looks.
    water = 10 ** (radar[0][labels == np.argmax(np.bincount(labels.ravel()))] / 10)
    assert 0.3 < water.std() / water.mean() < 0.9


def confusion(scenes, bands):
    """How often each pair of classes is mixed up, by means over 5 x 5 pixels, scenes apart."""

    def pixels(some):
        values, classes = [], []
        for radar, optics, _, labels in some:
            image = np.concatenate([radar, np.log(optics)])[bands]
            tiles = image[:, :95, :95].reshape(len(image), 19, 5, 19, 5)
            kinds = labels[:95, :95].reshape(19, 5, 19, 5)
            pure = (kinds == kinds[:, 2:3, :, 2:3]).all(axis=(1, 3))
            values.append(tiles.mean(axis=(2, 4))[:, pure].T)
            classes.append(kinds[:, 2, :, 2][pure])
        return np.concatenate(values), np.concatenate(classes)

    half = len(scenes) // 2
    model = LinearDiscriminantAnalysis().fit(*pixels(scenes[:half]))
    values, classes = pixels(scenes[half:])
    said = model.predict(values)

    def mixed(one, other):
        one, other = LAND_COVER.index(one), LAND_COVER.index(other)
        those = np.isin(classes, (one, other))
        wrong = (said != classes) & np.isin(said, (one, other))
        return wrong[those].mean()

    return (said == classes).mean(), mixed


def test_some_classes_only_radar_tells_apart_and_some_only_optics(scenes):
    radar, radar_mixes = confusion(scenes, [0, 1])
    optics, optics_mixes = confusion(scenes, [*range(2, 15)])
    both, both_mixes = confusion(scenes, [*range(15)])
    assert optics_mixes("Forest", "Shrubland") > 0.3 > 0.15 > both_mixes("Forest", "Shrubland")
    assert optics_mixes("Urban", "Barren") > 0.15 > 0.1 > both_mixes("Urban", "Barren")
    assert radar_mixes("Grassland", "Croplands") > 0.15 > 0.1 > both_mixes("Grassland", "Croplands")
    assert radar_mixes("Forest", "Wetlands") > 0.15 > 0.1 > both_mixes("Forest", "Wetlands")
    assert both > max(radar, optics) + 0.1
