import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elev_ssl_jax import augment, matching
from elev_ssl_jax.runtime import sharding

BATCH = 16


# As programs, since operation by operation takes longer to compile.
draw_patches = jax.jit(matching.draw_patches, static_argnums=2, static_argnames=("count", "size"))
patch_means = jax.jit(matching.patch_means)


@functools.partial(jax.jit, static_argnums=1)
def random_crops(keys, size, scale):
    return augment.draw_crops(keys, size, scale, (3 / 4, 4 / 3), 0.5)


def draw_crops(seed, size, scale, flips):
    """Two crops an image, of a given share of its area, flipped as told."""
    crops = []
    for i in (0, 1):
        keys = augment.sample_keys(seed, i, BATCH)
        crop = random_crops(keys, size, (scale, min(1.0, scale + 0.2)))
        rows, columns = (jnp.full(BATCH, flip) for flip in flips[i])
        crops.append(crop._replace(flip_rows=rows, flip_columns=columns))
    return tuple(crops)


def boxes(shares):
    """First and last pixel, and the sum, of each row or column share."""
    touched = shares > 0
    return touched.argmax(-1), shares.shape[-1] - 1 - touched[..., ::-1].argmax(-1), shares.sum(-1)


@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.sampled_from([(40, 40), (50, 36)]),
    scale=st.floats(0.5, 1),
    flips=st.tuples(*[st.tuples(st.booleans(), st.booleans())] * 2),
    patch=st.integers(1, 16),
)
def test_the_two_patches_of_a_pair_show_the_same_ground(seed, size, scale, flips, patch):
    crops = draw_crops(seed, size, scale, flips)
    keys = augment.sample_keys(seed, 2, BATCH)
    patches = matching.draw_patches(keys, crops, size, count=4, size=patch)
    # An image of its own coordinates: the mean over a patch says where the patch lies.
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1) + 0.5
    image = jnp.broadcast_to(jnp.asarray(grid, jnp.float32), (BATCH, *size, 2))
    views = jnp.stack([augment.resized_crop(image, crop) for crop in crops], axis=1)
    means = np.asarray(patch_means(views, patches.rows, patches.columns))

    valid = np.asarray(patches.valid)
    difference = np.abs(means[:, 0] - means[:, 1])[valid]
    assert difference.size == 0 or difference.max() < 0.5
    for i, crop in enumerate(crops):
        lowest = np.stack([crop.top, crop.left], -1)[:, None]
        span = np.stack([crop.height, crop.width], -1)[:, None]
        margin = patch / 2 * span / np.asarray(size)
        inside = (means[:, i] >= lowest + margin - 0.5) & (
            means[:, i] <= lowest + span - margin + 0.5
        )
        assert inside[valid].all()
    for shares in (np.asarray(patches.rows), np.asarray(patches.columns)):
        first, last, total = boxes(shares)
        np.testing.assert_allclose(total, 1, atol=1e-4)  # nothing of a patch is cut off
        assert (last - first <= patch).all()
        assert (shares <= 1 / patch + 1e-6).all()


def whole(size, batch=BATCH):
    """The crop that is the image."""
    zero = jnp.zeros(batch)
    no = jnp.zeros(batch, bool)
    return augment.Crop(zero, zero, zero + size[0], zero + size[1], no, no)


def test_without_augmentation_the_two_patches_are_identical(rng):
    image = jnp.asarray(rng.normal(size=(BATCH, 24, 30, 3)), jnp.float32)
    keys = augment.sample_keys(1, 0, BATCH)
    crop = whole((24, 30))
    patches = draw_patches(keys, (crop, crop), (24, 30), count=3, size=5)
    means = patch_means(jnp.stack([image, image], axis=1), patches.rows, patches.columns)
    np.testing.assert_array_equal(means[:, 0], means[:, 1])


def test_patch_means_equal_a_loop_over_pixels(rng):
    maps = rng.normal(size=(2, 2, 12, 12, 3)).astype(np.float32)
    keys = augment.sample_keys(2, 0, 2)
    crop = whole((12, 12), 2)
    patches = draw_patches(keys, (crop, crop), (12, 12), count=2, size=4)
    means = patch_means(jnp.asarray(maps), patches.rows, patches.columns)
    for b, v, p in np.ndindex(2, 2, 2):
        weight = np.multiply.outer(
            np.asarray(patches.rows[b, v, p], np.float64), np.asarray(patches.columns[b, v, p])
        )
        expected = (maps[b, v] * weight[..., None]).sum((0, 1))
        np.testing.assert_allclose(means[b, v, p], expected, rtol=1e-4, atol=1e-6)


def overlaps(patches):
    """How many pairs of patches of each image overlap in the first view: [B]."""
    row_first, row_last, _ = boxes(np.asarray(patches.rows[:, 0]))
    column_first, column_last, _ = boxes(np.asarray(patches.columns[:, 0]))
    count = 0
    for i, j in zip(*np.triu_indices(row_first.shape[1], 1), strict=True):
        # Patches that share a border may both have a part in its pixel.
        rows = np.minimum(row_last[:, i], row_last[:, j]) - np.maximum(
            row_first[:, i], row_first[:, j]
        )
        columns = np.minimum(column_last[:, i], column_last[:, j]) - np.maximum(
            column_first[:, i], column_first[:, j]
        )
        count = count + ((rows > 0) & (columns > 0))
    return count


def test_patches_avoid_one_another_while_there_is_room():
    crop = whole((100, 100), 64)
    keys = augment.sample_keys(3, 0, 64)
    roomy = draw_patches(keys, (crop, crop), (100, 100), count=4, size=16)
    assert not overlaps(roomy).any()
    # One patch of 12 leaves room in 20 pixels for no other, wherever the first one lies within.
    crop = whole((20, 20), 64)
    tight = draw_patches(keys, (crop, crop), (20, 20), count=2, size=12)
    assert overlaps(tight).all()
    assert tight.valid.all()


def test_views_that_share_no_room_are_told():
    corner = whole((32, 32), 2)._replace(
        top=jnp.asarray([0.0, 0.0]),
        left=jnp.asarray([0.0, 0.0]),
        height=jnp.asarray([16.0, 16.0]),
        width=jnp.asarray([16.0, 16.0]),
    )
    apart = corner._replace(top=jnp.asarray([16.0, 4.0]))
    keys = augment.sample_keys(4, 0, 2)
    patches = draw_patches(keys, (corner, apart), (32, 32), count=4, size=16)
    np.testing.assert_array_equal(patches.valid, [False, True])
    assert np.isfinite(patches.rows).all()
    assert np.isfinite(patches.columns).all()


@pytest.mark.parametrize("devices", [2, 8])
def test_patches_do_not_depend_on_the_number_of_devices(batch_mesh, devices):
    crops = draw_crops(5, (40, 40), 0.7, ((True, False), (False, False)))
    keys = augment.sample_keys(6, 0, BATCH)
    split = sharding.split(batch_mesh(devices))
    placed = jax.device_put((keys, crops), split)
    alone, sharded = (
        draw_patches(*at, (40, 40), count=4, size=8) for at in ((keys, crops), placed)
    )
    jax.tree.map(np.testing.assert_array_equal, alone, sharded)
