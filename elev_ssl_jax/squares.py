"""Squares cut out of chips: the same of every sensor, of the mask and of the elevation."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from elev_ssl_jax.augment import draw_uniform, resample_matrix
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.sensors import FIELDS

# So that the keys of squares are not among those that splitting gives for other draws.
_SQUARES = 0x5C


def draw_squares(keys: jax.Array, size: tuple[int, int], side: int) -> tuple[jax.Array, jax.Array]:
    """Top row and left column, int [B] each, of a square of `side` pixels within each image.

    Args:
      keys: One key for each image, [B].
      size: Height and width of the images.
      side: Of the squares.
    """
    most = jnp.asarray([size[0] - side + 1, size[1] - side + 1])
    places = jnp.floor(draw_uniform(keys, 2) * most[:, None]).astype(jnp.int32)
    return places[0], places[1]


def cut_squares(images: jax.Array, squares: tuple[jax.Array, jax.Array], side: int) -> jax.Array:
    """The squares of `draw_squares` of images [B, H, W, ...]: [B, side, side, ...]."""

    def cut(image, top, left):
        rest = image.ndim - 2
        return lax.dynamic_slice(image, (top, left, *[0] * rest), (side, side, *image.shape[2:]))

    return jax.vmap(cut)(images, *squares)


def cut_chips(
    chips: Mapping[str, Any], side: int, keys: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The same square of all that a chip has: a random one, or, without keys, that at the centre.

    Args:
      chips: Images [B, H, W, C], masks [B, H, W], `FIELDS` [B, h, w], and what has no extent.
      side: Of the square in pixels; 0 is the whole chip.
      keys: One key for each chip, [B].
    """
    height, width = next(array.shape[1:3] for array in chips.values() if array.ndim == 4)
    if side in (0, height) and side in (0, width):
        return dict(chips)
    if keys is None:
        count = len(next(iter(chips.values())))
        top, left = (jnp.full(count, (long - side) // 2) for long in (height, width))
        return cut_at(chips, (top, left), side)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, _SQUARES)
    return cut_at(chips, draw_squares(keys, (height, width), side), side)


def cut_at(
    chips: Mapping[str, Any], squares: tuple[jax.Array, jax.Array], side: int
) -> dict[str, jax.Array]:
    """As `cut_chips`, the squares whose top row and left column, int [B] each, are given."""
    height, width = next(array.shape[1:3] for array in chips.values() if array.ndim == 4)

    def cut(name, array):
        if name in FIELDS:
            return cut_elevation(array, squares, side, (height, width))
        return cut_squares(array, squares, side) if array.ndim > 2 else array

    return {name: cut(name, array) for name, array in chips.items()}


def cut_shapes(shapes: Mapping[str, tuple[int, ...]], side: int) -> dict[str, tuple[int, ...]]:
    """The shapes of what `cut_chips` gives of one chip.

    Raises:
      InputError: The chips are smaller.
    """
    for name, shape in shapes.items():
        if len(shape) == 3 and side > min(shape[:2]):
            raise InputError(
                f"config.augment.crop_size is {side}; {name} has {shape[0]} x {shape[1]} pixels, "
                f"so it must be at most {min(shape[:2])}"
            )
    few = {n: jax.ShapeDtypeStruct((1, *shape), jnp.float32) for n, shape in shapes.items()}
    cut = jax.eval_shape(partial(cut_chips, side=side), few)
    return {name: array.shape[1:] for name, array in cut.items()}


def cut_elevation(
    elevation: jax.Array,
    squares: tuple[jax.Array, jax.Array],
    side: int,
    size: tuple[int, int],
) -> jax.Array:
    """The elevation of squares, bilinear, as coarse as before: [B, h, w] to [B, h', w'].

    So are other fields. A cell that takes a part from a missing one is missing.

    Args:
      elevation: Of whole images, NaN where missing.
      squares: From `draw_squares`.
      side: Of the squares in pixels.
      size: Height and width of the images in pixels.
    """
    weights = []
    for start, cells, pixels in zip(squares, elevation.shape[1:], size, strict=True):
        share = cells / pixels  # cells in a pixel
        length = jnp.full(start.shape, side * share)
        weights.append(
            resample_matrix(start * share, length, None, cells, max(1, round(side * share)))
        )
    known = ~jnp.isnan(elevation)

    def resample(values):
        product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
        return product("bip,bjq,bpq->bij", *weights, values)

    values = resample(jnp.where(known, elevation, 0))
    return jnp.where(resample(1.0 * ~known) > 0, jnp.nan, values)
