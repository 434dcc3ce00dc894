"""A run's configuration: every field (`defaults`), and as the papers have it (`papers`)."""

from elev_ssl_jax.config.defaults import SEEDS_APART, class_names, default
from elev_ssl_jax.config.papers import (
    comparison,
    fine_tuning,
    fusion,
    two_sensor_fine_tuning,
    two_sensors,
    with_variant,
)

__all__ = [
    "SEEDS_APART",
    "class_names",
    "comparison",
    "default",
    "fine_tuning",
    "fusion",
    "two_sensor_fine_tuning",
    "two_sensors",
    "with_variant",
]
