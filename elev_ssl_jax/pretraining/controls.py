"""What the elevation branch learns: elevation, or, as a control, something in its place.

If a method is better with elevation than without, the controls tell what of it helps. `shuffled`
has elevation's numbers, which say nothing of the image; `slope` has the ground's shape without its
height; `brightness` and `ndvi` are seen in the image itself. All but elevation itself are brought
to its mean and spread, so that the term keeps its size beside the others.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elev_ssl_jax import sensors
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.pretraining.method import Batch

_SOME = 512  # chips that say what the mean and the spread are

Target = Callable[[Batch], jax.Array]


def is_elevation(config: Any) -> bool:
    """Whether what the branch says is in metres, be they those of another chip."""
    return config.objective.target in ("elevation", "shuffled")


def check(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses a target that chips whose features have these shapes can't have.

    Raises:
      InputError: Names the field.
    """
    if not config.objective.alpha:
        return
    name, data = config.objective.target, config.data
    if sensors.ELEVATION not in shapes:
        its = "" if name == "elevation" else ", which says how large other targets are to be"
        raise InputError(
            f"config.objective.alpha is {config.objective.alpha}, but {data.name} has no elevation "
            f"to learn{its}; set it to 0, or cut chips with a DEM"
        )
    if name == "ndvi" and not (data.rgb and data.near_infrared):
        raise InputError(
            "config.objective.target is ndvi, for which config.data.rgb and "
            "config.data.near_infrared must say which bands are red and near infrared"
        )
    if name == "slope" and min(shapes[sensors.ELEVATION]) < 2:
        raise InputError("config.objective.target is slope, but the elevation has a single cell")


def elevation(config: Any) -> Target:
    """The target that is no control, see `make`."""
    return lambda batch: batch[sensors.ELEVATION] / config.data.elevation_scale


def make(config: Any, sample: Mapping[str, np.ndarray]) -> Target:
    """A function of a batch, cut to the squares that are seen: the target [B, h, w].

    It has the cells of the elevation, its units (`config.data.elevation_scale`), and NaN where that
    is missing. Of `shuffled` the batch has another chip's elevation already.

    Args:
      config: The run's configuration.
      sample: Some chips to learn from, which other targets are measured on.
    """
    if is_elevation(config) or not config.objective.alpha:
        return elevation(config)
    raw = TARGETS[config.objective.target]

    def other(batch):
        known = ~jnp.isnan(batch[sensors.ELEVATION])
        return jnp.where(known, raw(config, batch), jnp.nan)

    few = {name: jnp.asarray(array[:_SOME]) for name, array in sample.items()}
    (mean, spread), (its_mean, its_spread) = (
        (float(jnp.nanmean(f(few))), float(jnp.nanstd(f(few)))) for f in (elevation(config), other)
    )
    factor = spread / its_spread if its_spread > 0 else 0.0
    return lambda batch: (other(batch) - its_mean) * factor + mean


def _slope(config, batch):
    """Metres a cell; a cell beside a missing one has none."""
    down, right = jnp.gradient(batch[sensors.ELEVATION], axis=(1, 2))
    return jnp.hypot(down, right)


def _brightness(config, batch):
    return _to_cells(jnp.mean(_images(config, batch), axis=-1), batch)


def _ndvi(config, batch):
    """(near infrared - red) / (near infrared + red), in the sensors' units."""
    values = sensors.in_units(sensors.of(config), _images(config, batch))
    red = values[..., sensors.colors(config)[0]]
    infrared = values[..., sensors.near_infrared(config)]
    index = (infrared - red) / jnp.maximum(infrared + red, 1e-6)
    return _to_cells(jnp.clip(index, -1, 1), batch)


def _images(config, batch):
    """Of the sensors, float32 [B, H, W, C] in 0..1."""
    inputs = sensors.of(config)
    images = sensors.join(inputs, batch)
    return images[..., :-1] if inputs.with_elevation else images


def _to_cells(field, batch):
    """[B, H, W] to the cells of the elevation."""
    return jax.image.resize(field, batch[sensors.ELEVATION].shape, "linear")


# By `config.objective.target`: of a configuration and a batch, [B, h, w] in any unit.
TARGETS: dict[str, Callable[[Any, Batch], jax.Array]] = {
    "slope": _slope,
    "brightness": _brightness,
    "ndvi": _ndvi,
}
