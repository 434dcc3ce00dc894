import os
import subprocess
import sys

import jax
import pytest

from elev_ssl_jax import cpu

# Pages that the system gave to a program while it ran; the heap grows for some runs before it is
# large enough, and so it is the median that is told.
FAULTS = """
import resource, statistics, sys
import jax, jax.numpy as jnp
from elev_ssl_jax import cpu
cpu.find_spec = lambda name: None  # whatever is installed
if "keep" in sys.argv:
    cpu.keep_memory()
double = jax.jit(lambda x: 2 * x)
x = jnp.ones(2**24)
faults = []
for _ in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    y = double(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median(faults[20:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux is memory kept")
def test_memory_is_kept():
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environment["JAX_PLATFORMS"] = "cpu"

    def faults(*arguments, **more):
        command = [sys.executable, "-c", FAULTS, *arguments]
        return float(subprocess.check_output(command, text=True, env=environment | more))

    assert faults("keep") < 16 < faults()
    assert faults("keep", GLIBC_TUNABLES="glibc.malloc.hugetlb=0") > 16


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    known = cpu.compiler_options()
    assert known
    monkeypatch.setattr(cpu, "_OPTIONS", {**known, "xla_cpu_no_such_option": True})
    cpu.compiler_options.cache_clear()
    assert cpu.compiler_options() == known
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    cpu.compiler_options.cache_clear()
    assert cpu.compiler_options() == {}
    cpu.compiler_options.cache_clear()
