"""SwinUNet decoder (Cao et al., arXiv 2105.05537) for the maps of Swin encoders."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elev_ssl_jax.models.fusion import parted
from elev_ssl_jax.models.layers import Conv
from elev_ssl_jax.models.swin import Norm, Swin, SwinBlock
from elev_ssl_jax.models.unet import UNet

DEPTHS, HEADS = (2, 2, 6), (3, 6, 12)  # of the stages at strides 4, 8 and 16, as the encoder's
_LAST = 4  # how much finer the output is than the finest map


class PatchExpand(nn.Module):
    """Each token to `factor` x `factor` tokens, normalised.

    Attributes:
      factor: Along each side.
      channels: Of the new tokens.
      dtype: Type of the computation.
    """

    factor: int
    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int]) -> jax.Array:
        """[B, h, w, C] to [B, *size, channels], where `size` is the new grid's or a little less."""
        batch, height, width, _ = x.shape
        step = self.factor
        parts = step**2 * self.channels
        x = nn.Dense(parts, use_bias=False, dtype=self.dtype, name="expand")(x)
        x = x.reshape(batch, height, width, step, step, self.channels).swapaxes(2, 3)
        x = x.reshape(batch, height * step, width * step, self.channels)
        return Norm(dtype=self.dtype, name="norm")(x[:, : size[0], : size[1]])


class SwinDecoder(nn.Module):
    """From the maps of one Swin encoder to tokens as fine as its first map.

    Attributes:
      drop_path: As the encoder's: the rate of its last block.
      dtype: Type of the computation.
    """

    drop_path: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], *, train: bool) -> jax.Array:
        """Maps at strides 4, 8, 16 and 32, [B, h, w, C] each, to [B, H / 4, W / 4, C of the first].

        `train` draws from the keys `drop_path`.
        """
        *skips, x = maps
        rates = np.linspace(0, self.drop_path, sum(DEPTHS) + 2)  # the last two are the encoder's
        for stage in reversed(range(len(skips))):
            skip = skips[stage]
            channels = skip.shape[-1]
            expand = PatchExpand(2, channels, self.dtype, name=f"expand{stage + 1}")
            size = (skip.shape[1], skip.shape[2])
            x = jnp.concatenate([expand(x, size), skip], axis=-1)
            x = nn.Dense(channels, dtype=self.dtype, name=f"join{stage + 1}")(x)
            for i in range(DEPTHS[stage]):
                rate = float(rates[sum(DEPTHS[:stage]) + i])
                name = f"stage{stage + 1}_{i}"
                block = SwinBlock(HEADS[stage], i % 2 == 1, rate, self.dtype, name=name)
                x = block(x, train=train)
        return Norm(dtype=self.dtype, name="norm")(x)


class SwinUNetDecoder(nn.Module):
    """A decoder for each sensor, whose tokens are joined at the end.

    Attributes:
      num_classes: Of the output.
      output_size: Height and width of the output in pixels.
      drop_path: As in `SwinDecoder`.
      dtype: Type of the computation.
    """

    num_classes: int
    output_size: tuple[int, int]
    drop_path: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, branches: Sequence[Sequence[jax.Array]], *, train: bool) -> jax.Array:
        """The maps of each sensor's encoder to logits float32 [B, *output_size, num_classes]."""
        tokens = [
            SwinDecoder(self.drop_path, self.dtype, name=f"branch{i + 1}")(maps, train=train)
            for i, maps in enumerate(branches)
        ]
        x = jnp.concatenate(tokens, axis=-1)
        expand = PatchExpand(_LAST, x.shape[-1], self.dtype, name="expand")
        x = expand(x, self.output_size)
        return Conv(self.num_classes, (1, 1), dtype=jnp.float32, name="head")(x)


class SwinUNet(UNet):
    """Image to per-pixel class logits; parameters under `encoder` and `decoder`.

    Attributes:
      branches: How many Swin encoders there are side by side.
    """

    encoder_type: Any = Swin
    branches: int = 1

    def setup(self) -> None:
        self.encoder = self.encoder_type(width=self.width, dtype=self.dtype)
        self.decoder = SwinUNetDecoder(self.num_classes, self.output_size, dtype=self.dtype)

    def decode(self, maps: Sequence[jax.Array], *, train: bool) -> jax.Array:
        """The encoder's maps to logits float32 [B, *output_size, num_classes]."""
        return self.decoder(parted(tuple(maps), self.branches), train=train)
