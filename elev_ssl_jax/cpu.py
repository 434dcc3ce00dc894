"""What makes XLA fast on a CPU, measured in benchmarks/NOTES.md; elsewhere it does nothing."""

import ctypes
import functools
import os
from importlib.util import find_spec

import jax

# XLA's choices among its own kernels and those of YNNPACK, oneDNN and Eigen. Options come and go
# with XLA, and each that it doesn't know is left out.
_OPTIONS: dict[str, str | bool] = {
    # Products and sums, and not the default's convolutions.
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    ),
    "xla_cpu_experimental_onednn_custom_call": True,  # convolutions; without effect before jax 0.11
    "xla_cpu_use_fusion_emitters": False,  # before jax 0.11
}


@functools.cache
def compiler_options() -> dict[str, str | bool]:
    """For `jax.jit` of programs with convolutions."""
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in _OPTIONS.items() if _is_known({name: value})}


def _is_known(option):
    try:
        jax.jit(lambda: 0, compiler_options=option).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def keep_memory() -> None:
    """Makes this process keep memory that is freed, with the C library of Linux.

    XLA allocates a program's working memory anew each time that it runs. Memory that was given
    back to the system in between comes page by page, each of them zeroed at its first use, which
    takes a good part of a training step. What is kept becomes fragmented: the process may take
    twice the memory. To be called before JAX makes its first array, since the threads that it
    starts then would have heaps of their own. Does nothing if GLIBC_TUNABLES is set.
    """
    if find_spec("jax_plugins") or find_spec("libtpu"):  # arrays lie on an accelerator
        return
    if "GLIBC_TUNABLES" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # from malloc.h
    mallopt(mmap_max, 0)  # from the heap, however large,
    mallopt(arena_max, 1)  # of which there is one,
    mallopt(trim_threshold, -1)  # and whose end is not given back
