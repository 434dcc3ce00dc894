import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from elev_ssl_jax import files
from elev_ssl_jax.errors import InputError

HOLDER = """
import sys, time
from pathlib import Path
from elev_ssl_jax import files
with files.{context}:
    print("in", flush=True)
    time.sleep(60)
"""


def hold(context, *arguments):
    """Another process that is inside `context` when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(context=context), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "in\n"
    return process


def test_a_file_is_whole_or_what_it_was(tmp_path):
    path = tmp_path / "results.json"
    files.write_text(path, "first")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    def fail_half_way():
        with files.new_file(path) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_of_a_file_left_goes_with_the_next(tmp_path):
    path = tmp_path / "map[1].tif"
    process = hold("new_file(Path(sys.argv[1]))", path)
    mine = tmp_path / ".map[1].tif.unfinished-mine"
    mine.mkdir()
    (mine / "notes").write_text("without a lock it is nobody's of ours")
    (left,) = {*tmp_path.iterdir()} - {mine}
    (left / "half").write_text("of it")
    with files.new_file(path) as partial:  # another that is alive keeps its own
        partial.write_text("second")
    assert path.read_text() == "second"
    assert (left / "half").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    files.write_text(path, "third")
    assert {*tmp_path.iterdir()} == {path, mine}
    (tmp_path / ".map[1].tif.unfinished-empty").mkdir()  # of one that was killed at once
    files.write_text(path, "fourth")
    assert {*tmp_path.iterdir()} == {path, mine}


def test_the_lock_of_a_folder_goes_last(tmp_path, monkeypatch):
    """Without it a maker that is killed while it tidies up would leave what is nobody's."""

    def killed(_):
        raise RuntimeError("killed")

    with files.scratch_folder(tmp_path / "map.tif") as folder:
        for name in ("a", "z"):
            (folder / name).touch()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            with pytest.raises(RuntimeError, match="killed"):
                files.remove_owned(folder)
        assert (folder / ".lock").exists()
    assert not [*tmp_path.iterdir()]


def _umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_folder_in_use_is_refused_and_not_after_its_user_was_killed(tmp_path):
    process = hold("sole_writer(Path(sys.argv[1]), 'taken')", tmp_path)
    with pytest.raises(InputError, match="taken"), files.sole_writer(tmp_path, "taken"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with files.sole_writer(tmp_path, "taken"):
        pass


def test_a_new_folder_has_one_writer_and_what_a_killed_one_left_goes(tmp_path):
    out = tmp_path / "chips"
    process = hold("new_folder(Path(sys.argv[1]))", out)
    (left,) = tmp_path.iterdir()
    (left / "half").write_text("of it")
    with pytest.raises(InputError, match="written by another process"), files.new_folder(out):
        pass
    assert (left / "half").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with files.new_folder(out) as folder:
        assert not (folder / "half").exists()
        (folder / "whole").write_text("all of it")
    assert [p.name for p in tmp_path.iterdir()] == ["chips"]
    assert [p.name for p in out.iterdir()] == ["whole"]


def test_a_lock_that_its_owner_has_just_taken_away_keeps_nobody_out_of_the_next(
    tmp_path, monkeypatch
):
    lock = fcntl.flock

    def late(file, how):
        (tmp_path / ".lock").unlink()  # the owner has finished, between our opening and locking
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(InputError, match="taken"), files.sole_writer(tmp_path, "taken"):
        pass
    monkeypatch.undo()
    with files.sole_writer(tmp_path, "taken"):
        pass


def test_the_umask_of_other_threads_files_is_left_alone(tmp_path, monkeypatch):
    usual = 0o666 & ~_umask()
    monkeypatch.delattr(os, "umask")
    files.write_text(tmp_path / "new", "text")
    assert (tmp_path / "new").stat().st_mode & 0o777 == usual


def test_a_new_folder_is_locked_until_it_has_its_name(tmp_path, monkeypatch):
    locked = []

    def rename(path, target):
        locked.append((path / ".lock").exists())
        os.rename(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with files.new_folder(tmp_path / "chips") as folder:
        (folder / "whole").write_text("all of it")
    assert locked == [True]
    assert [p.name for p in (tmp_path / "chips").iterdir()] == ["whole"]


def test_folders_that_are_not_ours_are_left_alone(tmp_path):
    # A folder of the user's own, under the name that earlier versions deleted, and under ours.
    for name in ("chips.partial", ".chips.unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text("mine")
    with pytest.raises(InputError, match="in the way"), files.new_folder(tmp_path / "chips"):
        pass
    (tmp_path / ".chips.unfinished").rename(tmp_path / "elsewhere")
    (tmp_path / ".chips.unfinished").mkdir()  # of a writer that was killed at once
    with files.new_folder(tmp_path / "chips"):
        pass
    assert (tmp_path / "chips.partial" / "precious").read_text() == "mine"


def test_outputs_never_are_inputs_under_any_name(tmp_path):
    scene, other = tmp_path / "scene.tif", tmp_path / "other.tif"
    scene.write_text("pixels")
    (tmp_path / "a").mkdir()
    os.link(scene, tmp_path / "hard.tif")
    (tmp_path / "soft.tif").symlink_to(scene)
    for name in ("scene.tif", "a/../scene.tif", "hard.tif", "soft.tif"):
        with pytest.raises(InputError, match="is an input"):
            files.check_outputs([tmp_path / name], [other, scene], overwrite=True)
    other.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        files.check_outputs([other], [scene])
    files.check_outputs([other], [scene], overwrite=True)
    with pytest.raises(InputError, match="twice"):
        files.check_outputs([tmp_path / "new", tmp_path / "a/../new"])
    with pytest.raises(InputError, match="no folder"):
        files.check_outputs([tmp_path / "b" / "new"])
