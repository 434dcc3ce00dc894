"""The method of a configuration."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh

from elev_ssl_jax.pretraining import elevation, fusion
from elev_ssl_jax.pretraining.method import Method


def make(config: Any, sample: Mapping[str, np.ndarray], mesh: Mesh) -> Method:
    """By `config.objective.positives`: of two views, or of two sensors; see `elevation.make`."""
    return _module(config).make(config, sample, mesh)


def make_model(config: Any, shapes: Mapping[str, tuple[int, ...]], platform: str) -> nn.Module:
    """The model of that method; see `elevation.make_model`."""
    return _module(config).make_model(config, shapes, platform)


def _module(config) -> Any:
    return {"views": elevation, "sensors": fusion}[config.objective.positives]
