"""Which device holds what: batches are split over all devices, everything else is on each."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis, `batch`, over the devices; None is all.

    The axis is `Auto`: the compiler derives the shardings inside a step from those of its
    arguments, which is what lets the loss be written on global arrays.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("batch",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The array's `axis` split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "batch"))
