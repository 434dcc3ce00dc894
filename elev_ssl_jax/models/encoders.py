"""Encoders by the names that `config.model.encoder` has."""

from typing import Any

import jax.numpy as jnp

from elev_ssl_jax.models.resnet import ResNet18, ResNet34, ResNet50

ENCODERS = {"resnet18": ResNet18, "resnet34": ResNet34, "resnet50": ResNet50}


def compute_dtype(config: Any, platform: str) -> jnp.dtype:
    """The type that `config.model.dtype` stands for on devices of a platform."""
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    return jnp.dtype(dtype)
