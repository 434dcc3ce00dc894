import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

from elev_ssl_jax import augment

PLAIN = {
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "jitter_probability": 0.5,
    "grayscale": 0.0,
}
STRONG = {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.2,
    "jitter_probability": 1.0,
    "grayscale": 0.0,
}
CROP = {"crop_scale": (0.7, 1.0), "crop_ratio": (3 / 4, 4 / 3)}


def keys(count, seed=0, step=0):
    return augment.sample_keys(seed, jnp.int32(step), count)


def jitter(images, **how):
    """Compiled as a whole, as in a step; each operation of its own takes longer."""
    color_jitter = jax.jit(functools.partial(augment.color_jitter, **how))
    return np.asarray(color_jitter(keys(len(images)), images))


@pytest.fixture
def images(rng):
    return rng.random((8, 20, 20, 3), np.float32)


def test_draws_depend_on_seed_step_and_position_alone(images):
    make = functools.partial(augment.contrastive_view, flip=0.5, **CROP, **STRONG)
    compiled = jax.jit(make)

    def view(count, **which):
        return compiled(keys(count, **which), images[:count])[0]

    np.testing.assert_allclose(view(8)[:3], view(3), atol=1e-6)
    assert np.abs(view(8) - view(8, step=1)).max() > 0.01
    assert np.abs(view(8) - view(8, seed=1)).max() > 0.01


def torchvision_boxes(rng, count, size, scale, ratio):
    """RandomResizedCrop.get_params, as published: top, left, height, width."""
    height, width = size
    for _ in range(count):
        for _ in range(10):
            area = height * width * rng.uniform(*scale)
            aspect = np.exp(rng.uniform(*np.log(ratio)))
            w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                yield rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
                break
        else:
            w, h = width, height
            if width / height < ratio[0]:
                h = round(w / ratio[0])
            elif width / height > ratio[1]:
                w = round(h * ratio[1])
            yield (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    ("size", "scale"),
    [((100, 100), (0.7, 1.0)), ((200, 300), (0.2, 1.0)), ((200, 500), (0.9, 1.0))],
)
def test_crops_are_distributed_as_torchvisions(rng, size, scale):
    ratio, count = (3 / 4, 4 / 3), 6000
    draw = jax.jit(augment.draw_crops, static_argnums=(1, 2, 3))
    crop = draw(keys(count, seed=int(rng.integers(1000))), size, scale, ratio, 0.5)
    ours = np.stack([crop.top, crop.left, crop.height, crop.width], axis=1).astype(float)
    theirs = np.array(list(torchvision_boxes(rng, count, size, scale, ratio)))
    assert ours.min() >= 0
    assert (ours[:, :2] + ours[:, 2:] <= np.array(size) + 1e-4).all()

    def described(boxes):
        top, left, height, width = boxes.T
        return {
            "area": np.round(height) * np.round(width) / np.prod(size),
            "ratio": np.round(width) / np.round(height),
            "top": top / size[0],
            "left": left / size[1],
        }

    for (name, mine), other in zip(
        described(ours).items(), described(theirs).values(), strict=True
    ):
        error = np.sqrt((mine.var() + other.var()) / count)
        assert abs(mine.mean() - other.mean()) < 5 * error + 0.003, name
        if other.std() < 1e-9:  # always the box at the centre
            continue
        # Chance exceeds 0.05 once in a million times. Theirs are whole pixels, ours are not, so
        # that more of theirs lie at the very border.
        grid = np.linspace(min(mine.min(), other.min()), max(mine.max(), other.max()), 12)[1:]
        shares = [np.searchsorted(np.sort(x), grid + 1e-9, "right") / count for x in (mine, other)]
        assert np.abs(shares[0] - shares[1]).max() < 0.07, name
    assert 0.45 < crop.flip_rows.mean() < 0.55
    assert 0.45 < crop.flip_columns.mean() < 0.55


def test_resized_crop_equals_pytorch(images):
    crop = augment.Crop(
        *(np.float32([v]) for v in (3, 5, 14, 11)), np.array([True]), np.array([False])
    )
    got = augment.resized_crop(images[:1], crop)[0]
    # The kernel may look one pixel past the crop, into the image: give PyTorch the same.
    whole = torch.from_numpy(images[:1]).permute(0, 3, 1, 2)
    grid_y = (3 + (torch.arange(20) + 0.5) * 14 / 20) / 20 * 2 - 1
    grid_x = (5 + (torch.arange(20) + 0.5) * 11 / 20) / 20 * 2 - 1
    grid = torch.stack(torch.meshgrid(grid_x, grid_y, indexing="xy"), -1)[None]
    expected = torch.nn.functional.grid_sample(
        whole, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    expected = expected[0].permute(1, 2, 0).numpy()[::-1]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_whole_image_crop_changes_nothing(images):
    whole = np.full(8, 20, np.float32)
    zero, no = np.zeros(8, np.float32), np.zeros(8, bool)
    crop = augment.Crop(zero, zero, whole, whole, no, no)
    np.testing.assert_allclose(augment.resized_crop(images, crop), images, atol=1e-6)


def test_elevation_follows_the_flips(rng):
    elevation = rng.random((40, 10, 10)).astype(np.float32)
    elevation[0, 2, 3] = np.nan
    images = np.repeat(np.repeat(np.nan_to_num(elevation), 2, 1), 2, 2)[..., None]
    make = jax.jit(functools.partial(augment.elevation_view, flip=0.5, **PLAIN))
    views, target = make(keys(40), images, elevation)
    np.testing.assert_array_equal(views[:, ::2, ::2, 0], np.nan_to_num(target))
    flipped = sum(not np.array_equal(views[i], images[i]) for i in range(40))
    assert 20 < flipped < 40  # three in four
    assert np.isnan(target).sum() == 1


def test_hue_equals_colorsys(rng):
    colors = np.concatenate([rng.random((30, 3)), [[0.5] * 3, [1, 0, 0], [0, 0, 0], [1, 1, 0]]])
    shift = rng.uniform(-0.5, 0.5)
    expected = []
    for color in colors:
        h, s, v = colorsys.rgb_to_hsv(*color)
        expected.append(colorsys.hsv_to_rgb((h + shift) % 1, s, v))
    got = augment.adjust_hue([*colors.astype(np.float32).T], np.float32(shift))
    np.testing.assert_allclose(np.stack(got, axis=-1), expected, atol=2e-6)


def reference_jitter(image, draws):
    """Of one image, in float64, by the strengths of `STRONG`."""
    brightness, contrast, saturation = 1 + 0.4 * (2 * draws[:3] - 1)
    image = np.clip(image * brightness, 0, 1)
    level = (image @ augment.GRAY_WEIGHTS).mean()
    image = np.clip(contrast * image + (1 - contrast) * level, 0, 1)
    gray = (image @ augment.GRAY_WEIGHTS)[..., None]
    hsv = rgb_to_hsv(np.clip(saturation * image + (1 - saturation) * gray, 0, 1))
    hsv[..., 0] = (hsv[..., 0] + 0.2 * (2 * draws[3] - 1)) % 1
    return hsv_to_rgb(hsv)


@pytest.mark.parametrize("level", [0, 1, 3])
def test_jitter_is_the_same_however_it_is_compiled(images, level):
    # Parts of a program may round a colour otherwise; its hue must not turn on that.
    color_jitter = jax.jit(
        functools.partial(augment.color_jitter, **STRONG),
        compiler_options={"xla_backend_optimization_level": level},
    )
    draws = np.asarray(augment.draw_uniform(keys(8), 6), np.float64).T
    pairs = zip(images.astype(np.float64), draws, strict=True)
    expected = [reference_jitter(image, drawn) for image, drawn in pairs]
    np.testing.assert_allclose(color_jitter(keys(8), images), expected, atol=1e-5)


def test_other_color_operations_are_the_published_ones(images):
    images64, factor = images.astype(np.float64), 1.3
    gray = images64 @ [0.2989, 0.587, 0.114]
    mean = gray.mean((1, 2))[:, None, None, None]
    for got, expected in (
        (augment.adjust_brightness(images, factor), images64 * factor),
        (augment.adjust_contrast(images, factor), factor * images64 + (1 - factor) * mean),
        (
            np.stack(augment.adjust_saturation([*np.moveaxis(images, -1, 0)], factor), axis=-1),
            factor * images64 + (1 - factor) * gray[..., None],
        ),
    ):
        np.testing.assert_allclose(got, np.clip(expected, 0, 1), atol=1e-6)


def test_jitter_and_grayscale_act_as_often_as_asked(images):
    many = jnp.broadcast_to(images[0], (400, 20, 20, 3))
    half = jitter(many, **{**STRONG, "jitter_probability": 0.5})
    changed = np.abs(half - many).max((1, 2, 3)) > 1e-6
    assert 0.4 < changed.mean() < 0.6
    gray = jitter(many, **{**PLAIN, "grayscale": 0.2})
    equal_bands = np.ptp(gray, axis=-1).max((1, 2)) < 1e-6
    assert 0.12 < equal_bands.mean() < 0.28


def test_other_bands_keep_their_colors_apart(rng):
    images = rng.random((8, 6, 6, 5), np.float32)
    strong = {**STRONG, "grayscale": 1.0}
    got = jitter(images, **strong)
    assert np.ptp(got, axis=-1).mean() > 0.1  # no grayscale without named bands
    contrast = augment.adjust_contrast(images, 0.0)
    np.testing.assert_allclose(
        contrast, np.broadcast_to(images.mean((1, 2), keepdims=True), images.shape), atol=1e-6
    )
    named = jitter(images, **strong, rgb=(4, 2, 0))
    np.testing.assert_allclose(named[..., 4], named[..., 0], atol=1e-6)
    assert np.abs(named[..., 1] - named[..., 0]).max() > 0.01


def test_colors_are_those_of_the_bands_that_are_named(rng):
    images = rng.random((8, 6, 6, 3), np.float32)
    strong = {**STRONG, "grayscale": 0.3}
    turned = jitter(images[..., ::-1], **strong, rgb=(2, 1, 0))
    np.testing.assert_allclose(turned[..., ::-1], jitter(images, **strong), atol=1e-6)
    # Of several bands the colours have the contrast of an image of them alone, the others theirs.
    more = np.concatenate([images, rng.random((8, 6, 6, 2), np.float32)], axis=-1)
    contrast = {**PLAIN, "contrast": 0.4, "jitter_probability": 1.0}
    got = jitter(more, **contrast, rgb=(0, 1, 2))
    alone = jitter(images, **contrast)
    np.testing.assert_allclose(got[..., :3], alone, atol=1e-6)
    assert np.abs(got[..., 3:] - more[..., 3:]).max() > 0.001


def test_the_eight_views_are_those_of_numpy_and_move_masks_along(rng):
    image = rng.normal(size=(1, 6, 6, 2)).astype(np.float32)
    images = np.repeat(image, 8, axis=0)
    views = np.asarray(augment.dihedral(jnp.asarray(images), jnp.arange(8)))
    for which, view in enumerate(views):
        expected = image[0]
        if which & 1:
            expected = expected[::-1]
        if which & 2:
            expected = expected[:, ::-1]
        if which & 4:
            expected = expected.transpose(1, 0, 2)
        np.testing.assert_array_equal(view, expected)
    assert len({view.tobytes() for view in views}) == 8
    masks = augment.dihedral(jnp.asarray(images[..., 0]), jnp.arange(8))
    np.testing.assert_array_equal(masks, views[..., 0])
    np.testing.assert_array_equal(augment.dihedral(jnp.arange(8), jnp.arange(8)), np.arange(8))


def test_drawn_views_follow_their_probabilities():
    keys = augment.sample_keys(0, 0, 4000)
    assert set(np.asarray(augment.draw_dihedral(keys, flip=0.0, transpose=0.0))) == {0}
    assert set(np.asarray(augment.draw_dihedral(keys, flip=0.0, transpose=1.0))) == {4}
    counts = np.bincount(augment.draw_dihedral(keys, flip=0.5, transpose=0.5))
    np.testing.assert_allclose(counts / 4000, 1 / 8, atol=0.03)
