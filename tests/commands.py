"""Commands, called as from a shell."""

import os
import subprocess
import sys
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]
# Of several tests, which share what is compiled for it.
TINY_DEMO = (
    *("--config.data.synthetic.chips=60", "--config.data.synthetic.size=32"),
    *("--config.model.width=0.125", "--config.model.encoder=vgg"),
    *("--config.batch_size=8", "--config.epochs=3"),
)
_OURS = ("XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL", "PYTHONPATH")  # a user's environment has none of them


def call(main, monkeypatch, capsys, *words):
    """A command's exit code, and what it printed, in this process."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr()


def environment(**more):
    """A user's, but that tiny programs, which compile for longer than they run, are made sooner."""
    return {
        **{name: value for name, value in os.environ.items() if name not in _OURS},
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        **more,
    }


def run(*words, cwd=ROOT, python=sys.executable, **more):
    """`python WORDS` in a process of its own; `more` is of its environment."""
    command = [str(python), *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env=environment(**more), capture_output=True, text=True, check=False
    )
