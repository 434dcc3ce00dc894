"""Augmented views, made on the device for a whole batch at once.

Every draw comes from a key of its sample's own, so an image's augmentation depends on the seed,
the step and its position in the batch alone. Images are float32 [B, H, W, C] in 0..1.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R BT.601 luma, as torchvision rounds it
RGB = (0, 1, 2)
Colors = Sequence[jax.Array]  # red, green and blue, of one shape
_CROP_CANDIDATES = 10  # of torchvision's RandomResizedCrop


class Crop(NamedTuple):
    """Where a view lies in its image: a box in pixels, then flips; each field is [B]."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array
    flip_rows: jax.Array
    flip_columns: jax.Array


def sample_keys(
    seed: int | jax.Array, step: jax.Array | int, batch_size: int, first: jax.Array | int = 0
) -> jax.Array:
    """One random key for each position of the batch of a step: keys [batch_size].

    `first` is the position of the first, where a batch is a part of something larger.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(batch_size))


def contrastive_view(
    keys: jax.Array,
    images: jax.Array,
    *,
    crop_scale: tuple[float, float],
    crop_ratio: tuple[float, float],
    flip: float,
    **color: Any,
) -> tuple[jax.Array, Crop]:
    """One view for the contrastive branch: random resized crop, flips, jitter, grayscale.

    Args:
      keys: One key for each image, [B].
      images: float [B, H, W, C] in 0..1.
      crop_scale: Smallest and largest share of the area that a crop keeps.
      crop_ratio: Smallest and largest width over height of a crop.
      flip: Probability of each of the two flips.
      **color: See `color_jitter`.

    Returns:
      The views [B, H, W, C] and the crops they show.
    """
    geometry_keys, color_keys = _split(keys)
    size = images.shape[1], images.shape[2]
    crop = draw_crops(geometry_keys, size, crop_scale, crop_ratio, flip)
    return color_jitter(color_keys, resized_crop(images, crop), **color), crop


def draw_crops(
    keys: jax.Array,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: float,
) -> Crop:
    """Boxes, drawn as torchvision's RandomResizedCrop draws them, and flips.

    Area and ratio are drawn together until a box fits into the image, ten times at most; after
    that it is the largest box at the centre whose ratio is allowed. (Since wide boxes of a large
    area don't fit, crops are smaller on average than the middle of `scale`.) Only that boxes are
    not rounded to whole pixels: what decides by a hair would differ between devices.

    Args:
      keys: One key for each image, [B].
      size: Height and width of the images.
      scale: Smallest and largest share of the area.
      ratio: Smallest and largest width over height.
      flip: Probability of each of the two flips.
    """
    height, width = size
    draws = draw_uniform(keys, 2 * _CROP_CANDIDATES + 4)
    areas, ratios, (top, left, *flips) = jnp.split(draws, (_CROP_CANDIDATES, 2 * _CROP_CANDIDATES))

    area = height * width * (scale[0] + (scale[1] - scale[0]) * areas)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    drawn = jnp.exp(low + (high - low) * ratios)
    heights, widths = jnp.sqrt(area / drawn), jnp.sqrt(area * drawn)
    fits = (heights < height + 0.5) & (widths < width + 0.5)  # as those that round to the image do
    first = jnp.argmax(fits, axis=0, keepdims=True)
    any_fits = fits.any(axis=0)

    def choose(candidates, most, otherwise):
        drawn = jnp.minimum(jnp.take_along_axis(candidates, first, 0)[0], most)
        return jnp.where(any_fits, drawn, jnp.minimum(most, otherwise))

    crop_height = choose(heights, height, width / ratio[0])
    crop_width = choose(widths, width, height * ratio[1])
    return Crop(
        top=(height - crop_height) * jnp.where(any_fits, top, 0.5),
        left=(width - crop_width) * jnp.where(any_fits, left, 0.5),
        height=crop_height,
        width=crop_width,
        flip_rows=flips[0] < flip,
        flip_columns=flips[1] < flip,
    )


def elevation_view(
    keys: jax.Array, images: jax.Array, elevation: jax.Array, *, flip: float, **color: Any
) -> tuple[jax.Array, jax.Array]:
    """The view for the elevation branch: flips, which the target follows, jitter, grayscale.

    Args:
      keys: One key for each image, [B].
      images: float [B, H, W, C] in 0..1.
      elevation: [B, h, w], any unit.
      flip: Probability of each of the two flips.
      **color: See `color_jitter`.

    Returns:
      The views [B, H, W, C] and their elevation [B, h, w].
    """
    geometry_keys, color_keys = _split(keys)
    draws = draw_uniform(geometry_keys, 2)
    for axis in (1, 2):
        flipped = draws[axis - 1] < flip
        images = jnp.where(flipped[:, None, None, None], jnp.flip(images, axis), images)
        elevation = jnp.where(flipped[:, None, None], jnp.flip(elevation, axis), elevation)
    return color_jitter(color_keys, images, **color), elevation


def draw_dihedral(keys: jax.Array, *, flip: float, transpose: float) -> jax.Array:
    """Which of the eight views of `dihedral` each image gets: int [B].

    `flip` and `transpose` are the probabilities of each of the two flips and of the transposition.
    """
    chosen = draw_uniform(keys, 3) < jnp.asarray([flip, flip, transpose])[:, None]
    return jnp.sum(chosen * jnp.asarray([1, 2, 4])[:, None], axis=0)


def dihedral(images: jax.Array, which: jax.Array) -> jax.Array:
    """Flips and transposes images [B, H, W, ...]; 1, 2 and 4 add up in `which` [B].

    1 flips the rows, 2 the columns, 4 then transposes (square images only). Each view has the
    pixels of its image, and a mask that is turned alike still belongs to it. A class for the
    whole image, [B], stays what it is.
    """
    if images.ndim == 1:
        return images
    bits = which.reshape(-1, *[1] * (images.ndim - 1))
    images = jnp.where(bits & 1, jnp.flip(images, 1), images)
    images = jnp.where(bits & 2, jnp.flip(images, 2), images)
    if images.shape[1] == images.shape[2]:
        images = jnp.where(bits & 4, jnp.swapaxes(images, 1, 2), images)
    return images


def resized_crop(images: jax.Array, crop: Crop) -> jax.Array:
    """Cuts the crops out, resizes them (bilinear) to the image's size, and flips them.

    Both steps act on rows and on columns alone, so that each is one small matrix product.
    """
    _, height, width, _ = images.shape
    rows = resample_matrix(crop.top, crop.height, crop.flip_rows, height, height)
    columns = resample_matrix(crop.left, crop.width, crop.flip_columns, width, width)
    return jnp.einsum("bip,bjq,bpqc->bijc", rows, columns, images)


def color_jitter(
    keys: jax.Array,
    images: jax.Array,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    jitter_probability: float,
    grayscale: float,
    rgb: tuple[int, int, int] | None = None,
    uncolored: int = 0,
) -> jax.Array:
    """Jitter, then grayscale, with torchvision's definitions of the operations.

    The order is fixed: brightness, contrast, saturation, hue. Factors are uniform in
    [1 - x, 1 + x], the hue's shift in [-x, x] turns of the colour circle.

    Args:
      keys: One key for each image, [B].
      images: float [B, H, W, C] in 0..1.
      brightness: Strength x; 0 leaves the operation out, here and below.
      contrast: Strength.
      saturation: Strength.
      hue: Strength, at most 0.5.
      jitter_probability: Of the four operations together.
      grayscale: Probability of replacing the colour bands by their luma.
      rgb: Which bands are red, green and blue. None means the three of a three-band image, and no
        saturation, hue and grayscale at another count. Contrast acts on bands that are no colour
        each by itself.
      uncolored: How many bands at the end are left as they are: they are not light.

    Returns:
      Images of the same shape, in 0..1 but for those bands.
    """
    draws = draw_uniform(keys, 6)[:, :, None, None, None]
    original, light = images, images.shape[-1] - uncolored
    rgb = rgb or (RGB if light == 3 else None)

    def factor(draw, strength):
        return 1 + strength * (2 * draw - 1)

    chosen = draws[4] < jitter_probability
    jittered = images
    if brightness:
        jittered = adjust_brightness(jittered, factor(draws[0], brightness))
    if contrast:
        jittered = adjust_contrast(jittered, factor(draws[1], contrast), rgb or ())
    images = jnp.where(chosen, jittered, images)
    if rgb is not None:
        # The rest is of the colours alone, which are joined once, at the end.
        before = colors = _colors(images, rgb)
        if saturation:
            colors = adjust_saturation(colors, factor(draws[2], saturation))
        if hue:
            colors = adjust_hue(colors, hue * (2 * draws[3] - 1))
        colors = [jnp.where(chosen, *pair) for pair in zip(colors, before, strict=True)]
        if grayscale:
            gray = luma(colors)
            colors = [jnp.where(draws[5] < grayscale, gray, color) for color in colors]
        images = _with_colors(images, rgb, colors)
    if uncolored:  # by selection, as in `_with_colors`
        images = jnp.where(jnp.arange(images.shape[-1]) < light, images, original)
    return images


def luma(colors: Colors) -> jax.Array:
    """Weighted sum of red, green and blue."""
    red, green, blue = (w * color for w, color in zip(GRAY_WEIGHTS, colors, strict=True))
    return red + green + blue


def adjust_brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies by the factor."""
    return jnp.clip(images * factor, 0, 1)


def adjust_contrast(
    images: jax.Array, factor: jax.Array, rgb: tuple[int, ...] | None = None
) -> jax.Array:
    """Moves away from (factor > 1) or towards the mean: that of the luma, or a band's own.

    Bands that are not in `rgb` are no colours; None is the three of a three-band image.
    """
    level = jnp.mean(images, axis=(-3, -2), keepdims=True)
    if rgb is None and images.shape[-1] == 3:
        rgb = RGB
    if rgb:
        level = _with_colors(level, rgb, [luma(_colors(level, rgb))] * 3)
    return _blend(images, level, factor)


def adjust_saturation(colors: Colors, factor: jax.Array) -> list[jax.Array]:
    """Moves red, green and blue away from (factor > 1) or towards each pixel's luma."""
    gray = luma(colors)
    return [_blend(band, gray, factor) for band in colors]


def adjust_hue(colors: Colors, shift: jax.Array) -> list[jax.Array]:
    """Turns the hue of HSV of red, green and blue by `shift` turns (0.5: the opposite colour)."""
    red, green, blue = colors
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    safe = jnp.where(chroma > 0, chroma, 1)
    # Which is largest, by comparing the three: a compiler may compute `value` from colours that it
    # rounds otherwise than those it is compared with. Where two are alike both formulas agree.
    hue = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / safe,
        jnp.where(green >= blue, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )

    # Smith's hexcone the other way, one formula for the three bands: each falls from `value` by
    # `chroma` over one sixth of the circle, stays, and comes back.
    def band(offset):
        sector = (offset + hue + 6 * shift) % 6
        return value - chroma * jnp.clip(jnp.minimum(sector, 4 - sector), 0, 1)

    return [band(offset) for offset in (5.0, 3.0, 1.0)]


def _colors(images, rgb):
    """The colour bands, [..., 1] each: slices, where indexing by a tuple would gather."""
    return [images[..., i : i + 1] for i in rgb]


def _with_colors(images, rgb, colors):
    """Images whose colour bands are these.

    By selection: XLA (jax 0.10) mixes up slices that are joined again where a batch is split over
    devices within a loop.
    """
    band = jnp.arange(images.shape[-1])
    for i, color in zip(rgb, colors, strict=True):
        images = jnp.where(band == i, color, images)
    return images


def _blend(images, other, factor):
    return jnp.clip(factor * images + (1 - factor) * other, 0, 1)


def _split(keys):
    return jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)


def draw_uniform(keys, count):
    """`count` draws in 0..1 for each sample: [count, B]."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)), out_axes=1)(keys)


def resample_matrix(start, length, flip, size, new_size):
    """Bilinear weights [B, new_size, size] from `length` pixels at `start` to `new_size` pixels."""
    out = jnp.arange(new_size)
    if flip is not None:
        out = jnp.where(flip[:, None], new_size - 1 - out, out)
    # Pixel centres lie at half-integers; beyond the image its edge goes on.
    position = start[:, None] + (out + 0.5) * (length / new_size)[:, None] - 0.5
    position = jnp.clip(position, 0, size - 1)
    return jnp.maximum(1 - jnp.abs(position[:, :, None] - jnp.arange(size)), 0)
