"""Local matching (GLCNet, arXiv 2106.10605, section III-C): the same ground in two views.

Where a view lies in its image is known, so patches that show the same ground in both follow in
closed form, for a whole batch at once.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from elev_ssl_jax.augment import Crop

_LATTICE = 32  # patch centres to choose from, along a side of the ground that both views show


class Patches(NamedTuple):
    """Square patches of two views, each by the share it has in every row and column of pixels."""

    rows: jax.Array  # float32 [B, 2, P, H], summing to 1 over H
    columns: jax.Array  # float32 [B, 2, P, W]
    valid: jax.Array  # bool [B]; False where no patch fits into what both views show


class _Axis(NamedTuple):
    """Two views along one axis: pixel p of a view lies at start + scale * p of the image."""

    start: jax.Array  # [B, 2]
    scale: jax.Array  # [B, 2]
    flip: jax.Array  # bool [B, 2]; flips follow the crop
    pixels: int  # of the view


def draw_patches(
    keys: jax.Array, crops: tuple[Crop, Crop], view_size: tuple[int, int], *, count: int, size: int
) -> Patches:
    """Draws points that both views show, and the patches around them.

    A patch has `size` x `size` pixels in either view, and lies wholly inside. The patches of an
    image don't overlap while there is room for one that doesn't; after that, the next is one that
    overlaps as few as can be.

    Args:
      keys: One key for each image, [B].
      crops: Where the two views lie in the image.
      view_size: Rows and columns of a view, and of the image.
      count: Patches an image, P.
      size: Side of a patch in pixels.
    """
    height, width = view_size
    crop = jax.tree.map(lambda *pair: jnp.stack(pair, axis=-1), *crops)
    vertical = _Axis(crop.top, crop.height / height, crop.flip_rows, height)
    horizontal = _Axis(crop.left, crop.width / width, crop.flip_columns, width)

    offset_keys, rank_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    offset = jax.vmap(lambda key: jax.random.uniform(key, (2, 1)))(offset_keys)
    y, side_y, room_y = _lattice(vertical, size, offset[:, 0])
    x, side_x, room_x = _lattice(horizontal, size, offset[:, 1])

    # The points in random order; those on ground that is taken come after all others.
    order = jax.vmap(lambda key: jax.random.uniform(key, (_LATTICE, _LATTICE)))(rank_keys)
    centres = []
    for _ in range(count):
        first = jnp.argmin(order.reshape(len(order), -1), axis=-1, keepdims=True)
        row, column = jnp.divmod(first, _LATTICE)
        centre_y, centre_x = jnp.take_along_axis(y, row, 1), jnp.take_along_axis(x, column, 1)
        centres.append((centre_y, centre_x))
        taken_y, taken_x = jnp.abs(y - centre_y) < side_y, jnp.abs(x - centre_x) < side_x
        order += taken_y[:, :, None] & taken_x[:, None, :]
    centre_y, centre_x = (jnp.concatenate(c, axis=-1) for c in zip(*centres, strict=True))
    return Patches(
        _shares(vertical, size, centre_y), _shares(horizontal, size, centre_x), room_y & room_x
    )


def patch_means(maps: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Means of maps [..., H, W, C] over their patches: float32 [..., P, C].

    A box is separable, so that the mean is two small matrix products.

    Args:
      maps: Of samples and views, in any order.
      rows: Shares of the patches in rows of pixels, [..., P, H], as in `Patches`.
      columns: In columns, [..., P, W].
    """
    wide = partial(jnp.einsum, preferred_element_type=jnp.float32)
    with jax.named_scope("patch_means"):
        over_rows = wide("...ph,...hwc->...pwc", rows.astype(maps.dtype), maps)
        return wide("...pw,...pwc->...pc", columns, over_rows)


def _lattice(axis, size, offset):
    """Possible centres [B, L], a patch's side [B, 1] (both in image pixels), and if there is room.

    `offset` [B, 1] in 0..1 shifts the centres by up to their distance.
    """
    side = size * axis.scale
    low = jnp.max(axis.start + side / 2, axis=-1, keepdims=True)
    high = jnp.min(axis.start + axis.pixels * axis.scale - side / 2, axis=-1, keepdims=True)
    centres = low + (high - low) * (jnp.arange(_LATTICE) + offset) / _LATTICE
    return centres, jnp.max(side, axis=-1, keepdims=True), (low <= high)[:, 0]


def _shares(axis, size, centres):
    """Shares [B, 2, P, pixels] of patches around `centres` [B, P], which are in image pixels."""
    in_view = (centres[:, None] - axis.start[..., None]) / axis.scale[..., None]
    in_view = jnp.where(axis.flip[..., None], axis.pixels - in_view, in_view)
    low = jnp.clip(in_view - size / 2, 0, axis.pixels - size)[..., None]  # rounding, no room
    pixel = jnp.arange(axis.pixels)
    overlap = jnp.minimum(pixel + 1, low + size) - jnp.maximum(pixel, low)
    return jnp.clip(overlap, 0, 1) / size
