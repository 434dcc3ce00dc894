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
