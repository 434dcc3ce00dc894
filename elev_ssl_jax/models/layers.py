"""Convolution and max-pooling, in the form that is fast on the platform at hand.

On GPUs and TPUs they are XLA's own operations. On a CPU XLA is slow at max-pool's gradient and at
the weight gradients of some convolutions, which are written here as shifted maxima and as matrix
products: the same sums, in another order.
"""

from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def convolve(
    images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **how: Any
) -> jax.Array:
    """`lax.conv_general_dilated`, [B, H, W, C] with [k, k, C, D], for `flax.linen.Conv`."""
    # XLA's weight gradient of the others is as fast as a product, and takes less memory.
    slow = tuple(strides) != (1, 1) or kernel.shape[:2] == (1, 1)
    if slow and _on_cpu():
        return _convolve(tuple(strides), tuple(padding), images, kernel)
    return lax.conv_general_dilated(images, kernel, strides, padding, **how)


# Initialised for ReLU by the fan-out (He et al., arXiv 1502.01852), as in torchvision.
Conv = partial(
    nn.Conv,
    use_bias=False,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    conv_general_dilated=convolve,
)


def max_pool(images: jax.Array) -> jax.Array:
    """Largest of 3 x 3 pixels at stride 2: [B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), C]."""
    if _on_cpu():
        return _max_of_three(_max_of_three(images, axis=2), axis=1)
    return nn.max_pool(images, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


def _on_cpu():
    return jax.default_backend() == "cpu"


def _plain(strides, padding, images, kernel):
    return lax.conv_general_dilated(
        images, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


_convolve = jax.custom_vjp(_plain, nondiff_argnums=(0, 1))


def _forward(strides, padding, images, kernel):
    return _plain(strides, padding, images, kernel), (images, kernel)


def _backward(strides, padding, saved, gradient):
    images, kernel = saved
    of_images = partial(_plain, strides, padding, kernel=kernel)
    (to_images,) = jax.linear_transpose(of_images, images)(gradient)

    # Each row of the kernel: the pixels that its cells saw, times the gradient of what they said.
    height, width, channels, _ = kernel.shape
    _, rows, columns, out = gradient.shape
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    gradient = gradient.reshape(-1, out)
    to_kernel = []
    for i in range(height):
        seen = _every(padded, i, rows, strides[0], axis=1)
        seen = [_every(seen, j, columns, strides[1], axis=2) for j in range(width)]
        to_kernel.append(jnp.concatenate(seen, axis=-1).reshape(-1, width * channels).T @ gradient)
    return to_images, jnp.stack(to_kernel).reshape(kernel.shape)


_convolve.defvjp(_forward, _backward)


def _max_of_three(images, axis):
    size = images.shape[axis]
    padding = [(0, 0)] * images.ndim
    padding[axis] = (1, 1)
    padded = jnp.pad(images, padding, constant_values=-jnp.inf)
    return reduce(_maximum, [_every(padded, i, (size + 1) // 2, 2, axis) for i in range(3)])


@jax.custom_jvp
def _maximum(x, y):
    return jnp.maximum(x, y)


@_maximum.defjvp
def _maximum_jvp(values, tangents):
    # Of equals the first, as in other max-pools; the gradient of jnp.maximum halves.
    return _maximum(*values), jnp.where(values[0] >= values[1], *tangents)


def _every(array, start, count, stride, axis):
    return lax.slice_in_dim(array, start, start + stride * (count - 1) + 1, stride, axis)
