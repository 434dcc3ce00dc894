import platform
import subprocess
import sys
import textwrap

import jax
import pytest

from elev_ssl_jax import cpu


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only of the C library of Linux")
def test_memory_is_kept():
    program = """
        import resource, sys
        from elev_ssl_jax import cpu
        if sys.argv[1] == "keep":
            cpu.keep_memory()
        import jax, jax.numpy as jnp
        double = jax.jit(lambda x: 2 * x)
        x = jnp.ones(2**24)  # 16,384 pages
        for i in range(8):
            if i == 4:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            jax.block_until_ready(double(x))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", textwrap.dedent(program), how]))
        for how in ("keep", "default")
    }
    assert faults["keep"] < 1000 < faults["default"]


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
