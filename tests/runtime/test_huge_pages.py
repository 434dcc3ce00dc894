import os
import subprocess
import sys

import pytest

from elev_ssl_jax.runtime import huge_pages

# Its arguments, the setting, and how many pages the system gave for an array of 64 MiB.
PROGRAM = """
import os, resource, statistics, sys
from elev_ssl_jax.runtime import huge_pages
huge_pages.find_spec = lambda name: None  # whatever is installed
if "use" in sys.argv:
    huge_pages.use_huge_pages()
import jax, jax.numpy as jnp
double = jax.jit(lambda x: 2 * x)
x = jnp.ones(2**24)
faults = []
for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    y = double(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), int(statistics.median(faults)))
"""


def run(*arguments, **more):
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    *said, faults = subprocess.check_output(
        [sys.executable, "-c", PROGRAM, *arguments],
        text=True,
        env=environment | {"JAX_PLATFORMS": "cpu"} | more,
    ).split()
    return " ".join(said), int(faults)


@pytest.mark.skipif(
    not huge_pages._POLICY.exists() or "[madvise]" not in huge_pages._POLICY.read_text(),
    reason="on this system a process has no choice",
)
def test_a_process_starts_again_with_huge_pages():
    said, faults = run("use", "two words")
    assert said == "['use', 'two words'] glibc.malloc.hugetlb=1"
    said, small = run()
    assert said == "[] None"
    assert faults < small / 10


def test_a_setting_of_the_users_own_is_left_alone():
    said, _ = run("use", GLIBC_TUNABLES="glibc.malloc.arena_max=2")
    assert said == "['use'] glibc.malloc.arena_max=2"


def test_nothing_starts_again_where_it_would_not_help(monkeypatch, tmp_path):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started again"))
    monkeypatch.setattr(huge_pages, "_POLICY", tmp_path / "enabled")
    huge_pages.use_huge_pages()  # another system
    huge_pages._POLICY.write_text("always madvise [never]")
    huge_pages.use_huge_pages()
    huge_pages._POLICY.write_text("always [madvise] never")
    monkeypatch.setattr(huge_pages, "find_spec", lambda name: name == "jax_plugins")
    huge_pages.use_huge_pages()
