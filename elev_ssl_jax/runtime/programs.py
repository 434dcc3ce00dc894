"""Compiled programs that are used again."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextmanager
def kept() -> Iterator[None]:
    """Within, a program that is made once more, such as by another run, is not compiled again.

    Programs lie in a folder that goes with the end, or in the user's `JAX_COMPILATION_CACHE_DIR`.
    """
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined, unused-ignore]
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        _keep_in(folder)
        try:
            yield
        finally:
            _keep_in(None)


def _keep_in(folder):
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # JAX looks for the folder once
