"""Pictures of a pre-training: what the model is shown, and the elevation that it predicts."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elev_ssl_jax import augment, pictures, sensors
from elev_ssl_jax.pretraining.measures import level_and_relief
from elev_ssl_jax.pretraining.method import Method
from elev_ssl_jax.runtime.batches import Arrays

COUNT = 6  # chips in a picture


def draw_views(config: Any, method: Method, path: Path, few: Arrays) -> None:
    """A row for each chip: the image, its views, patches that match, and the elevation.

    Args:
      config: The run's configuration.
      method: Whose views are arrays [B, H, W, C], or [B, V, H, W, C] of several.
      path: The PNG to write.
      few: Chips, by feature.
    """
    few = {name: few[name][:COUNT] for name in method.reads}

    @jax.jit
    def make(batch):
        count = len(next(iter(batch.values())))
        return method.views(augment.sample_keys(config.seed, 0, count), batch, True)

    shown, targets = make({name: jnp.asarray(array) for name, array in few.items()})
    views: dict[str, np.ndarray] = {}
    for part in shown:
        if isinstance(part, jax.Array):
            part = part if part.ndim == 5 else part[:, None]
            for i in range(part.shape[1]):
                view = np.asarray(part[:, i])
                if config.objective.positives == "sensors":
                    views |= _sensors_apart(config, few, view)
                else:
                    views[f"view {len(views) + 1}"] = _displayable(config, view)
    elevation = getattr(targets, sensors.ELEVATION, None)
    if elevation is not None:
        elevation = np.asarray(elevation) * config.data.elevation_scale
    patches = getattr(targets, "patches", None)
    if patches is not None:
        shares = (np.asarray(share) for share in (patches.rows, patches.columns))
        centres = [share @ (np.arange(share.shape[-1]) + 0.5) for share in shares]
        patches = np.stack(centres, axis=-1), config.objective.local.patch_size
    pictures.draw_views(path, displayable(config, few), views, elevation, patches)


def draw_elevation(config: Any, path: Path, few: Arrays, predicted: np.ndarray) -> None:
    """A row for each chip: image, true and predicted elevation, true and predicted relief."""
    true = few[sensors.ELEVATION][: len(predicted)]
    known = ~np.isnan(true)
    reliefs = (level_and_relief(field, known)[1] for field in (true, predicted))
    pictures.draw_field(path, displayable(config, few), true, predicted, *reliefs)


def displayable(config: Any, few: Arrays) -> np.ndarray:
    """Three bands of the chips' inputs, to look at: float [B, H, W, 3] in 0..1."""
    chips = {name: jnp.asarray(array) for name, array in few.items()}
    return _displayable(config, sensors.join(sensors.of(config), chips))


def _sensors_apart(config, few, images):
    """Of joined images what each sensor sees, by its name."""
    chosen, colors = sensors.of(config), sensors.colors(config)
    owners = sensors.band_inputs(chosen, {name: array.shape[1:] for name, array in few.items()})
    found = {}
    for name in dict.fromkeys(owners):
        bands = [i for i, owner in enumerate(owners) if owner == name]
        rgb = tuple(bands.index(band) for band in colors) if set(colors) <= set(bands) else ()
        found[name] = pictures.displayable(images[..., bands], rgb)
    return found


def _displayable(config, images):
    rgb = sensors.colors(config)
    few = rgb and max(rgb) >= images.shape[-1]  # a view of one sensor of several
    return pictures.displayable(np.asarray(images), () if few else rgb)
