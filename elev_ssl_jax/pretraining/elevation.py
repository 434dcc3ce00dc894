"""SimCLR, GLCNet, Elevation-Map and their sums: one objective, L of equations 6 and 7.

    L = alpha * L_E + (1 - alpha) * (lam * L_G + (1 - lam) * L_L)

L_E is the squared error on elevation, L_G NT-Xent on two views, L_L NT-Xent on patches of the two
views that show the same ground. A branch whose weight is zero has no views, no parameters and no
cost.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from elev_ssl_jax import augment, losses, matching, sensors, squares
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.models import encoders
from elev_ssl_jax.models.encoders import compute_dtype, encoder_type
from elev_ssl_jax.models.pretrain import PretrainModel
from elev_ssl_jax.pretraining import controls
from elev_ssl_jax.pretraining.method import Batch, Method, Views
from elev_ssl_jax.runtime import sharding


class Shown(NamedTuple):
    """What the model is shown."""

    images: jax.Array  # float32 [B, V, H, W, C]; two contrastive views, the elevation view
    patches: matching.Patches | None  # of the two contrastive views


class Targets(NamedTuple):
    """What it should say."""

    elevation: jax.Array | None  # [B, h, w] of the last view, normalised, NaN where missing
    patches: matching.Patches | None


def make(config: Any, sample: Mapping[str, np.ndarray], mesh: Mesh) -> Method:
    """The method that `config.objective` describes.

    Args:
      config: The run's configuration.
      sample: Some chips to learn from, by feature.
      mesh: The devices that are to compute.

    Raises:
      InputError: The chips don't suit it.
    """
    shapes = {name: array.shape[1:] for name, array in sample.items()}
    check(config, shapes)
    return Method(
        reads=reads(config),
        views=partial(make_views, config, target=controls.make(config, sample)),
        model=make_model(
            config,
            shapes,
            sharding.platform(mesh),
            elevation_start=first_elevation(config, sample),
            mesh=mesh,
        ),
        loss=partial(weighted_loss, config),
    )


def reads(config: Any) -> tuple[str, ...]:
    """The features that are seen or learned."""
    learned = [sensors.ELEVATION] * (config.objective.alpha > 0)
    return tuple(dict.fromkeys([*config.data.inputs, *learned]))


def first_elevation(config: Any, sample: Mapping[str, np.ndarray]) -> float:
    """What the elevation branch is to say at first, in its units: the mean of some chips.

    Raises:
      InputError: Elevation is to be learned, and none of them has any.
    """
    if not config.objective.alpha:
        return 0.0
    mean = mean_elevation(sample)
    if math.isnan(mean):
        raise InputError(
            f"no elevation in any of {len(sample[sensors.ELEVATION])} chips of "
            f"{config.data.split} of {config.data.name}; check the DEM that the chips were cut "
            "with"
        )
    return float(mean / config.data.elevation_scale)


def mean_elevation(sample: Mapping[str, np.ndarray]) -> float:
    """In metres, over some training chips: what a model without eyes would say. NaN without any.

    At zero metres a network of mountains would first learn their mean, for long.
    """
    elevation = sample.get(sensors.ELEVATION, np.empty(0))
    known = elevation[~np.isnan(elevation)]
    return float(known.mean(dtype=np.float64)) if known.size else math.nan


def weights(config: Any) -> dict[str, float]:
    """Weight of each term in L."""
    alpha, lam = config.objective.alpha, config.objective.lam
    return {"elevation": alpha, "global": (1 - alpha) * lam, "local": (1 - alpha) * (1 - lam)}


def check(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses what can't be done with chips whose features have these shapes.

    Raises:
      InputError: Inputs are missing, or the images too small.
    """
    sensors.check(config, shapes)
    controls.check(config, shapes)
    seen = squares.cut_shapes(shapes, config.augment.crop_size)
    check_image_size(config, *sensors.image_size(sensors.of(config), seen))


def check_image_size(config: Any, height: int, width: int) -> None:
    """Refuses what can't be done with images of this size.

    Raises:
      InputError: A patch is larger than a view, or style features have one cell to vary over.
    """
    encoders.check_size(config, height, width)
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


def make_model(
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    platform: str,
    *,
    elevation_start: float = 0.0,
    mesh: Mesh | None = None,
) -> PretrainModel:
    """The model that `config.model` and `config.objective` describe.

    Args:
      config: The run's configuration.
      shapes: Of the features of a chip.
      platform: Of the devices that are to compute.
      elevation_start: What the elevation branch says at first.
      mesh: The devices that a batch is split over; it changes no result.
    """
    weight = weights(config)
    return PretrainModel(
        encoder=encoder_type(config, shapes),
        projection=tuple(config.model.projection) if weight["global"] else None,
        style=config.objective.global_features == "style",
        local_projection=tuple(config.objective.local.projection) if weight["local"] else None,
        elevation_size=elevation_size(config, shapes),
        elevation_start=elevation_start,
        elevation_padding=config.model.elevation_padding,
        width=config.model.width,
        dtype=compute_dtype(config, platform),
        mesh=mesh,
        batchnorm_groups=config.model.batchnorm_groups,
    )


def elevation_size(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """Cells of the elevation that the model tells of chips with features of `shapes`, if any."""
    if not config.objective.alpha:
        return None
    height, width = squares.cut_shapes(shapes, config.augment.crop_size)[sensors.ELEVATION]
    return height, width


def make_views(
    config: Any,
    keys: jax.Array,
    batch: Batch,
    train: bool = True,
    *,
    target: controls.Target | None = None,
) -> Views:
    """Views of a batch, the elevation that belongs to the last of them, and matching patches.

    Args:
      config: The run's configuration.
      keys: One key for each chip, [B].
      batch: The inputs in their units, and `elevation` [B, h, w] in metres, NaN where missing, if
        that is learned.
      train: False gives the image itself, for evaluation, in place of the elevation view.
      target: Makes what stands in the elevation's place, if something does.

    Returns:
      Three views, or fewer where a branch is absent.
    """
    chosen = sensors.of(config)
    batch = cut(config, keys, batch, train)
    images = sensors.join(chosen, batch)
    weight = weights(config)
    key1, key2, key3, key4 = jnp.moveaxis(jax.vmap(partial(jax.random.split, num=4))(keys), 1, 0)
    color: dict[str, Any] = {
        "rgb": sensors.colors(config) or None,
        "uncolored": int(chosen.with_elevation),
    }
    elevation, patches, views = None, None, []
    if weight["elevation"] < 1:
        crops = []
        for key in (key1, key2):
            view, crop = augment.contrastive_view(
                key, images, **color, **config.augment.contrastive
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
    if weight["elevation"]:
        elevation = (target or controls.elevation(config))(batch)
    if not train:
        views.append(images)
    elif elevation is not None:
        view, elevation = augment.elevation_view(
            key3, images, elevation, **color, **config.augment.elevation
        )
        views.append(view)
    shown = sensors.standardize(chosen, jnp.stack(views, axis=1))
    return Views(Shown(shown, patches), Targets(elevation, patches))


def cut(config: Any, keys: jax.Array, batch: Batch, train: bool) -> Batch:
    """Squares of `config.augment.crop_size` pixels: random ones, or those at the centre."""
    return squares.cut_chips(batch, config.augment.crop_size, keys if train else None)


def weighted_loss(
    config: Any, outputs: dict[str, jax.Array], targets: Targets
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L, and by name: L, its unweighted terms, and the share of samples without a patch."""
    weight, nt_xent = weights(config), contrast(config)
    loss, terms = jnp.zeros(()), dict[str, jax.Array]()
    if targets.elevation is not None:
        error, terms = elevation_loss(config, outputs[sensors.ELEVATION], targets.elevation)
        loss += weight["elevation"] * error
    if weight["global"]:
        z = outputs["embeddings"]
        terms["global_loss"] = nt_xent(z[:, 0], z[:, 1])
        loss += weight["global"] * terms["global_loss"]
    if targets.patches is not None:
        # All patches of all images stand against each other.
        _, _, count, size = outputs["local_embeddings"].shape
        z1, z2 = (outputs["local_embeddings"][:, view].reshape(-1, size) for view in (0, 1))
        valid = targets.patches.valid
        terms["local_loss"] = nt_xent(z1, z2, valid=jnp.repeat(valid, count))
        terms["local_without_room"] = 1 - jnp.mean(valid, dtype=jnp.float32)
        loss += weight["local"] * terms["local_loss"]
    return loss, {"loss": loss, **terms}


def contrast(config: Any) -> Callable[..., jax.Array]:
    """NT-Xent of two arrays of embeddings, as the configuration has it."""
    return partial(
        losses.nt_xent,
        temperature=config.objective.temperature,
        chunk_size=config.loss.chunk_size or None,
        across=config.objective.negatives == "across",
    )


def elevation_loss(
    config: Any, predicted: jax.Array, elevation: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L_E of normalised elevation [B, h, w], its parts weighed as asked for, and these by name."""
    reduction = config.loss.elevation_reduction
    loss = losses.elevation_mse(predicted, elevation, reduction=reduction)
    terms = {"elevation_loss": loss}
    if reduction == "mean" and controls.is_elevation(config):
        terms["elevation_rmse_m"] = config.data.elevation_scale * jnp.sqrt(loss)
    level, relief = config.loss.level_weight, config.loss.relief_weight
    if level == relief:
        return level * loss, terms
    terms["relief_loss"] = losses.relief_mse(predicted, elevation, reduction=reduction)
    # The whole is the sum of the two.
    return level * loss + (relief - level) * terms["relief_loss"], terms
