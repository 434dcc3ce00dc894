import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elev_ssl_jax import sensor_scale, sensors
from elev_ssl_jax.config import default
from elev_ssl_jax.errors import InputError


@pytest.fixture
def chips(rng):
    """Optics with a value for no data, radar with NaN, and heights."""
    s2 = rng.integers(1, 8000, (5, 12, 12, 3)).astype(np.int16)
    s2[1, :4, 2] = -1
    s2[2] = -1  # nothing at all
    s1 = rng.normal(-12, 6, (5, 12, 12, 2)).astype(np.float32)
    s1[3, 5:, :, 1] = np.nan
    elevation = rng.uniform(0, 3000, (5, 4, 4)).astype(np.float32)
    elevation[0, 1] = np.nan
    return {"s2": s2, "s1": s1, "elevation": elevation}


@pytest.fixture
def config():
    config = default()
    config.data.inputs = ("s2", "s1", "elevation")
    config.data.value_range = (*[(0.0, 6000.0)] * 3, (-25.0, 0.0), (-30.0, -5.0))
    config.data.nodata = (-1.0, np.nan)
    return config


def reference(values, low, high, nodata):
    """One band of one chip in float64."""
    missing = np.isnan(values) | (values == nodata)
    scaled = (np.clip(values, low, high) - low) / (high - low)
    if missing.all():
        return np.zeros_like(scaled)
    return np.where(missing, scaled[~missing].mean(), scaled)


def test_bands_are_scaled_each_by_its_range_and_filled_by_their_own_mean(chips, config):
    joined = jax.jit(lambda c: sensors.join(sensors.of(config), c))(chips)
    assert joined.shape == (5, 12, 12, 6)
    assert joined.dtype == jnp.float32
    for chip in range(5):
        for band, (name, part) in enumerate(
            [("s2", 0), ("s2", 1), ("s2", 2), ("s1", 0), ("s1", 1)]
        ):
            nodata = -1 if name == "s2" else np.nan
            values = chips[name][chip, ..., part].astype(np.float64)
            wanted = reference(values, *config.data.value_range[band], nodata)
            np.testing.assert_allclose(joined[chip, ..., band], wanted, atol=1e-6)
    heights = np.nan_to_num(chips["elevation"] / 500)
    wanted = jax.image.resize(heights, (5, 12, 12), "linear")
    np.testing.assert_allclose(joined[..., 5], wanted, rtol=1e-6)


def test_one_pair_for_all_bands_is_the_plain_scale(rng):
    images = np.array([[[[0, 6000, 9000, 3000]]]], np.uint16)
    got = sensors.join(sensors.of(default()), {"image": images})
    np.testing.assert_allclose(got.ravel(), [0, 1, 1, 0.5])


def test_the_network_sees_standardised_units_and_heights_as_they_are(chips, config):
    chips["s2"] = np.abs(chips["s2"])
    chips["s1"], config.data.nodata = np.nan_to_num(chips["s1"]), ()
    config.data.mean, config.data.std = (1000.0, 1100.0, 1200.0, -12.0, -18.0), (500.0,)
    inputs = sensors.of(config)
    shown = np.asarray(sensors.shown(inputs, chips))
    values = np.concatenate([chips["s2"], chips["s1"]], axis=-1).astype(np.float64)
    low, high = np.array(config.data.value_range).T
    wanted = (np.clip(values, low, high) - config.data.mean) / 500
    np.testing.assert_allclose(shown[..., :5], wanted, atol=1e-5)
    joined = sensors.join(inputs, chips)
    np.testing.assert_array_equal(shown[..., 5], joined[..., 5])

    # The same numbers as a file for other frameworks has them.
    low, high, factor, shift = sensors.affine(inputs, 6)
    grid = np.asarray(jax.image.resize(np.nan_to_num(chips["elevation"]), (5, 12, 12), "linear"))
    values = np.concatenate([values, grid[..., None]], axis=-1)
    np.testing.assert_allclose(np.clip(values, low, high) * factor + shift, shown, atol=1e-4)


@pytest.mark.parametrize("with_std", [False, True])
def test_affine_numbers_are_the_scale(rng, with_std):
    config = default()
    if with_std:
        config.data.std = (2000.0,)
    images = rng.uniform(-100, 8000, (2, 4, 4, 3)).astype(np.float32)
    low, high, factor, shift = sensors.affine(sensors.of(config), 3)
    wanted = sensors.shown(sensors.of(config), {"image": images})
    np.testing.assert_allclose(np.clip(images, low, high) * factor + shift, wanted, atol=1e-5)


def test_what_is_measured_holds_all_but_the_ends_and_leaves_out_nodata(chips, config):
    config.data.value_range = config.data.mean = config.data.std = ("auto",)
    found = sensor_scale.measure(config, chips)
    values = chips["s2"][..., 1].astype(float)
    low, high = np.percentile(values[values != -1], (0.5, 99.5))
    assert found["value_range"][1] == pytest.approx((low, high), rel=1e-5)
    radar = chips["s1"][..., 1]
    inside = np.clip(radar[~np.isnan(radar)], *found["value_range"][4])
    assert found["mean"][4] == pytest.approx(inside.mean(), rel=1e-4)
    assert found["std"][4] == pytest.approx(inside.std(), rel=1e-4)
    assert {len(v) for v in found.values()} == {5}
    config.data.update(found)
    assert sensor_scale.measure(config, chips) == {}
    shown = sensors.shown(sensors.of(config), chips)[..., :5]
    assert np.abs(np.mean(shown[jnp.array([0, 1, 3, 4])], axis=(0, 1, 2))).max() < 0.3

    chips["s2"][...] = -1
    config.data.std = ("auto",)
    with pytest.raises(InputError, match=r"band 0 of s2 of .* has no values to measure"):
        sensor_scale.measure(config, chips)


@pytest.mark.parametrize(
    ("first", "last"), [(287_000.0, 287_000.4), (12_345_678.0, 12_345_678.0), (-3.0, -3.0)]
)
def test_what_is_measured_of_values_that_lie_close_together_can_be_used(first, last, config):
    values = np.linspace(first, last, 400).reshape(1, 20, 20, 1).astype(np.float32)
    config.data.update({"inputs": ("s1",), "nodata": ()})
    config.data.value_range = config.data.mean = config.data.std = ("auto",)
    config.data.update(sensor_scale.measure(config, {"s1": values}))
    shown = np.asarray(sensors.shown(sensors.of(config), {"s1": values}))
    assert np.isfinite(shown).all()
    assert np.ptp(shown) >= 2 * (first < last)


def test_values_of_which_the_range_leaves_nothing_are_refused(config, rng):
    radar = rng.normal(-12, 4, (5, 20, 20, 2)).astype(np.float32)
    config.data.update({"inputs": ("s1",), "nodata": (), "value_range": (0.0, 6000.0)})
    with pytest.raises(InputError, match=r"value_range is \(0.0, 6000.0\), but .* has s1 from -\d"):
        sensors.check_values(config, {"s1": radar})
    config.data.value_range = (-25.0, 0.0)
    sensors.check_values(config, {"s1": radar})


def test_ranges_of_other_bands_are_refused_before_anything_is_measured(chips, config):
    config.data.value_range, config.data.std = ((0.0, 1.0), (0.0, 2.0)), ("auto",)
    with pytest.raises(InputError, match=r"config.data.value_range is of 2 bands; .* have 5"):
        sensor_scale.measure(config, chips)


def test_images_of_different_sizes_are_refused(config):
    shapes = {"s2": (12, 12, 3), "s1": (6, 6, 2), "elevation": (4, 4)}
    with pytest.raises(InputError, match=r"s2, s1, elevation of .* have different sizes"):
        sensors.check(config, shapes)
    sensors.check(config, {**shapes, "s1": (12, 12, 2)})


def test_bands_that_are_picked_are_those_of_all_bands_in_the_order_asked_for(chips, config):
    whole = np.asarray(sensors.join(sensors.of(config), chips))
    config.data.bands, config.data.rgb = (4, 2, 0), (0, 2, 4)
    inputs, shapes = sensors.of(config), {name: a.shape[1:] for name, a in chips.items()}
    sensors.check(config, shapes)
    joined = np.asarray(sensors.join(inputs, chips))
    np.testing.assert_array_equal(joined, whole[..., [4, 2, 0, 5]])
    assert sensors.channels(inputs, shapes) == joined.shape[-1]
    assert sensors.colors(config) == (2, 1, 0)
    config.data.update({"mean": (1.0, 2.0, 3.0, 4.0, 5.0), "std": (10.0,)})
    shown = np.asarray(sensors.standardize(sensors.of(config), joined))
    low, high = np.array(config.data.value_range)[[4, 2, 0]].T
    wanted = (low + joined[..., :3] * (high - low) - [5, 3, 1]) / 10
    np.testing.assert_allclose(shown[..., :3], wanted, rtol=1e-4, atol=1e-4)

    config.data.bands = (5,)
    with pytest.raises(InputError, match=r"config.data.bands is \(5,\), but s2, s1, .* have 5"):
        sensors.check(config, shapes)


def test_a_range_for_each_sensor_is_one_for_each_of_its_bands(chips, config):
    config.data.value_range = (("s1", -25.0, 0.0), ("s2", 0.0, 6000.0), ("other", 0.0, 1.0))
    assert sensor_scale.is_open(config)
    config.data.update(sensor_scale.measure(config, chips))
    assert config.data.value_range == (*[(0.0, 6000.0)] * 3, *[(-25.0, 0.0)] * 2)
    assert not sensor_scale.is_open(config)
    config.data.value_range = (("s1", -25.0, 0.0),)
    with pytest.raises(InputError, match=r"value_range names s1, not s2"):
        sensor_scale.measure(config, chips)


def test_bands_are_divided_by_their_maximum_over_the_crop_that_is_seen(chips, config):
    chips["s2"] = np.abs(chips["s2"])
    chips["s1"], config.data.nodata = np.nan_to_num(chips["s1"]), ()
    chips["s1"][4, ..., 1] = -60  # nothing comes back: zero throughout
    config.data.update({"scaling": "crop_max", "bands": (0, 3, 4)})
    inputs = sensors.of(config)
    crop = sensors.join(inputs, chips)[:, 2:9, 1:8]
    shown = np.asarray(sensors.standardize(inputs, crop))
    values = np.concatenate([chips["s2"][..., :1], chips["s1"]], axis=-1)[:, 2:9, 1:8]
    low, high = np.array(config.data.value_range)[[0, 3, 4]].T
    lifted = np.clip(values.astype(np.float64), low, high) - low
    wanted = lifted / (lifted.max(axis=(1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(shown[..., :3], wanted, atol=1e-5)
    np.testing.assert_array_equal(shown[..., 3], crop[..., 3])  # elevation
    assert not shown[4, ..., 2].any()


def test_bands_of_which_none_is_left_are_refused(config):
    shapes = {"s2": (8, 8, 3), "s1": (8, 8, 2)}
    config.data.bands = (0, 2, 3)
    assert sensors.of_inputs(config, ("s2",), shapes)["bands"] == (0, 2)
    assert sensors.of_inputs(config, ("s1",), shapes)["bands"] == (0,)
    config.data.bands = (0, 2)
    with pytest.raises(InputError, match=r"data.bands is \(0, 2\), of which none is of s1"):
        sensors.of_inputs(config, ("s1",), shapes)
