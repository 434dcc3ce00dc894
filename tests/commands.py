"""Commands, called as from a shell."""

import multiprocessing
import os
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]
# Of several tests, which share what is compiled for it.
TINY_DEMO = (
    *("--config.data.synthetic.chips=60", "--config.data.synthetic.size=32"),
    *("--config.model.width=0.125", "--config.model.encoder=vgg"),
    *("--config.batch_size=8", "--config.epochs=3"),
)
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.preloaded"])
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


def beside_bars(said):
    """The lines of what a command said but for its progress bars."""
    lines = re.split(r"[\r\n]+", said)
    return [line for line in lines if line.strip() and not re.search(r": +\d+%\|", line)]


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


def forked(module, *words, cwd=ROOT, **more):
    """As `run("-m", module, *words)`, by a process forked from one that has imported everything.

    That spares the ten seconds that TensorFlow takes; how a command starts isn't tested by it.
    """
    words = [module, *map(str, words)]
    # A process that was forked can't start again, as it would for its memory.
    variables = environment(GLIBC_TUNABLES="", **more)
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, "stdout"), Path(folder, "stderr")]
        for path in said:
            path.touch()
        process = _FORKS.Process(target=_forked, args=(words, cwd, variables, said))
        process.start()
        process.join()
        told = [path.read_text() for path in said]
    return subprocess.CompletedProcess(words, process.exitcode, *told)


def _forked(words, folder, variables, said):
    """What a process does that was forked."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    for stream, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY), stream)
    # What JAX reads when it is imported.
    jax.config.update("jax_compilation_cache_dir", variables["JAX_COMPILATION_CACHE_DIR"])
    seconds = float(variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    run_module(words)


def run_module(words):
    """`python -m WORDS` in this process; ends as that does, by SystemExit if at all."""
    sys.argv = [*words]
    sys.orig_argv = [sys.executable, "-m", *words]
    sys.modules.pop(words[0], None)  # it is run, not imported
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
