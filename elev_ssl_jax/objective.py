"""From a batch to the weighted loss: views, model outputs, L of equations 6 and 7.

    L = alpha * L_E + (1 - alpha) * (lam * L_G + (1 - lam) * L_L)

L_E is the squared error on elevation, L_G NT-Xent on two views, L_L NT-Xent on patches of the two
views that show the same ground. A branch whose weight is zero has no views, no parameters and no
cost.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from elev_ssl_jax import augment, losses, matching
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.models.heads import LocalHead, ProjectionHead
from elev_ssl_jax.models.resnet import ResNet18, ResNet34, ResNet50
from elev_ssl_jax.models.unet import Decoder

ENCODERS = {"resnet18": ResNet18, "resnet34": ResNet34, "resnet50": ResNet50}


class Views(NamedTuple):
    """What the model is shown, and what it should say."""

    # float32 [B, V, H, W, C] in 0..1; two contrastive views, the elevation view. The loss does
    # without it.
    images: jax.Array | None
    elevation: jax.Array  # [B, h, w] of the last view, normalised units, NaN where missing
    patches: matching.Patches | None  # of the two contrastive views


class PretrainModel(nn.Module):
    """Shared encoder and a branch for each term of the objective (figures 1a and 1c).

    Attributes:
      encoder: Makes the encoder module.
      projection: Units of the projection head, or None without the global term.
      style: Whether that head sees the mean and variance of the encoder's last map (GLCNet's style
        features) rather than the mean.
      local_projection: Units of the local head, or None without the local term.
      elevation_size: Cells of the elevation map, or None without the elevation term.
      width: Multiplies the channels of encoder and decoders.
      dtype: Type of the computation.
      elevation_padding: What the elevation decoder's convolutions see around a map, see `Decoder`.
    """

    encoder: Any
    projection: tuple[int, int] | None
    style: bool
    local_projection: tuple[int, int] | None
    elevation_size: tuple[int, int] | None
    width: float = 1.0
    dtype: Any = jnp.float32
    elevation_padding: str = "zeros"

    @nn.compact
    def __call__(
        self, images: jax.Array, patches: matching.Patches | None = None, *, train: bool
    ) -> dict[str, jax.Array]:
        """All views in one pass of the encoder, each with its own BatchNorm statistics.

        Args:
          images: float [B, V, H, W, C]. The first two views go to the contrastive branches, the
            last one to the elevation branch.
          patches: P patches on each of the first two; None leaves out the local branch.
          train: Whether BatchNorm uses the batch's statistics.

        Returns:
          `features`, the last map's spatial mean, float32 [B, V, C]; `embeddings` float32
          [B, 2, D]; `local_embeddings` float32 [B, 2, P, D]; `elevation` float32 [B, h, w] in
          normalised units.
        """
        batch, count, *image_shape = images.shape
        common = {"width": self.width, "dtype": self.dtype}
        encoder = self.encoder(**common, name="encoder")
        maps = encoder(images.reshape(batch * count, *image_shape), train=train, views=count)
        maps = [m.reshape(batch, count, *m.shape[1:]) for m in maps]

        last = maps[-1].astype(jnp.float32)
        outputs = {"features": jnp.mean(last, axis=(2, 3))}
        if self.projection is not None:
            pair = outputs["features"][:, :2]
            if self.style:
                pair = jnp.concatenate([pair, jnp.var(last[:, :2], axis=(2, 3))], axis=-1)
            head = ProjectionHead(self.projection, self.dtype, name="projection")
            embeddings = head(pair.reshape(batch * 2, -1), train=train, views=2)
            outputs["embeddings"] = embeddings.reshape(batch, 2, -1)
        if self.local_projection is not None and patches is not None:
            # The reference's decoder ends in a convolution to 128 channels. It is linear, and so
            # is the mean over a patch, so that the head's first layer can take its place: the
            # head sees 16 channels, and no map of 128 is made at full resolution.
            pairs = [m[:, :2].reshape(batch * 2, *m.shape[2:]) for m in maps]
            size = (image_shape[0], image_shape[1])
            decoder = Decoder(None, size, **common, name="local_decoder")
            decoded = decoder(pairs, train=train, views=2)
            means = matching.patch_means(decoded.reshape(batch, 2, *decoded.shape[1:]), patches)
            local_head = LocalHead(self.local_projection, self.dtype, name="local_head")
            outputs["local_embeddings"] = local_head(means)
        if self.elevation_size is not None:
            common["padding"] = self.elevation_padding
            decoder = Decoder(1, self.elevation_size, **common, name="elevation_decoder")
            outputs["elevation"] = decoder([m[:, -1] for m in maps], train=train)[..., 0]
        return outputs


def weights(config: Any) -> dict[str, float]:
    """Weight of each term in L."""
    alpha, lam = config.objective.alpha, config.objective.lam
    return {"elevation": alpha, "global": (1 - alpha) * lam, "local": (1 - alpha) * (1 - lam)}


def check_image_size(config: Any, height: int, width: int) -> None:
    """Refuses what can't be done with images of this size.

    Raises:
      InputError: A patch is larger than a view, or style features have one cell to vary over.
    """
    weight, size = weights(config), min(height, width)
    patch_size = config.objective.local.patch_size
    if weight["local"] and patch_size > size:
        raise InputError(
            f"config.objective.local.patch_size is {patch_size}; a crop has {size} pixels, so it "
            f"must be at most {size}"
        )
    if weight["global"] and config.objective.global_features == "style" and size <= 32:
        raise InputError(
            "config.objective.global_features is 'style'; it must be 'mean' for images of "
            f"{height} x {width} pixels, whose last map has no extent to vary over"
        )


def compute_dtype(config: Any) -> jnp.dtype:
    """The type that `config.model.dtype` stands for on this machine."""
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(dtype)


def make_model(config: Any, elevation_size: tuple[int, int]) -> PretrainModel:
    """The model that `config.model` and `config.objective` describe."""
    weight = weights(config)
    return PretrainModel(
        encoder=ENCODERS[config.model.encoder],
        projection=tuple(config.model.projection) if weight["global"] else None,
        style=config.objective.global_features == "style",
        local_projection=tuple(config.objective.local.projection) if weight["local"] else None,
        elevation_size=elevation_size if weight["elevation"] else None,
        width=config.model.width,
        dtype=compute_dtype(config),
        elevation_padding=config.model.elevation_padding,
    )


def make_views(
    config: Any, keys: jax.Array, images: jax.Array, elevation: jax.Array, *, train: bool = True
) -> Views:
    """Views of a batch, the elevation that belongs to the last of them, and matching patches.

    Args:
      config: The run's configuration.
      keys: One key for each image, [B].
      images: [B, H, W, C] in sensor units.
      elevation: [B, h, w] in metres, NaN where missing.
      train: False gives the image itself, for evaluation, in place of the elevation view.

    Returns:
      Three views, or fewer where a branch is absent.
    """
    images = augment.normalize(images, config.data.value_range)
    elevation = elevation / config.data.elevation_scale
    weight = weights(config)
    key1, key2, key3, key4 = jnp.moveaxis(jax.vmap(partial(jax.random.split, num=4))(keys), 1, 0)
    rgb = tuple(config.data.rgb) or None
    views, patches = [], None
    if weight["elevation"] < 1:
        crops = []
        for key in (key1, key2):
            view, crop = augment.contrastive_view(
                key, images, rgb=rgb, **config.augment.contrastive
            )
            views.append(view)
            crops.append(crop)
        if weight["local"] and train:
            patches = matching.draw_patches(
                key4,
                (crops[0], crops[1]),
                (images.shape[1], images.shape[2]),
                count=config.objective.local.patches,
                size=config.objective.local.patch_size,
            )
    if not train:
        views.append(images)
    elif weight["elevation"]:
        view, elevation = augment.elevation_view(
            key3, images, elevation, rgb=rgb, **config.augment.elevation
        )
        views.append(view)
    return Views(jnp.stack(views, axis=1), elevation, patches)


def weighted_loss(
    config: Any, outputs: dict[str, jax.Array], views: Views
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L, and by name: L, its unweighted terms, and the share of samples without a patch."""
    weight = weights(config)
    nt_xent = partial(
        losses.nt_xent,
        temperature=config.objective.temperature,
        chunk_size=config.loss.chunk_size or None,
    )
    loss, terms = jnp.zeros(()), {}
    if weight["elevation"]:
        terms["elevation_loss"] = losses.elevation_mse(
            outputs["elevation"], views.elevation, reduction=config.loss.elevation_reduction
        )
        loss += weight["elevation"] * terms["elevation_loss"]
        if config.loss.relief_weight != 1:
            terms["relief_loss"] = losses.relief_mse(
                outputs["elevation"], views.elevation, reduction=config.loss.elevation_reduction
            )
            more = config.loss.relief_weight - 1  # the elevation loss has it once
            loss += weight["elevation"] * more * terms["relief_loss"]
    if weight["global"]:
        z = outputs["embeddings"]
        terms["global_loss"] = nt_xent(z[:, 0], z[:, 1])
        loss += weight["global"] * terms["global_loss"]
    if views.patches is not None:
        # All patches of all images stand against each other.
        _, _, count, size = outputs["local_embeddings"].shape
        z1, z2 = (outputs["local_embeddings"][:, view].reshape(-1, size) for view in (0, 1))
        valid = views.patches.valid
        terms["local_loss"] = nt_xent(z1, z2, valid=jnp.repeat(valid, count))
        terms["local_without_room"] = 1 - jnp.mean(valid, dtype=jnp.float32)
        loss += weight["local"] * terms["local_loss"]
    return loss, {"loss": loss, **terms}
