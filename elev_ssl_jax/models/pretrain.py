"""The networks of pre-training: encoders, and a branch for each term of the objective."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from elev_ssl_jax import matching
from elev_ssl_jax.models.batch_norm import Layout
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
      mesh: Devices that a batch is split over; None for arrays of one device.
      batchnorm_groups: Of the batch, each with BatchNorm statistics of its own.
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
    mesh: Mesh | None = None
    batchnorm_groups: int = 1

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
        batch, count, height, width, _ = images.shape
        # Two chips are initialised with.
        mesh = self.mesh if self.mesh and batch % self.mesh.size == 0 else None
        whole = Layout(mesh.size if mesh else 1, count, _groups(self, batch))
        on_each = partial(_on_each, mesh)

        def of_views(first, last, array):
            def cut(own):
                each = len(own) // count
                return own[first * each : last * each]

            return on_each(cut, array)

        of_pair, of_last = partial(of_views, 0, 2), partial(of_views, count - 1, count)
        by_sample = partial(on_each, partial(_by_sample, 2))
        common, both = {"width": self.width, "dtype": self.dtype}, whole._replace(views=2)
        encoder = self.encoder(**common, name="encoder")
        maps = encoder(on_each(_by_view, images), train=train, layout=whole)

        last = maps[-1].astype(jnp.float32)
        means = jnp.mean(last, axis=(1, 2))
        outputs = {"features": of_last(means)}
        if self.projection is not None:
            seen = of_pair(means)
            if self.style:
                variances = jnp.var(of_pair(last), axis=(1, 2))
                seen = jnp.concatenate([seen, variances], axis=-1)
            head = ProjectionHead(self.projection, self.dtype, name="projection")
            outputs["embeddings"] = by_sample(head(seen, train=train, layout=both))
        if self.local_projection is not None and patches is not None:
            # The reference's decoder ends in a convolution to 128 channels. It is linear, and so
            # is the mean over a patch, so that the head's first layer can take its place: the
            # head sees 16 channels, and no map of 128 is made at full resolution.
            decoder = Decoder(None, (height, width), **common, name="local_decoder")
            decoded = decoder([of_pair(m) for m in maps], train=train, layout=both)
            rows, columns = (on_each(_by_view, p) for p in (patches.rows, patches.columns))
            means = matching.patch_means(decoded, rows, columns)
            local_head = PlainHead(self.local_projection, self.dtype, name="local_head")
            outputs["local_embeddings"] = by_sample(local_head(means))
        if self.elevation_size is not None:
            decoder = Decoder(
                1,
                self.elevation_size,
                **common,
                padding=self.elevation_padding,
                start=self.elevation_start,
                name="elevation_decoder",
            )
            one = whole._replace(views=1)
            decoded = decoder([of_last(m) for m in maps], train=train, layout=one)
            outputs["elevation"] = decoded[..., 0]
        return outputs


def _groups(model, batch):
    """BatchNorm groups of a batch, of which an initialisation has too few chips."""
    return model.batchnorm_groups if batch % model.batchnorm_groups == 0 else 1


def _on_each(
    mesh: Mesh | None, function: Callable[[jax.Array], jax.Array], array: jax.Array
) -> jax.Array:
    """A function of each device's own stretch of an array, whose first axis is split over `mesh`.

    So that the compiler need not find out that nothing has to move. Where it is left to, views are
    sliced from maps that are first laid out anew: a tenth of a TPU's step.
    """
    if mesh is None:
        return function(array)
    along = PartitionSpec(*mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=along, out_specs=along)(array)


def _by_view(array: jax.Array) -> jax.Array:
    """[B, V, ...] as [V B, ...]."""
    return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])


def _by_sample(views: int, array: jax.Array) -> jax.Array:
    """[V B, ...] as [B, V, ...]."""
    return array.reshape(views, -1, *array.shape[1:]).swapaxes(0, 1)


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
      mesh: See there.
      batchnorm_groups: See there.
    """

    encoder: Any
    contrast: str | None
    projection: tuple[int, int] | tuple[()]
    elevation_size: tuple[int, int] | None
    elevation_start: float = 0.0
    elevation_padding: str = "zeros"
    width: float = 1.0
    dtype: Any = jnp.float32
    mesh: Mesh | None = None
    batchnorm_groups: int = 1

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
        devices = self.mesh.size if self.mesh and len(images) % self.mesh.size == 0 else 1
        layout = Layout(devices, 1, _groups(self, len(images)))
        branches = encoder.apart(images[:, -1], train=train, layout=layout)
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
            decoded = decoder(joined(branches), train=train, layout=layout)
            outputs["elevation"] = decoded[..., 0]
        return outputs
