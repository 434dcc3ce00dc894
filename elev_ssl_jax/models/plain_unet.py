"""U-Net without a pre-trained encoder: the segmentation baseline of the two-sensor systems.

Ronneberger et al. (arXiv 1505.04597) in the form of github.com/milesial/Pytorch-UNet with bilinear
upsampling: padded convolutions, BatchNorm, and half the channels at the bottom.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elev_ssl_jax.models.batch_norm import ONE_VIEW, BatchNorm, Layout
from elev_ssl_jax.models.layers import Conv, pool, upsample, upsample_bilinear
from elev_ssl_jax.models.unet import UNet

CHANNELS = (64, 128, 256, 512, 512)


class DoubleConv(nn.Module):
    """Twice 3 x 3 Conv-BatchNorm-ReLU, whose convolutions have a bias.

    Attributes:
      middle: Channels of the first.
      channels: Channels of the second.
      dtype: Type of the computation; parameters and statistics are float32.
    """

    middle: int
    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, layout: Layout = ONE_VIEW) -> jax.Array:
        """[B, H, W, C] to [B, H, W, channels]; for `layout` see `BatchNorm`."""
        for i, channels in enumerate((self.middle, self.channels), start=1):
            # BatchNorm takes the bias away again; the original's parameters have it all the same.
            conv = Conv(
                channels, (3, 3), padding=1, use_bias=True, dtype=self.dtype, name=f"conv{i}"
            )
            norm = BatchNorm(dtype=self.dtype, name=f"bn{i}")
            x = nn.relu(norm(conv(x), train=train, layout=layout))
        return x


class PlainEncoder(nn.Module):
    """Five `DoubleConv`, with 2 x 2 max-pooling between them.

    Attributes:
      width: Multiplies every channel count (64, 128, 256, 512, 512), for small machines.
      dtype: Type of the computation; parameters and statistics are float32.
    """

    width: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, layout: Layout = ONE_VIEW
    ) -> tuple[jax.Array, ...]:
        """Feature maps at strides 1, 2, 4, 8 and 16 of images float [B, H, W, C].

        Sides are rounded down at every stride, so that none may be below 16 pixels.
        `train` makes BatchNorm use the batch's statistics and update the running ones; see it for
        `layout`.
        """
        x, maps = images.astype(self.dtype), []
        for i, base in enumerate(CHANNELS):
            channels = round(base * self.width)
            block = DoubleConv(channels, channels, self.dtype, name=f"block{i + 1}")
            x = block(pool(x) if i else x, train=train, layout=layout)
            maps.append(x)
        return tuple(maps)


class PlainDecoder(nn.Module):
    """From an encoder's maps, of whatever channels and number, to class logits.

    One step up for each map but the last, deepest first. The step to a map puts out as many
    channels as the next larger map has, which the step after it joins to as many again; the last,
    to the largest map, as many as that one has. So 256, 128, 64 and 64 on a `PlainEncoder`, and
    512, 256, 128 and 128 on two whose maps are joined. An encoder's width comes along in its maps.

    Attributes:
      num_classes: Of the output.
      output_size: Height and width of the output in pixels.
      dtype: Type of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int
    output_size: tuple[int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], *, train: bool) -> jax.Array:
        """Maps [B, H, W, C], largest first, to logits float32 [B, *output_size, num_classes].

        Where the largest map is not of the output's size, its logits are taken to the nearest
        pixel.
        """
        *skips, x = maps
        larger = [skips[0], *skips[:-1]] if skips else []  # than each skip; the first's is itself
        steps = zip(reversed(skips), reversed(larger), strict=True)
        for i, (skip, following) in enumerate(steps, start=1):
            x = jnp.concatenate([skip, _upsampled(x, skip.shape[1:3])], axis=-1)
            block = DoubleConv(x.shape[-1] // 2, following.shape[-1], self.dtype, name=f"up{i}")
            x = block(x, train=train)
        x = nn.Conv(self.num_classes, (1, 1), dtype=jnp.float32, name="head")(x)
        return x if x.shape[1:3] == self.output_size else upsample(x, self.output_size)


def _upsampled(x, size):
    """[B, h, w, C] to [B, *size, C], by two and no more: zeros fill what is missing.

    That is the pixel an odd side loses where an encoder rounds down; half goes before, the rest
    after. Where one rounds up, twice the side is a pixel too many, and the side itself is taken.
    """
    grown = [min(2 * old, new) for old, new in zip(x.shape[1:3], size, strict=True)]
    x = upsample_bilinear(x, (grown[0], grown[1]))
    missing = [new - old for old, new in zip(grown, size, strict=True)]
    padding = [(gap // 2, gap - gap // 2) for gap in missing]
    return jnp.pad(x, ((0, 0), *padding, (0, 0)))


class PlainUNet(UNet):
    """Image to per-pixel class logits; parameters under `encoder` and `decoder`."""

    encoder_type: Any = PlainEncoder

    def setup(self) -> None:
        self.encoder = self.encoder_type(width=self.width, dtype=self.dtype)
        self.decoder = PlainDecoder(self.num_classes, self.output_size, dtype=self.dtype)
