"""An encoder: four stages of two depthwise separable convolutions."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from elev_ssl_jax.models.batch_norm import ONE_VIEW, BatchNorm
from elev_ssl_jax.models.encoders import ENCODERS
from elev_ssl_jax.models.layers import Conv


class Separable(nn.Module):
    """Maps at strides 2, 4, 8 and 16; `width` multiplies the channels (64, 128, 256, 512)."""

    width: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, *, train, layout=ONE_VIEW):
        """float [B, H, W, C] to a map for each stage, largest first."""
        x, maps = images.astype(self.dtype), []
        for stage in range(4):
            channels = round(64 * 2**stage * self.width)
            for i in range(2):
                name = f"stage{stage + 1}_{i + 1}"
                before, stride = x.shape[-1], 2 if i == 0 else 1
                depthwise = nn.Conv(
                    *(before, (3, 3), stride),
                    padding=1,
                    feature_group_count=before,
                    use_bias=False,
                    dtype=self.dtype,
                    name=f"{name}_depthwise",
                )
                pointwise = Conv(channels, (1, 1), dtype=self.dtype, name=f"{name}_pointwise")
                norm = BatchNorm(dtype=self.dtype, name=f"{name}_bn")
                x = nn.relu(norm(pointwise(depthwise(x)), train=train, layout=layout))
            maps.append(x)
        return tuple(maps)


ENCODERS["separable"] = Separable  # in this process config.model.encoder = "separable" is known
