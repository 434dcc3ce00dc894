"""Commands, called as from a shell, in this process."""

import sys


def call(main, monkeypatch, capsys, *words):
    """A command's exit code, and what it printed."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr()
