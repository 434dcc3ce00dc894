import jax

from elev_ssl_jax import cpu


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
