"""A target in elevation's place: the topographic position index, ridges above and valleys below."""

import jax.numpy as jnp

from elev_ssl_jax.pretraining import controls


def position(config, batch):
    """Metres that a cell lies above the mean of itself and its eight neighbours: [B, h, w]."""
    elevation = batch["elevation"]
    height, width = elevation.shape[1:]
    wide = jnp.pad(elevation, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = [wide[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return elevation - sum(around) / 9


controls.TARGETS["position"] = position  # of config.objective.target
