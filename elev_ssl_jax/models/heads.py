"""Heads between the network and the contrastive losses."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elev_ssl_jax.models.batch_norm import ONE_VIEW, BatchNorm, Layout


class ProjectionHead(nn.Module):
    """Linear, ReLU, BatchNorm, Linear, neither with a bias: the head h of equation 3.

    Attributes:
      sizes: Units of the hidden layer and of the embedding.
      dtype: Type of the computation.
    """

    sizes: tuple[int, int] = (512, 128)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool, layout: Layout = ONE_VIEW) -> jax.Array:
        """[B, C] to embeddings float32 [B, sizes[1]]; `layout` as in `BatchNorm`."""
        hidden, out = self.sizes
        x = nn.Dense(hidden, use_bias=False, dtype=self.dtype, name="linear1")(features)
        x = BatchNorm(dtype=self.dtype, name="bn")(nn.relu(x), train=train, layout=layout)
        return nn.Dense(out, use_bias=False, dtype=jnp.float32, name="linear2")(x)


class PlainHead(nn.Module):
    """Linear, ReLU, Linear, with biases.

    From a patch's mean to its embedding, h_l of section 3.1 of arXiv 2304.06857; from what a
    sensor's encoder says to its embedding, in Dual-SimCLR.

    Attributes:
      sizes: Units of the hidden layer and of the embedding.
      dtype: Type of the computation.
    """

    sizes: tuple[int, int] = (128, 128)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, means: jax.Array) -> jax.Array:
        """[..., C] to embeddings float32 [..., sizes[1]]."""
        hidden, out = self.sizes
        x = nn.relu(nn.Dense(hidden, dtype=self.dtype, name="linear1")(means))
        return nn.Dense(out, dtype=jnp.float32, name="linear2")(x)
