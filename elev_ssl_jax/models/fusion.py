"""Several sensors side by side: an encoder for each, under one key."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elev_ssl_jax.models.batch_norm import ONE_VIEW, Layout
from elev_ssl_jax.models.resnet import ResNet18

Maps = tuple[jax.Array, ...]


class Branches(nn.Module):
    """An encoder for each sensor, whose parameters lie under the sensor's name.

    Seen from a classifier or a decoder it is an encoder like any other: from an image whose bands
    are those of the sensors, one after the other, to maps whose channels are.

    Attributes:
      bands: Name and number of bands of each sensor, in the order of the image's.
      encoder: Makes the encoder of one of them.
      width: Multiplies the channels of each.
      dtype: Type of the computation.
    """

    bands: tuple[tuple[str, int], ...]
    encoder: Any = ResNet18
    width: float = 1.0
    dtype: Any = jnp.float32

    def __call__(self, images: jax.Array, *, train: bool, layout: Layout = ONE_VIEW) -> Maps:
        """Maps of images float [B, H, W, C], the channels of all sensors joined."""
        return joined(self.apart(images, train=train, layout=layout))

    @nn.compact
    def apart(
        self, images: jax.Array, *, train: bool, layout: Layout = ONE_VIEW
    ) -> tuple[Maps, ...]:
        """The same, the maps of each sensor for themselves."""
        first, found = 0, []
        for name, count in self.bands:
            encoder = self.encoder(width=self.width, dtype=self.dtype, name=name)
            part = images[..., first : first + count]
            found.append(encoder(part, train=train, layout=layout))
            first += count
        return tuple(found)


def joined(branches: tuple[Maps, ...]) -> Maps:
    """The maps of several encoders as those of one: [B, h, w, C1] and [B, h, w, C2] to C1 + C2."""
    return tuple(jnp.concatenate(level, axis=-1) for level in zip(*branches, strict=True))


def parted(maps: Maps, count: int) -> tuple[Maps, ...]:
    """The maps of `count` encoders of one kind from those that `joined` made of them."""
    levels = [jnp.split(level, count, axis=-1) for level in maps]
    return tuple(zip(*levels, strict=True))
