import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from elev_ssl_jax.errors import InputError, one_line, reported


def ended(error, capsys):
    with pytest.raises(SystemExit) as stop, reported():
        raise error
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return stop.value.code, said


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (InputError("a.tif not found"), 2, "error: a.tif not found"),
        (InputError("a\nb\x1b[31m"), 2, r"error: a b\x1b[31m"),
        (OSError(28, "No space left on device", "out.tif"), 2, "out.tif: No space left on device"),
        (PermissionError(13, "Permission denied", "x"), 2, "see to its permissions"),
        (RuntimeError("write() failed: No space left on device"), 2, "free some space"),
        (MemoryError(), 2, "not enough memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GiB"), 2, "memory of the device"),
        (RuntimeError("DEADLINE_EXCEEDED: Barrier timed out"), 2, "see what they say"),
        (KeyboardInterrupt(), 130, "interrupted; "),
    ],
)
def test_what_a_user_can_mend_is_a_line(error, code, says, capsys):
    found, said = ended(error, capsys)
    assert found == code
    assert says in said


@pytest.mark.parametrize("error", [KeyError("x"), OSError("GDAL's, without a number")])
def test_a_defect_is_a_line_and_its_traceback_in_a_file(error, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, said = ended(error, capsys)
    (story,) = tmp_path.iterdir()
    assert code == 1
    assert said.endswith(f"the traceback is in {story}")
    assert f"{type(error).__name__}" in said
    assert f"raise error\n{type(error).__name__}" in story.read_text()


def test_a_line_ends_somewhere():
    assert len(one_line("x" * 10_000)) == 600


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_leave_nothing_half_written(number, code, tmp_path):
    program = """
        import signal, sys, time
        from pathlib import Path
        from elev_ssl_jax import files
        from elev_ssl_jax.errors import reported
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
        with reported(), files.new_folder(Path("new")) as folder, files.new_file(Path("a")) as file:
            (folder / "half").touch()
            print("ready", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        begun = time.monotonic()
        said = process.communicate()[1].strip()
    assert time.monotonic() - begun < 30
    assert process.returncode == code
    assert len(said.splitlines()) == 1
    assert "nothing is left half written" in said
    assert not os.listdir(tmp_path)


def test_who_reads_no_further_hears_nothing_of_it():
    program = (
        "from elev_ssl_jax.errors import reported\n"
        "with reported():\n    for _ in range(100_000): print('x' * 99)"
    )
    done = subprocess.run(
        f"{sys.executable} -c {program!r} | head -1".replace("\\n", "\n"),
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert len(done.stdout) == 100


def test_what_must_not_be_disturbed_comes_to_its_end(tmp_path):
    program = (
        "import os, signal\nfrom elev_ssl_jax.errors import reported, undisturbed\n"
        "with reported():\n"
        "    with undisturbed():\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        open('done', 'w').close()\n"
        "    open('more', 'w').close()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
    assert done.returncode == 143
    assert os.listdir(tmp_path) == ["done"]
