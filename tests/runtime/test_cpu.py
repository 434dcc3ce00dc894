import jax
import numpy as np

from elev_ssl_jax.runtime import cpu


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    known = cpu.compiler_options("cpu")
    assert known
    monkeypatch.setattr(cpu, "_OPTIONS", {**known, "xla_cpu_no_such_option": True})
    cpu.compiler_options.cache_clear()
    assert cpu.compiler_options("cpu") == known
    cpu.compiler_options.cache_clear()


def test_they_are_for_the_cpu_that_a_program_is_for_whatever_this_machine_has():
    assert cpu.compiler_options("tpu") == {}


def test_what_runs_once_gives_the_bits_that_it_gives_when_compiled_at_length():
    def draw(seed):
        keys = jax.random.split(jax.random.key(seed))
        return jax.random.normal(keys[0], (3, 3, 64, 64)), jax.random.uniform(keys[1], (999,)) - 0.5

    short = jax.jit(draw, compiler_options=cpu.options_of_what_runs_once("cpu"))
    long = jax.jit(draw, compiler_options={"xla_backend_optimization_level": 3})
    jax.tree.map(np.testing.assert_array_equal, short(7), long(7))
    assert cpu.options_of_what_runs_once("tpu") == {}
