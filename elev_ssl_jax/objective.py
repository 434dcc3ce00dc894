"""From a batch to the weighted loss: views, model outputs, L of equations 6 and 7.

    L = alpha * L_E + (1 - alpha) * L_G

L_E is the squared error on elevation, L_G NT-Xent on two views. A branch whose weight is zero has
no views, no parameters and no cost.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from elev_ssl_jax import augment, losses
from elev_ssl_jax.models.heads import ProjectionHead
from elev_ssl_jax.models.resnet import ResNet18
from elev_ssl_jax.models.unet import Decoder

ENCODERS = {"resnet18": ResNet18}


class PretrainModel(nn.Module):
    """Shared encoder, projection head on its last map, and elevation decoder (figure 1a).

    Attributes:
      encoder: Makes the encoder module.
      projection: Units of the projection head, or None without a contrastive branch.
      elevation_size: Cells of the elevation map, or None without an elevation branch.
      width: Multiplies the channels of encoder and decoder.
      dtype: Type of the computation.
    """

    encoder: Any
    projection: tuple[int, int] | None
    elevation_size: tuple[int, int] | None
    width: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, views: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """All views in one pass of the encoder, each with its own BatchNorm statistics.

        Args:
          views: float [B, V, H, W, C]. The first two go to the contrastive branch, the last one
            to the elevation branch.
          train: Whether BatchNorm uses the batch's statistics.

        Returns:
          `features`, the last map's spatial mean, float32 [B, V, C]; `embeddings` float32
          [B, 2, D]; `elevation` float32 [B, h, w] in normalised units.
        """
        batch, count = views.shape[:2]
        common = {"width": self.width, "dtype": self.dtype}
        images = views.reshape(batch * count, *views.shape[2:])
        encoder = self.encoder(**common, name="encoder")
        maps = encoder(images, train=train, views=count)
        maps = [m.reshape(batch, count, *m.shape[1:]) for m in maps]

        outputs = {"features": jnp.mean(maps[-1].astype(jnp.float32), axis=(2, 3))}
        if self.projection is not None:
            head = ProjectionHead(self.projection, self.dtype, name="projection")
            pair = outputs["features"][:, :2].reshape(batch * 2, -1)
            embeddings = head(pair, train=train, views=2)
            outputs["embeddings"] = embeddings.reshape(batch, 2, -1)
        if self.elevation_size is not None:
            decoder = Decoder(1, self.elevation_size, **common, name="elevation_decoder")
            outputs["elevation"] = decoder([m[:, -1] for m in maps], train=train)[..., 0]
        return outputs


def make_model(config: Any, elevation_size: tuple[int, int]) -> PretrainModel:
    """The model that `config.model` and `config.objective` describe."""
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    alpha = config.objective.alpha
    return PretrainModel(
        encoder=ENCODERS[config.model.encoder],
        projection=tuple(config.model.projection) if alpha < 1 else None,
        elevation_size=elevation_size if alpha > 0 else None,
        width=config.model.width,
        dtype=jnp.dtype(dtype),
    )


def make_views(
    config: Any, keys: jax.Array, images: jax.Array, elevation: jax.Array, *, train: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Views of a batch and the elevation that belongs to the last of them.

    Args:
      config: The run's configuration.
      keys: One key for each image, [B].
      images: [B, H, W, C] in sensor units.
      elevation: [B, h, w] in metres, NaN where missing.
      train: False gives the two contrastive views and the image itself, for evaluation.

    Returns:
      Views float32 [B, V, H, W, C] and elevation [B, h, w] in normalised units. V is 3, or less
      where a branch is absent.
    """
    images = augment.normalize(images, config.data.value_range)
    elevation = elevation / config.data.elevation_scale
    alpha = config.objective.alpha
    key1, key2, key3 = jnp.moveaxis(jax.vmap(partial(jax.random.split, num=3))(keys), 1, 0)
    rgb = tuple(config.data.rgb) or None
    views = []
    if alpha < 1 or not train:
        for key in (key1, key2):
            view, _ = augment.contrastive_view(key, images, rgb=rgb, **config.augment.contrastive)
            views.append(view)
    if not train:
        views.append(images)
    elif alpha > 0:
        view, elevation = augment.elevation_view(
            key3, images, elevation, rgb=rgb, **config.augment.elevation
        )
        views.append(view)
    return jnp.stack(views, axis=1), elevation


def weighted_loss(
    config: Any, outputs: dict[str, jax.Array], elevation: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L and its unweighted terms, by name, from the model's outputs and the true elevation."""
    alpha = config.objective.alpha
    loss, terms = jnp.zeros(()), {}
    if alpha > 0:
        terms["elevation_loss"] = losses.elevation_mse(
            outputs["elevation"], elevation, reduction=config.loss.elevation_reduction
        )
        loss += alpha * terms["elevation_loss"]
    if alpha < 1:
        z1, z2 = outputs["embeddings"][:, 0], outputs["embeddings"][:, 1]
        terms["contrastive_loss"] = losses.nt_xent(
            z1, z2, config.objective.temperature, chunk_size=config.loss.chunk_size or None
        )
        loss += (1 - alpha) * terms["contrastive_loss"]
    return loss, {"loss": loss, **terms}
