"""Swin Transformer encoder (Liu et al., arXiv 2103.14030), with the reference's parameters."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elev_ssl_jax.models.batch_norm import ONE_VIEW, Layout

WINDOW = 7  # tokens along the side of a window
_PATCH = 4  # pixels along the side of a token
HEAD = 32  # channels of an attention head
_APART = -100.0  # is added to the logits of tokens that are neighbours by the shift alone

Dense = partial(nn.Dense, kernel_init=nn.initializers.normal(0.02))
Norm = partial(nn.LayerNorm, epsilon=1e-5)


class DropPath(nn.Module):
    """Leaves out a residual of some samples in training (Huang et al., arXiv 1603.09382)."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, ...], drawn from the keys `drop_path`; kept residuals grow so that the mean stays."""
        if not train or self.rate == 0:
            return x
        shape = (len(x), *[1] * (x.ndim - 1))
        kept = jax.random.bernoulli(self.make_rng("drop_path"), 1 - self.rate, shape)
        return jnp.where(kept, x / (1 - self.rate), 0).astype(x.dtype)


class WindowAttention(nn.Module):
    """Attention within windows of 7 x 7 tokens, with a bias for each relative position.

    Attributes:
      heads: Attention heads.
      shifted: Whether windows begin half a window later, and go on at the other side. Tokens that
        only so come together don't see one another.
      dtype: Type of the computation; logits and softmax are float32.
    """

    heads: int
    shifted: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to the same. Sizes that 7 doesn't divide are filled up with zeros."""
        batch, height, width, channels = x.shape
        rows, columns = (-(-side // WINDOW) * WINDOW for side in (height, width))
        x = jnp.pad(x, ((0, 0), (0, rows - height), (0, columns - width), (0, 0)))
        # A side of one window has nothing to shift to.
        shift = [WINDOW // 2 * (self.shifted and side > WINDOW) for side in (rows, columns)]
        x = jnp.roll(x, (-shift[0], -shift[1]), (1, 2))
        x = _to_windows(x)

        parts = Dense(3 * channels, dtype=self.dtype, name="qkv")(x)
        parts = parts.reshape(*x.shape[:-1], 3, self.heads, channels // self.heads)
        query, key, value = jnp.moveaxis(parts, -3, 0)
        query = query * (channels // self.heads) ** -0.5
        logits = jnp.einsum("...nhd,...mhd->...hnm", query, key).astype(jnp.float32)
        offsets = (2 * WINDOW - 1) ** 2
        init = nn.initializers.normal(0.02)
        table = self.param("relative_position_bias", init, (offsets, self.heads), jnp.float32)
        # A product rather than a gather, whose gradient would be a scatter.
        bias = jnp.asarray(_relative_positions(), jnp.float32) @ table
        logits += jnp.moveaxis(bias.reshape(WINDOW**2, WINDOW**2, self.heads), -1, 0)
        if any(shift):
            logits += _apart(rows, columns, shift)[None, :, :, None]
        weights = jax.nn.softmax(logits).astype(self.dtype)
        x = jnp.einsum("...hnm,...mhd->...nhd", weights, value).reshape(x.shape)
        x = Dense(channels, dtype=self.dtype, name="proj")(x)

        x = x.reshape(batch, rows // WINDOW, columns // WINDOW, WINDOW, WINDOW, channels)
        x = x.swapaxes(2, 3).reshape(batch, rows, columns, channels)
        return jnp.roll(x, shift, (1, 2))[:, :height, :width]


def _to_windows(x):
    """[B, H, W, ...] to [B, H / 7, W / 7, 49, ...]."""
    batch, rows, columns, *rest = x.shape
    x = x.reshape(batch, rows // WINDOW, WINDOW, columns // WINDOW, WINDOW, *rest)
    return x.swapaxes(2, 3).reshape(batch, rows // WINDOW, columns // WINDOW, -1, *rest)


def _relative_positions() -> np.ndarray:
    """Which entry of the bias each pair of tokens in a window has: one-hot [49 * 49, 13 * 13]."""
    rows, columns = np.divmod(np.arange(WINDOW**2), WINDOW)
    down, right = (place[:, None] - place + WINDOW - 1 for place in (rows, columns))
    return np.eye((2 * WINDOW - 1) ** 2)[(down * (2 * WINDOW - 1) + right).ravel()]


def _apart(rows, columns, shift) -> np.ndarray:
    """What the logits of shifted windows get: float32 [rows / 7, columns / 7, 49, 49]."""
    regions = [
        (np.arange(side) >= side - WINDOW).astype(int) + (np.arange(side) >= side - by)
        if by
        else np.zeros(side, int)
        for side, by in zip((rows, columns), shift, strict=True)
    ]
    (region,) = _to_windows((regions[0][:, None] * 3 + regions[1])[None])
    apart = region[..., :, None] != region[..., None, :]
    return np.where(apart, np.float32(_APART), np.float32(0))


class SwinBlock(nn.Module):
    """Attention in windows and two layers on each token, each after LayerNorm and as a residual."""

    heads: int
    shifted: bool
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] to the same; `train` draws from the keys `drop_path`."""
        channels, drop = x.shape[-1], DropPath(self.drop_path)
        y = Norm(dtype=self.dtype, name="norm1")(x)
        y = WindowAttention(self.heads, self.shifted, self.dtype, name="attn")(y)
        x = x + drop(y, train=train)
        y = Norm(dtype=self.dtype, name="norm2")(x)
        y = Dense(4 * channels, dtype=self.dtype, name="fc1")(y)
        y = Dense(channels, dtype=self.dtype, name="fc2")(nn.gelu(y, approximate=False))
        return x + drop(y, train=train)


class PatchMerging(nn.Module):
    """Four neighbours to one token of twice the channels; odd sides are filled up with zeros."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), 2 C]."""
        _, height, width, channels = x.shape
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        x = Norm(dtype=self.dtype, name="norm")(jnp.concatenate(corners, axis=-1))
        return Dense(2 * channels, use_bias=False, dtype=self.dtype, name="reduction")(x)


class Swin(nn.Module):
    """A Swin Transformer without its classifier.

    Attributes:
      depths: Blocks of each stage.
      heads: Attention heads in each stage, of 32 channels each.
      drop_path: Rate at the last block; it grows linearly from 0 at the first.
      width: Multiplies the channels of a head, for small machines.
      dtype: Type of the computation; parameters are float32.
    """

    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    drop_path: float = 0.1
    width: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, layout: Layout = ONE_VIEW
    ) -> tuple[jax.Array, ...]:
        """Maps at strides 4, 8, 16 and 32 of images float [B, H, W, C].

        The first three are what a stage begins with, the last what the last one ends with,
        normalised: at 224 pixels 56 x 56 x 96, 28 x 28 x 192, 14 x 14 x 384 and 7 x 7 x 768.
        Images whose sides 4 doesn't divide are filled up with zeros. `layout` changes nothing: no
        statistics are of a batch.
        """
        height, width = images.shape[1:3]
        x = jnp.pad(images, ((0, 0), (0, -height % _PATCH), (0, -width % _PATCH), (0, 0)))
        bound = (_PATCH**2 * images.shape[-1]) ** -0.5
        embed = nn.Conv(
            self.heads[0] * round(HEAD * self.width),
            (_PATCH, _PATCH),
            _PATCH,
            padding="VALID",
            kernel_init=_uniform(bound),
            bias_init=_uniform(bound),
            dtype=self.dtype,
            name="patch_embed",
        )
        x = Norm(dtype=self.dtype, name="patch_norm")(embed(x.astype(self.dtype)))
        rates = iter(np.linspace(0, self.drop_path, sum(self.depths)).tolist())
        maps = []
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            maps.append(x)
            for i in range(depth):
                block = SwinBlock(
                    heads, i % 2 == 1, next(rates), self.dtype, name=f"stage{stage + 1}_{i}"
                )
                x = block(x, train=train)
            if stage < len(self.depths) - 1:
                x = PatchMerging(self.dtype, name=f"merge{stage + 1}")(x)
        return (*maps[:-1], Norm(dtype=self.dtype, name="norm")(x))


def _uniform(bound) -> Callable[..., jax.Array]:
    """As PyTorch's convolutions begin."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
