"""Devices to compile for: TPUs that aren't there, or those at hand."""

import os
from typing import Any

import jax
from jax.sharding import Mesh

from elev_ssl_jax.errors import InputError
from elev_ssl_jax.runtime import sharding

LOCAL = "local"
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
# Not v4: its chips are described as two devices each, and run as one.
KNOWN = {"v5e": _FLAT, "v5p": _CUBES, "v6e": _FLAT}


def prepare() -> None:
    """Lets libtpu be used where there is no TPU; comes before JAX looks for devices."""
    jax.config.update("jax_platforms", "cpu")
    # A program that was compiled without a device can't be read back.
    jax.config.update("jax_enable_compilation_cache", False)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    # That it would ask for, and complains of.
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")


def make_mesh(name: str, slices: int = 1) -> Mesh:
    """The mesh of a run on a topology.

    Args:
      name: Such as "v5e:16x16", or `LOCAL`, the devices at hand.
      slices: How many of these, with a slower network between them.

    Raises:
      InputError: There is no such topology, or no libtpu.
    """
    if name != LOCAL:
        return sharding.make_mesh(_devices(name, slices))
    if slices > 1:
        raise InputError(f"--slices={slices}; the devices at hand are what they are")
    try:
        return sharding.make_mesh()
    except (RuntimeError, AssertionError) as error:  # no device of the platform that is asked for
        platform = os.environ.get("JAX_PLATFORMS", "")
        raise InputError(f"--topology=local: no device ({error or f'{platform=}'})") from error


def _devices(name, slices) -> list[Any]:
    kind, _, shape = name.partition(":")
    if shape not in KNOWN.get(kind, ()):
        raise InputError(
            f"--topology={name} is unknown; there are {LOCAL} (the devices at hand, GPUs too), "
            + "; ".join(f"{k}:{', '.join(shapes)}" for k, shapes in KNOWN.items())
        )
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise InputError(
            "TPU programs are compiled by libtpu, which isn't installed; pip install "
            "'elev_ssl_jax[tpu]', or --topology=local"
        ) from error
    from jax.experimental import topologies

    more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if shape == "1x1":
        more["chips_per_host_bounds"] = (1, 1, 1)  # else a host has four
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(f"--topology={name}: {str(error).splitlines()[0]}") from error
