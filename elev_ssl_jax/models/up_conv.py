"""The convolution by which a U-Net goes up a level (Ronneberger et al., arXiv 1505.04597)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from elev_ssl_jax.models.layers import Conv, upsample

_NAMES = ("NHWC", "HWIO", "NHWC")
# What is added up before it is rounded, and gradients.
_convolve = partial(lax.conv_general_dilated, preferred_element_type=jnp.float32)


class UpConv(nn.Module):
    """A 3 x 3 convolution of a map that is upsampled (nearest) and joined with another.

    On a TPU neither is done. A convolution is linear: each map has its part of the kernel, and a
    map that is doubled is convolved as it is, see `_of_doubled`.
    """

    channels: int
    padding: str = "zeros"  # what it sees around a map, see `padded`
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int], skip: jax.Array | None) -> jax.Array:
        """[B, h, w, C] and [B, *size, S], or None, to [B, *size, channels]."""
        maps = [x] if skip is None else [x, skip]
        shape = (3, 3, sum(m.shape[-1] for m in maps), self.channels)
        kernel = self.param("kernel", Conv.keywords["kernel_init"], shape, jnp.float32)

        def apart(kernel, x, *skip):
            own, other = jnp.split(kernel, [x.shape[-1]], axis=2)
            if _is_doubled(x, size, self.padding):
                convolved = _of_doubled(x, own, size, self.padding)
            else:
                convolved = _convolved(upsample(x, size), own, self.padding)
            for m in skip:
                convolved += _convolved(m, other, self.padding)
            return convolved.astype(self.dtype)

        def together(kernel, x, *skip):
            joined = jnp.concatenate([upsample(x, size), *skip], axis=-1)
            return _convolved(joined, kernel, self.padding, lax.conv_general_dilated)

        given = (array.astype(self.dtype) for array in (kernel, *maps))
        return lax.platform_dependent(*given, tpu=apart, default=together)


def padded(images: jax.Array, padding: str) -> tuple[jax.Array, int]:
    """What a 3 x 3 convolution sees of maps [B, H, W, C], and the zeros it is to add around them.

    `padding` is "zeros", or "edge": a map's own border again.
    """
    if padding == "edge":
        return jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge"), 0
    return images, 1


def _convolved(images, kernel, padding, convolve=_convolve):
    images, zeros = padded(images, padding)
    return convolve(images, kernel, (1, 1), [(zeros, zeros)] * 2, dimension_numbers=_NAMES)


def _is_doubled(images, size, padding):
    """Whether every pixel comes twice along both axes; the last one may come once before an edge.

    Zeros after it would be in the middle of a pixel's double.
    """
    missing = [2 * old - new for old, new in zip(images.shape[1:3], size, strict=True)]
    return all(m == 0 or (m == 1 and padding == "edge") for m in missing)


def _of_doubled(images, kernel, size, padding):
    """The convolution of a map's double, with four of its nine products.

    To double is to put zeros between pixels and to sum over 2 x 2. That sum and a kernel
    [3, 3, C, D] are one of [4, 4, C, D], of which three quarters see zeros.
    """
    corners = [
        jnp.pad(kernel.astype(jnp.float32), ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0)))
        for i in (0, 1)
        for j in (0, 1)
    ]
    wide = jnp.sum(jnp.stack(corners), axis=0).astype(kernel.dtype)
    images, zeros = padded(images, padding)
    margins = [
        (2 * zeros, new - 2 * old + 4 - 2 * zeros)
        for old, new in zip(images.shape[1:3], size, strict=True)
    ]
    return _dilated(images, wide, tuple(margins))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dilated(images, kernel, margins):
    """A 4 x 4 convolution of pixels with a zero between any two and margins of zeros."""
    return _convolve(images, kernel, (1, 1), margins, lhs_dilation=(2, 2), dimension_numbers=_NAMES)


def _dilated_forward(images, kernel, margins):
    return _dilated(images, kernel, margins), (images, kernel)


def _dilated_backward(margins, given, gradient):
    images, kernel = given
    gradient = gradient.astype(images.dtype)
    margins = [(3 - low, 3 - high) for low, high in margins]
    names = ("NHWC", "HWOI", "NHWC")
    turned = jnp.flip(kernel, (0, 1))
    of_images = _convolve(gradient, turned, (2, 2), margins, dimension_numbers=names)
    # The kernel's is a correlation of the gradient with the pixels. JAX's own rule correlates the
    # pixels with the gradient, which the compiler first turns around in memory.
    names = ("CHWN", "IHWO", "HWNC")
    of_kernel = _convolve(
        gradient, images, (1, 1), margins, rhs_dilation=(2, 2), dimension_numbers=names
    )
    of_kernel = jnp.flip(of_kernel, (0, 1)).swapaxes(2, 3)
    return of_images.astype(images.dtype), of_kernel.astype(kernel.dtype)


_dilated.defvjp(_dilated_forward, _dilated_backward)
