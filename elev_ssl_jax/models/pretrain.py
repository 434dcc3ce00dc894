"""The networks of pre-training: encoders, and a branch for each term of the objective."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from elev_ssl_jax import matching
from elev_ssl_jax.models.fusion import joined
from elev_ssl_jax.models.heads import PlainHead, ProjectionHead
from elev_ssl_jax.models.unet import Decoder


class PretrainModel(nn.Module):
    """Shared encoder and a branch for each term of the objective (figures 1a and 1c).

    Attributes:
      encoder: Makes the encoder module.
      projection: Units of the projection head, or None without the global term.
      style: Whether that head sees the mean and variance of the encoder's last map (GLCNet's style
        features) rather than the mean.
      local_projection: Units of the local head, or None without the local term.
      elevation_size: Cells of the elevation map, or None without the elevation term.
      elevation_start: What the elevation branch says before it has learned anything, in its units.
      elevation_padding: What its decoder's convolutions see around a map, see `Decoder`.
      width: Multiplies the channels of encoder and decoders.
      dtype: Type of the computation.
    """

    encoder: Any
    projection: tuple[int, int] | None
    style: bool
    local_projection: tuple[int, int] | None
    elevation_size: tuple[int, int] | None
    elevation_start: float = 0.0
    elevation_padding: str = "zeros"
    width: float = 1.0
    dtype: Any = jnp.float32

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
          `features`, the last map's spatial mean for the last view, float32 [B, C]; `embeddings`
          float32 [B, 2, D]; `local_embeddings` float32 [B, 2, P, D]; `elevation` float32 [B, h, w]
          in normalised units.
        """
        batch, count, *image_shape = images.shape
        common = {"width": self.width, "dtype": self.dtype}
        encoder = self.encoder(**common, name="encoder")
        maps = encoder(images.reshape(batch * count, *image_shape), train=train, views=count)
        maps = [m.reshape(batch, count, *m.shape[1:]) for m in maps]

        last = maps[-1].astype(jnp.float32)
        means = jnp.mean(last, axis=(2, 3))
        outputs = {"features": means[:, -1]}
        if self.projection is not None:
            pair = means[:, :2]
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
            local_head = PlainHead(self.local_projection, self.dtype, name="local_head")
            outputs["local_embeddings"] = local_head(means)
        if self.elevation_size is not None:
            decoder = Decoder(
                1,
                self.elevation_size,
                **common,
                padding=self.elevation_padding,
                start=self.elevation_start,
                name="elevation_decoder",
            )
            outputs["elevation"] = decoder([m[:, -1] for m in maps], train=train)[..., 0]
        return outputs


class SensorsModel(nn.Module):
    """An encoder for each sensor, whose outputs on one place are to be alike (Dual-SimCLR, MMA).

    Attributes:
      encoder: Makes the encoders, `fusion.Branches`.
      contrast: What is compared: "mean", the last map's, through a head; "map", all of it, pixel
        by pixel; or None.
      projection: Units of each sensor's head, or () for none.
      elevation_size: Cells of the elevation map, or None without the elevation term.
      elevation_start: See `PretrainModel` for this and what follows.
      elevation_padding: See there.
      width: See there.
      dtype: See there.
    """

    encoder: Any
    contrast: str | None
    projection: tuple[int, int] | tuple[()]
    elevation_size: tuple[int, int] | None
    elevation_start: float = 0.0
    elevation_padding: str = "zeros"
    width: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Images float [B, V, H, W, C], the bands of the sensors one after the other; V is 1.

        Returns:
          `features`, the spatial means of the sensors' last maps, joined, float32 [B, C];
          `embeddings`, of one sensor and the other, float32 [B, 2, D]; `elevation` float32
          [B, h, w] in normalised units.
        """
        common = {"width": self.width, "dtype": self.dtype}
        encoder = self.encoder(**common, name="encoder")
        branches = encoder.apart(images[:, -1], train=train)
        lasts = [maps[-1].astype(jnp.float32) for maps in branches]
        means = [jnp.mean(last, axis=(1, 2)) for last in lasts]
        outputs = {"features": jnp.concatenate(means, axis=-1)}
        if self.contrast == "map":
            # The cosine of these vectors is the mean of the pixels' cosines.
            norms = [jnp.sum(last**2, axis=-1, keepdims=True) for last in lasts]
            pixels = [
                last * lax.rsqrt(jnp.maximum(norm, 1e-12))
                for last, norm in zip(lasts, norms, strict=True)
            ]
            outputs["embeddings"] = jnp.stack([p.reshape(len(p), -1) for p in pixels], axis=1)
        elif self.contrast == "mean":
            if self.projection:
                means = [
                    PlainHead(self.projection, self.dtype, name=f"projection_{name}")(mean)
                    for (name, _), mean in zip(encoder.bands, means, strict=True)
                ]
            outputs["embeddings"] = jnp.stack(means, axis=1)
        if self.elevation_size is not None:
            decoder = Decoder(
                1,
                self.elevation_size,
                **common,
                padding=self.elevation_padding,
                start=self.elevation_start,
                name="elevation_decoder",
            )
            outputs["elevation"] = decoder(joined(branches), train=train)[..., 0]
        return outputs
