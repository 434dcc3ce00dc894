"""U-Net decoder on a ResNet encoder (Ronneberger et al., arXiv 1505.04597)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elev_ssl_jax.models.batch_norm import ONE_VIEW, BatchNorm, Layout
from elev_ssl_jax.models.layers import Conv
from elev_ssl_jax.models.resnet import ResNet18
from elev_ssl_jax.models.up_conv import UpConv, padded

CHANNELS = (256, 128, 64, 32, 16)


class UpBlock(nn.Module):
    """Upsample (nearest), join the encoder's map of that size, twice 3 x 3 Conv-BatchNorm-ReLU."""

    channels: int
    dtype: Any = jnp.float32
    padding: str = "zeros"  # as in `Decoder`

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        size: tuple[int, int],
        skip: jax.Array | None,
        *,
        train: bool,
        layout: Layout = ONE_VIEW,
    ) -> jax.Array:
        """[B, h, w, C] to [B, *size, channels]; `skip` is [B, *size, S] or None."""
        norm = partial(BatchNorm, dtype=self.dtype)
        x = UpConv(self.channels, self.padding, self.dtype, name="conv1")(x, size, skip)
        x = nn.relu(norm(name="bn1")(x, train=train, layout=layout))
        x, zeros = padded(x, self.padding)
        conv2 = Conv(self.channels, (3, 3), padding=zeros, dtype=self.dtype, name="conv2")
        return nn.relu(norm(name="bn2")(conv2(x), train=train, layout=layout))


class Decoder(nn.Module):
    """From the encoder's maps to [B, *output_size, out_channels].

    Without `out_channels` there is no last convolution: the output is the last block's.

    One block for each of the encoder's maps that is no larger than the output, deepest first,
    and a last one without a skip to the output's size if none has it. A 100-pixel image and 33
    cells of elevation so give blocks at 7, 13, 25 and 33 with 256, 128, 64 and 32 channels; 100
    output pixels give 7, 13, 25, 50 and 100 with 256 to 16.

    Around a map its convolutions see `padding`: "zeros", as in the reference, or "edge", the
    map's own border again, so that a border does not look different from the rest. Its output
    starts around `start`, the bias of the last convolution.
    """

    out_channels: int | None
    output_size: tuple[int, int]
    width: float = 1.0
    dtype: Any = jnp.float32
    padding: str = "zeros"
    start: float = 0.0

    @nn.compact
    def __call__(
        self, features: Sequence[jax.Array], *, train: bool, layout: Layout = ONE_VIEW
    ) -> jax.Array:
        """Decodes the encoder's maps, each [B, H, W, C], largest first.

        For `layout` see there. The result is float32, or `dtype` without `out_channels`.
        """
        *skips, x = features
        height, width = self.output_size
        fitting = [s for s in skips if s.shape[1] <= height and s.shape[2] <= width]
        targets: list[tuple[tuple[int, int], jax.Array | None]] = [
            ((s.shape[1], s.shape[2]), s) for s in reversed(fitting)
        ]
        if not targets or targets[-1][0] != (height, width):
            targets.append(((height, width), None))
        for i, (size, skip) in enumerate(targets):
            channels = max(8, round(CHANNELS[i] * self.width))
            block = UpBlock(channels, self.dtype, self.padding, name=f"block{i + 1}")
            x = block(x, size, skip, train=train, layout=layout)
        if self.out_channels is None:
            return x
        x, zeros = padded(x, self.padding)
        bias = nn.initializers.constant(self.start)
        head = nn.Conv(
            self.out_channels,
            (3, 3),
            padding=zeros,
            bias_init=bias,
            dtype=jnp.float32,
            name="head",
        )
        return head(x)


class UNet(nn.Module):
    """Image to per-pixel class logits; parameters under `encoder` and `decoder`."""

    num_classes: int
    output_size: tuple[int, int]
    encoder_type: Any = ResNet18
    width: float = 1.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        common = {"width": self.width, "dtype": self.dtype}
        self.encoder = self.encoder_type(**common)
        self.decoder: Any = Decoder(self.num_classes, self.output_size, **common)

    def encode(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        """The encoder's maps of images float [B, H, W, C]."""
        return self.encoder(images, train=train)

    def decode(self, maps: Sequence[jax.Array], *, train: bool) -> jax.Array:
        """The encoder's maps to logits float32 [B, *output_size, num_classes]."""
        return self.decoder(maps, train=train)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images float [B, H, W, C] to logits float32 [B, *output_size, num_classes]."""
        return self.decode(self.encode(images, train=train), train=train)
