"""VGG encoder of multi-modal alignment (Windsor et al., arXiv 2107.06652)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elev_ssl_jax.models.batch_norm import ONE_VIEW, BatchNorm, Layout
from elev_ssl_jax.models.layers import Conv, pool

CHANNELS = (64, 128, 256, 256)


class VGG(nn.Module):
    """Four blocks of twice 3 x 3 Conv-BatchNorm-ReLU, with 2 x 2 max-pooling between them.

    Attributes:
      width: Multiplies every channel count (64, 128, 256, 256), for small machines.
      dtype: Type of the computation; parameters and statistics are float32.
    """

    width: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, layout: Layout = ONE_VIEW
    ) -> tuple[jax.Array, ...]:
        """Feature maps at strides 1, 2, 4 and 8 of images float [B, H, W, C].

        `train` makes BatchNorm use the batch's statistics and update the running ones; see it for
        `layout`.
        """
        x, maps = images.astype(self.dtype), []
        for i, channels in enumerate(CHANNELS):
            if i:
                x = pool(x)
            for j in (1, 2):
                conv = Conv(
                    round(channels * self.width),
                    (3, 3),
                    padding=1,
                    dtype=self.dtype,
                    name=f"block{i + 1}_conv{j}",
                )
                norm = BatchNorm(dtype=self.dtype, name=f"block{i + 1}_bn{j}")
                x = nn.relu(norm(conv(x), train=train, layout=layout))
            maps.append(x)
        return tuple(maps)
