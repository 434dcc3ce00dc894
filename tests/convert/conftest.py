import sys

import pytest

from elev_ssl_jax.convert.__main__ import main


@pytest.fixture
def convert(monkeypatch, capsys):
    """Runs the command; its exit code, and what it printed."""

    def run(source, to, out, *more):
        words = ["convert", "--from", source, "--to", to, "--out", out, *more]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        return code, "".join(capsys.readouterr())

    return run
