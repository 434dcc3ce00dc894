"""Encoders by the names that `config.model.encoder` has."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from elev_ssl_jax import sensors
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.models.fusion import Branches
from elev_ssl_jax.models.plain_unet import PlainEncoder
from elev_ssl_jax.models.resnet import ResNet18, ResNet34, ResNet50
from elev_ssl_jax.models.swin import Swin
from elev_ssl_jax.models.vgg import VGG

RESNETS = {"resnet18": ResNet18, "resnet34": ResNet34, "resnet50": ResNet50}
ENCODERS = {**RESNETS, "swin_t": Swin, "vgg": VGG, "plain": PlainEncoder}


@dataclasses.dataclass(frozen=True)
class Late:
    """Makes `Branches`, as the class of an encoder makes one.

    Equal ones are one to JAX, so that what is compiled for a model serves the next.
    """

    bands: tuple[tuple[str, int], ...]
    encoder: Any

    def __call__(self, **fields: Any) -> Branches:
        """An encoder for each input; `fields` are those of each."""
        return Branches(self.bands, self.encoder, **fields)


def check_size(config: Any, height: int, width: int) -> None:
    """Refuses images that are too small for the encoder's maps.

    Raises:
      InputError: Says how large they must be.
    """
    least = {"vgg": 8, "plain": 16}.get(config.model.encoder, 1)  # others fill up what is small
    if min(height, width) < least:
        raise InputError(
            f"config.model.encoder is {config.model.encoder}, which halves images until nothing is "
            f"left of {height} x {width} pixels; {least} are needed"
        )


def encoder_type(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """What makes the encoder that `config` describes, for chips whose features have `shapes`."""
    encoder = ENCODERS[config.model.encoder]
    if config.model.fusion == "late":
        return Late(sensors.apart(sensors.of(config), shapes), encoder)
    return encoder


def compute_dtype(config: Any, platform: str) -> jnp.dtype:
    """The type that `config.model.dtype` stands for on devices of a platform."""
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    return jnp.dtype(dtype)
