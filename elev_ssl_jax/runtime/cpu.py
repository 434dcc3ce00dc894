"""The compiler's options for a CPU, measured in benchmarks/NOTES.md."""

import functools
import warnings

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
def compiler_options(platform: str) -> dict[str, str | bool]:
    """For `jax.jit` of programs with convolutions that run on devices of a platform.

    From then on JAX doesn't warn of programs that it can't keep for another process.
    """
    if platform != "cpu":
        return {}
    # Those with oneDNN's convolutions (jaxlib 0.11.2). They are compiled again there, which is all
    # that follows, and a reader could do nothing about it.
    warnings.filterwarnings(
        "ignore", "Error writing persistent compilation cache entry .*bad_alloc"
    )
    return {name: value for name, value in _OPTIONS.items() if _is_known({name: value})}


def options_of_what_runs_once(platform: str) -> dict[str, int]:
    """For `jax.jit` of programs that take longer to compile than to run."""
    return {"xla_backend_optimization_level": 1} if platform == "cpu" else {}


def _is_known(option):
    try:
        jax.jit(lambda: 0, compiler_options=option).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
