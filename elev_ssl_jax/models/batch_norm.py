"""Batch normalisation of several views of a batch that may lie on several devices."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

_EPS = 1e-5  # as in PyTorch


class Layout(NamedTuple):
    """What lies on the leading axis of maps: [parts * views * samples, ..., C].

    Parts of the batch, each of which lies on one device, in it the views one after the other, and
    of each the part's samples. So a view is a stretch of each device's memory, and a batch that is
    split over devices stays where it is. No result depends on the parts.

    Statistics are those of a group of the batch, of which there are as many in it, one after the
    other. Parts are whole groups, or the other way around.
    """

    parts: int = 1
    views: int = 1
    groups: int = 1


ONE_VIEW = Layout()


class BatchNorm(nn.Module):
    """Batch normalisation whose statistics, in training mode, belong to one view at a time.

    Each view is normalised by its own mean and variance over the whole batch, or a group of it, as
    if it had been passed alone, while all share one pass through the network. The running
    statistics take in the mean over views and groups.

    Statistics are float32 whatever `dtype` is. As in PyTorch, eps is 1e-5, and 0.1 of each batch's
    statistics is taken in, of the variance the unbiased one.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, layout: Layout = ONE_VIEW) -> jax.Array:
        """Normalises [parts * views * samples, ..., C] over all axes but views and channels."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)

        if not train:
            factor = scale * lax.rsqrt(running_var.value + _EPS)
            shift = bias - running_mean.value * factor
            return (x * factor + shift).astype(self.dtype)

        parts, views, groups = layout
        together = max(parts // groups, 1)  # parts that make up a group
        within = max(groups // parts, 1)  # groups in a part
        apart = x.reshape(parts // together, together, views, within, -1, *x.shape[1:])
        normalised, mean, var = _normalise(apart, scale, bias)
        if not self.is_initializing():
            count = x.size // mean.size
            unbiased = var * (count / max(count - 1, 1))
            for running, batch in ((running_mean, mean), (running_var, unbiased)):
                average = jnp.mean(batch.reshape(-1, channels), axis=0)
                running.value = 0.9 * running.value + 0.1 * average
        return normalised.reshape(x.shape).astype(self.dtype)


@jax.custom_vjp
def _normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Maps normalised, in their type, and mean and variance, float32.

    Maps are [G, P, V, K, N, ..., C]; statistics are apart for each of G, V, K and the channels C.

    The gradient is that of the first alone. It is our own, so that x, as it is stored, and two
    numbers a channel are all that is kept for it, and its two sums over the batch are taken in one
    pass, and go over the devices in one exchange.
    """
    return _normalise_forward(x, scale, bias)[0]


def _normalise_forward(x, scale, bias):
    wide, axes = x.astype(jnp.float32), _axes(x)
    mean = jnp.mean(wide, axes, keepdims=True)
    if x.dtype == jnp.bfloat16:
        # In the same pass as the mean. Digits are lost where the mean is large, but bfloat16, with
        # its eight bits, has lost more.
        var = jnp.maximum(jnp.mean(wide**2, axes, keepdims=True) - mean**2, 0)
    else:
        var = jnp.mean((wide - mean) ** 2, axes, keepdims=True)
    inverse = lax.rsqrt(var + _EPS)
    y = (wide - mean) * (scale * inverse) + bias
    return (y.astype(x.dtype), mean, var), (x, mean, inverse, scale)


def _normalise_backward(saved, gradients):
    x, mean, inverse, scale = saved
    gradient, axes = gradients[0].astype(jnp.float32), _axes(x)
    unit = (x.astype(jnp.float32) - mean) * inverse
    sums = [jnp.sum(a, axes, keepdims=True) for a in (gradient, gradient * unit)]
    count = x.size // sums[0].size
    of_x = scale * inverse * (gradient - (sums[0] + unit * sums[1]) / count)
    of_bias, of_scale = (jnp.sum(s.reshape(-1, len(scale)), axis=0) for s in sums)
    return of_x.astype(x.dtype), of_scale, of_bias


_normalise.defvjp(_normalise_forward, _normalise_backward)


def _axes(x):
    """What the statistics are over."""
    return (1, *range(4, x.ndim - 1))
