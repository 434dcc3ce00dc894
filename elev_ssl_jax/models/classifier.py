"""Linear classifier on a ResNet encoder."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elev_ssl_jax.models.resnet import ResNet18


class Classifier(nn.Module):
    """Image to class logits (figure 1b); parameters under `encoder` and `head`."""

    num_classes: int
    encoder_type: Any = ResNet18
    width: float = 1.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.encoder = self.encoder_type(width=self.width, dtype=self.dtype)
        self.head = nn.Dense(self.num_classes)

    def encode(self, images: jax.Array, *, train: bool) -> tuple[jax.Array]:
        """The mean over the encoder's last map, float32 [B, C], of images float [B, H, W, C]."""
        last = self.encoder(images, train=train)[-1]
        return (jnp.mean(last.astype(jnp.float32), axis=(1, 2)),)

    def decode(self, maps: Sequence[jax.Array], *, train: bool) -> jax.Array:
        """What `encode` returns to logits float32 [B, num_classes]; `train` changes nothing."""
        return self.head(maps[-1])

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images float [B, H, W, C] to logits float32 [B, num_classes]."""
        return self.decode(self.encode(images, train=train), train=train)
