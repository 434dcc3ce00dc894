import pytest

from elev_ssl_jax.convert.__main__ import main
from tests.commands import call


@pytest.fixture
def convert(monkeypatch, capsys):
    """Runs the command; its exit code, and what it printed."""

    def run(source, to, out, *more):
        words = ["--from", source, "--to", to, "--out", out, *more]
        code, said = call(main, monkeypatch, capsys, *words)
        return code, said.out + said.err

    return run
