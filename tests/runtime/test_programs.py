import subprocess
import sys

SCRIPT = """
import jax, jax.numpy as jnp
from elev_ssl_jax.runtime import programs

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))

def compile_once():
    found.clear()
    jax.jit(lambda x, seed: x + jnp.sin(seed))(jnp.ones(3), 5)
    return "/jax/compilation_cache/cache_hits" in found

before = compile_once(), compile_once()
with programs.kept():
    within = compile_once(), compile_once()
    folder = jax.config.jax_compilation_cache_dir
after = compile_once(), compile_once()
import os
print(before, within, after, os.path.exists(folder), jax.config.jax_compilation_cache_dir)
jax.config.update("jax_compilation_cache_dir", "mine")
with programs.kept():
    print(jax.config.jax_compilation_cache_dir)
"""


def test_a_program_that_is_made_again_is_not_compiled_again(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert said.stdout.splitlines() == [
        "(False, False) (False, True) (False, False) False None",
        "mine",
    ], said.stderr
