import gc
import os
import secrets
import sys
import tempfile
from pathlib import Path

# Before JAX starts: eight devices, so that what must not depend on their number can be tested, and
# less to optimise, since tiny models compile for longer than they run.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# Where libtpu is installed JAX would look for a TPU first. A GPU is asked for.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import numpy as np
import pytest

from elev_ssl_jax.config import default

# PyTorch's CUDA build loads Triton, which crashes in a process that has TensorFlow.
sys.modules["triton"] = None

# Compiles make the first example slow.
hypothesis.settings.register_profile("default", deadline=None, max_examples=15)
hypothesis.settings.load_profile("default")

# Runs of one shape share their compiled steps, and so do the processes of `pytest -n`: the one that
# starts them comes here first, and they inherit its environment.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory()
    os.environ["ELEV_TEST_PROGRAMS"] = _cache.name
jax.config.update("jax_compilation_cache_dir", os.environ["ELEV_TEST_PROGRAMS"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.hookimpl(tryfirst=True)  # before any is left out
def pytest_collection_modifyitems(config, items):
    """Marks those that `slow.txt` names, and begins with commands, which take longest."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)
    lines = Path(__file__).with_name("slow.txt").read_text().splitlines()
    named = [line for line in lines if not line.startswith("#")]
    found = set()
    for item in items:
        if line := next((line for line in named if item.nodeid.startswith(line)), ""):
            item.add_marker("slow")
            found.add(line)
    if not config.option.file_or_dir and (unknown := sorted(set(named) - found)):
        raise pytest.UsageError(f"tests/slow.txt: there is no such test: {', '.join(unknown)}")


def pytest_collection_finish():
    """What was imported stays: Python need not look through it, again and again, for garbage."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _free_compiled_programs():
    """On a CPU each takes hundreds of memory mappings, and Linux gives a process 65530."""
    yield
    jax.clear_caches()


@pytest.fixture
def rng():
    """Fresh inputs every time; a test that fails shows how to draw the same again."""
    seed = int(os.environ.get("ELEV_TEST_SEED", 0)) or secrets.randbits(32)
    print(f"random inputs: ELEV_TEST_SEED={seed}")
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
    return np.random.default_rng(seed)


@pytest.fixture
def tiny():
    """A configuration whose steps take milliseconds."""
    config = default()
    config.batch_size = 8
    config.epochs = 2
    config.model.encoder = "vgg"  # compiles in half the time
    config.model.width = 0.125
    config.model.projection = (16, 8)
    config.log.every_steps = 1
    config.checkpoint.every_epochs = 1
    return config


@pytest.fixture
def chips():
    """20 chips of 32 pixels with 11 cells of elevation, some of it missing."""
    rng = np.random.default_rng(0)
    elevation = rng.uniform(100, 900, (20, 11, 11)).astype(np.float32)
    elevation[3, :4] = np.nan
    return {
        "image": rng.integers(0, 6000, (20, 32, 32, 3)).astype(np.uint16),
        "elevation": elevation,
        "label": rng.integers(0, 2, 20),
    }


@pytest.fixture(scope="session")
def batch_mesh():
    """Meshes of the first n devices."""

    def make(count):
        kinds = (jax.sharding.AxisType.Auto,)
        return jax.make_mesh((count,), ("batch",), axis_types=kinds, devices=jax.devices()[:count])

    return make
