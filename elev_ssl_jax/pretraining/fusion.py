"""Dual-SimCLR and MMA: what two sensors see of one place belongs together.

NT-Xent whose positive is the other sensor's image of the same chip (Scheibenreif et al. 2022), on
projected means ("mean") or, as multi-modal alignment has it, on whole maps, pixel by pixel ("map",
Windsor et al., arXiv 2107.06652). Elevation may be a third task beside it, by the sum of equation
7 of arXiv 2304.06857:

    L = alpha * L_E + (1 - alpha) * L_G
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from elev_ssl_jax import sensors
from elev_ssl_jax.models.encoders import compute_dtype, encoder_type
from elev_ssl_jax.models.pretrain import SensorsModel
from elev_ssl_jax.pretraining import controls, elevation
from elev_ssl_jax.pretraining.method import Batch, Method, Views
from elev_ssl_jax.runtime import sharding


class Shown(NamedTuple):
    """What the model is shown."""

    images: jax.Array  # float32 [B, 1, H, W, C], the bands of the sensors one after the other


class Targets(NamedTuple):
    """What it should say."""

    elevation: jax.Array | None  # [B, h, w], normalised, NaN where missing


def make(config: Any, sample: Mapping[str, np.ndarray], mesh: Mesh) -> Method:
    """The method that `config.objective` describes; see `elevation.make`."""
    shapes = {name: array.shape[1:] for name, array in sample.items()}
    elevation.check(config, shapes)
    start = elevation.first_elevation(config, sample)
    return Method(
        reads=elevation.reads(config),
        views=partial(make_views, config, target=controls.make(config, sample)),
        model=make_model(config, shapes, sharding.platform(mesh), elevation_start=start, mesh=mesh),
        loss=partial(weighted_loss, config),
    )


def make_model(
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    platform: str,
    *,
    elevation_start: float = 0.0,
    mesh: Mesh | None = None,
) -> SensorsModel:
    """The model that `config.model` and `config.objective` describe; see `elevation.make_model`."""
    contrasted = elevation.weights(config)["global"] > 0
    return SensorsModel(
        encoder=encoder_type(config, shapes),
        contrast=config.objective.global_features if contrasted else None,
        projection=tuple(config.model.projection),
        elevation_size=elevation.elevation_size(config, shapes),
        elevation_start=elevation_start,
        elevation_padding=config.model.elevation_padding,
        width=config.model.width,
        dtype=compute_dtype(config, platform),
        mesh=mesh,
        batchnorm_groups=config.model.batchnorm_groups,
    )


def make_views(
    config: Any,
    keys: jax.Array,
    batch: Batch,
    train: bool = True,
    *,
    target: controls.Target | None = None,
) -> Views:
    """A square of each chip, at a random place, the same of both sensors and of the elevation.

    Args:
      config: The run's configuration.
      keys: One key for each chip, [B].
      batch: The sensors in their units, and `elevation` [B, h, w] in metres, NaN where missing, if
        that is learned.
      train: False gives the square at the centre.
      target: As of `elevation.make_views`.
    """
    batch = elevation.cut(config, keys, batch, train)
    target = target or controls.elevation(config)
    learned = target(batch) if config.objective.alpha else None
    return Views(Shown(sensors.shown(sensors.of(config), batch)[:, None]), Targets(learned))


def weighted_loss(
    config: Any, outputs: dict[str, jax.Array], targets: Targets
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L, and by name: L and its unweighted terms."""
    weight = elevation.weights(config)
    loss, terms = jnp.zeros(()), dict[str, jax.Array]()
    if targets.elevation is not None:
        error, terms = elevation.elevation_loss(
            config, outputs[sensors.ELEVATION], targets.elevation
        )
        loss += weight["elevation"] * error
    if weight["global"]:
        z = outputs["embeddings"]
        terms["global_loss"] = elevation.contrast(config)(z[:, 0], z[:, 1])
        loss += weight["global"] * terms["global_loss"]
    return loss, {"loss": loss, **terms}
