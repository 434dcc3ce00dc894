"""ResNet encoders with torchvision's architecture, padding and parameter layout."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elev_ssl_jax.models.batch_norm import ONE_VIEW, BatchNorm, Layout
from elev_ssl_jax.models.layers import Conv, max_pool


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al., arXiv 1512.03385)."""

    channels: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, layout: Layout = ONE_VIEW) -> jax.Array:
        """[B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), channels]."""
        conv = partial(Conv, dtype=self.dtype)

        def norm(name):
            return partial(BatchNorm(dtype=self.dtype, name=name), train=train, layout=layout)

        y = conv(self.channels, (3, 3), self.stride, padding=1, name="conv1")(x)
        y = nn.relu(norm("bn1")(y))
        y = conv(self.channels, (3, 3), padding=1, name="conv2")(y)
        y = norm("bn2")(y)
        if x.shape != y.shape:
            x = conv(self.channels, (1, 1), self.stride, padding=0, name="downsample_conv")(x)
            x = norm("downsample_bn")(x)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut; the stride is the 3 x 3's."""

    channels: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, layout: Layout = ONE_VIEW) -> jax.Array:
        """[B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), 4 * channels]."""
        conv = partial(Conv, dtype=self.dtype)

        def norm(name):
            return partial(BatchNorm(dtype=self.dtype, name=name), train=train, layout=layout)

        y = nn.relu(norm("bn1")(conv(self.channels, (1, 1), padding=0, name="conv1")(x)))
        y = conv(self.channels, (3, 3), self.stride, padding=1, name="conv2")(y)
        y = nn.relu(norm("bn2")(y))
        y = norm("bn3")(conv(4 * self.channels, (1, 1), padding=0, name="conv3")(y))
        if x.shape != y.shape:
            x = conv(4 * self.channels, (1, 1), self.stride, padding=0, name="downsample_conv")(x)
            x = norm("downsample_bn")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A ResNet without its classifier.

    Attributes:
      stage_sizes: Blocks in each of the four stages.
      block: `BasicBlock` or `Bottleneck`.
      width: Multiplies every channel count (64, 128, 256, 512), for small machines.
      dtype: Type of the computation; parameters and statistics are float32.
    """

    stage_sizes: tuple[int, ...]
    block: Any = BasicBlock
    width: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, layout: Layout = ONE_VIEW
    ) -> tuple[jax.Array, ...]:
        """Feature maps at strides 2, 4, 8, 16 and 32 of images float [B, H, W, C].

        At 100 pixels their sizes are 50, 25, 13, 7 and 4. `train` makes BatchNorm use the
        batch's statistics and update the running ones; see it for `layout`.
        """
        channels = [round(64 * self.width * 2**stage) for stage in range(4)]
        conv = Conv(channels[0], (7, 7), 2, padding=3, dtype=self.dtype, name="conv1")
        x = conv(images.astype(self.dtype))
        x = nn.relu(BatchNorm(dtype=self.dtype, name="bn1")(x, train=train, layout=layout))
        features = [x]
        x = max_pool(x)
        for stage, blocks in enumerate(self.stage_sizes):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"layer{stage + 1}_{block}"
                layer = self.block(channels[stage], stride, self.dtype, name=name)
                x = layer(x, train=train, layout=layout)
            features.append(x)
        return tuple(features)


ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2))
ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3))
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck)
