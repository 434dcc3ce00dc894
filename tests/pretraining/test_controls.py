import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elev_ssl_jax import augment
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.pretraining import controls, elevation, loop
from elev_ssl_jax.runtime import batches


@pytest.fixture
def images(rng):
    """Chips of four bands whose brightness and height have nothing to do with each other."""
    stored = rng.integers(100, 3000, (12, 32, 32, 4)).astype(np.uint16)
    heights = rng.normal(800, 300, (12, 8, 8)).astype(np.float32)
    heights[0, :2] = np.nan
    return {"image": stored, "elevation": heights}


@pytest.fixture
def tiny(tiny):
    tiny.data.value_range, tiny.data.rgb = (0.0, 3000.0), (0, 1, 2)
    tiny.data.near_infrared = (3,)
    return tiny


def test_controls_are_what_they_are_called_at_the_elevations_size(tiny, images):
    light = images["image"] / 3000
    infrared, red = light[..., 3], light[..., 0]

    def to_cells(field):  # of a quarter of the size, by a tent of twice a cell's width
        tent = 1 - np.abs((np.arange(32) + 0.5) / 4 - np.arange(8)[:, None] - 0.5)
        tent = np.maximum(tent, 0)
        tent /= tent.sum(axis=1, keepdims=True)
        return np.einsum("hp,bpq,wq->bhw", tent, field, tent)

    heights = images["elevation"].astype(np.float64)
    wanted = {
        "slope": np.hypot(*np.gradient(heights, axis=(1, 2))),
        "brightness": to_cells(light.mean(axis=-1)),
        "ndvi": to_cells((infrared - red) / (infrared + red)),
    }
    plain = heights / tiny.data.elevation_scale
    for name, raw in wanted.items():
        tiny.objective.target = name
        got = np.asarray(controls.make(tiny, images)(images), np.float64)
        raw = np.where(np.isnan(heights), np.nan, raw)
        right = (raw - np.nanmean(raw)) / np.nanstd(raw) * np.nanstd(plain) + np.nanmean(plain)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(right))
        np.testing.assert_allclose(got, right, atol=1e-3, err_msg=name)


def test_the_view_and_its_target_are_turned_together(tiny, images):
    """Brightness is seen: a view of which nothing but the place changes has its own."""
    tiny.objective.update(alpha=1.0, target="brightness")
    tiny.augment.elevation.update(jitter_probability=0.0, grayscale=0.0)
    images["elevation"] = np.nan_to_num(images["elevation"], nan=800.0)
    target = controls.make(tiny, images)
    keys = augment.sample_keys(0, 0, 12)
    make_views = functools.partial(elevation.make_views, tiny, target=target)
    shown, learned = jax.jit(make_views)(keys, images)
    seen = {"image": np.asarray(shown.images[:, 0] * 3000), "elevation": images["elevation"]}
    np.testing.assert_allclose(learned.elevation, target(seen), atol=2e-2)
    assert not np.allclose(learned.elevation, target(images), atol=0.1)


def test_level_and_relief_have_weights_of_their_own(tiny, rng):
    said, true = (jnp.asarray(rng.normal(size=(5, 4, 4)), jnp.float32) for _ in range(2))
    error = np.asarray(said - true, np.float64)
    level = error.mean(axis=(1, 2))
    relief = error - level[:, None, None]
    for weights in ((1.0, 1.0), (0.0, 2.0), (3.0, 0.0), (0.5, 4.0)):
        tiny.loss.level_weight, tiny.loss.relief_weight = weights
        loss, _ = elevation.elevation_loss(tiny, said, true)
        wanted = weights[0] * np.mean(level**2) + weights[1] * np.mean(relief**2)
        assert float(loss) == pytest.approx(wanted, rel=1e-4)


def test_shuffled_chips_have_anothers_elevation_and_always_the_same(images):
    @dataclasses.dataclass
    class Records:
        chips: dict

        def __len__(self):
            return 12

        def __getitem__(self, i):
            return {name: array[i] for name, array in self.chips.items()}

        def arrays(self, *names):
            return {name: self.chips[name] for name in names}

        def nbytes(self, *names):
            return sum(self.chips[name].nbytes for name in names)

    one = batches.shuffled(images, "elevation", 3)
    streamed = batches.shuffled(Records(images), "elevation", 3)
    assert streamed.nbytes("image") == images["image"].nbytes
    whole = streamed.arrays("image", "elevation")
    for i in range(12):
        np.testing.assert_array_equal(one["image"][i], images["image"][i])
        same = [np.array_equal(one["elevation"][i], h, True) for h in images["elevation"]]
        assert sum(same) == 1
        assert not same[i]
        for other in (streamed[i], {name: whole[name][i] for name in whole}):
            for name, array in other.items():
                np.testing.assert_array_equal(array, one[name][i])
    assert not np.array_equal(
        batches.shuffled(images, "elevation", 4)["elevation"], one["elevation"], True
    )


class Writer:
    def write_scalars(self, step, scalars):
        self.last = scalars

    def flush(self):
        pass


@pytest.mark.parametrize("target", ["shuffled", "brightness"])
def test_a_control_is_trained_and_judged_as_far_as_that_means_anything(
    tiny, images, tmp_path, target
):
    tiny.objective.target, tiny.epochs = target, 1
    tiny.data.value_range = (0.0, 3000.0)
    scores = loop.pretrain(tiny, tmp_path, loop.Data(images, images), Writer())
    # Errors in metres are those of what is in metres.
    assert ("elevation_rmse_m" in scores) == (target == "shuffled")
    assert (tmp_path / "elevation.png").exists() == (target == "shuffled")


@pytest.mark.parametrize(
    ("changes", "shapes", "said"),
    [
        ({"data.near_infrared": ()}, {"elevation": (8, 8)}, "near_infrared must say"),
        ({}, {}, "has no elevation to learn, which says how large"),
        ({"data.near_infrared": (7,)}, {"elevation": (8, 8)}, "have 4 bands"),
    ],
)
def test_controls_that_the_data_cannot_have_are_refused(tiny, changes, shapes, said):
    tiny.objective.target = "ndvi"
    tiny.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=said):
        elevation.check(tiny, {"image": (32, 32, 4), **shapes})
