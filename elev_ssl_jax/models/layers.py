"""Convolution, max-pooling and upsampling as in PyTorch's networks."""

from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Initialised for ReLU by the fan-out (He et al., arXiv 1502.01852), as in torchvision.
Conv = partial(
    nn.Conv,
    use_bias=False,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
)


def max_pool(images: jax.Array) -> jax.Array:
    """Largest of 3 x 3 pixels at stride 2: [B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), C].

    Of equals the first row's, and in it the first, gets the gradient. A windowed maximum, which a
    TPU is built for, has a select-and-scatter for a gradient. That is slow on a CPU and adds in no
    fixed order on a GPU, where shifted copies are compared.
    """
    return lax.platform_dependent(images, tpu=_max_of_window, default=_max_of_shifted)


def pool(images: jax.Array) -> jax.Array:
    """Largest of 2 x 2 pixels: [B, H, W, C] to [B, H // 2, W // 2, C]."""
    height, width = (side // 2 * 2 for side in images.shape[1:3])
    corners = [images[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
    return reduce(_maximum, corners)


def upsample(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """To the nearest pixel, as PyTorch's "nearest": [B, h, w, C] to [B, *size, C].

    Row i is row floor(i h / size[0]) of the input. As products with matrices of zeros and ones,
    whose gradient is a product again rather than a scatter; the values stay what they are.
    """
    rows, columns = (
        jax.nn.one_hot(np.arange(new) * old // new, old, dtype=images.dtype)
        for old, new in zip(images.shape[1:3], size, strict=True)
    )
    return _resampled(images, rows, columns)


def upsample_bilinear(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """As PyTorch's "bilinear" with `align_corners=True`: [B, h, w, C] to [B, *size, C].

    Row i lies at row i (h - 1) / (size[0] - 1) of the input, so that first falls on first and last
    on last. Products with two small matrices, as in `upsample`.
    """
    rows, columns = (
        jnp.asarray(_bilinear_weights(old, new), images.dtype)
        for old, new in zip(images.shape[1:3], size, strict=True)
    )
    return _resampled(images, rows, columns)


def _bilinear_weights(old, new):
    """[new, old]: how much of each old row a new one takes."""
    position = np.linspace(0, old - 1, new)
    return np.maximum(1 - np.abs(position[:, None] - np.arange(old)), 0)


def _resampled(images, rows, columns):
    """Rows [H, h] and columns [W, w] act on images [B, h, w, C]: [B, H, W, C]."""
    product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    with jax.named_scope("resample"):
        return product("jw,bhwc->bhjc", columns, product("ih,bhwc->biwc", rows, images))


def _max_of_window(images):
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(images, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def _max_of_shifted(images):
    return _max_of_three(_max_of_three(images, axis=2), axis=1)


def _max_of_three(images, axis):
    last = (images.shape[axis] - 1) // 2 * 2
    padding = [(0, 0)] * images.ndim
    padding[axis] = (1, 1)
    padded = jnp.pad(images, padding, constant_values=-jnp.inf)
    return reduce(_maximum, [lax.slice_in_dim(padded, i, i + last + 1, 2, axis) for i in range(3)])


@jax.custom_jvp
def _maximum(x, y):
    return jnp.maximum(x, y)


@_maximum.defjvp
def _maximum_jvp(values, tangents):
    # Of equals the first, as in other max-pools; the gradient of jnp.maximum halves.
    return _maximum(*values), jnp.where(values[0] >= values[1], *tangents)
