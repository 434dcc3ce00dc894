"""Runs in a bucket of Google Cloud Storage, by an emulator of it."""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from etils.epath import gpath

from elev_ssl_jax import checks, command_line, files, load, storage
from elev_ssl_jax.convert.__main__ import main as convert
from elev_ssl_jax.data import source
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.runtime import checkpoint, sharding
from tests import buckets, commands, runs
from tests.data import hostile

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bucket():
    """A folder of it, by its address."""
    with buckets.google():
        yield f"gs://{buckets.NAME}/some/folder"


@pytest.mark.parametrize(
    "name",
    [
        "s3://bucket/run",
        "https://x.org/run",
        "gs:/bucket/run",
        "gs://bucket",
        "gs://b/",
        "gs://b/lr[0.1]",
    ],
)
def test_addresses_that_cannot_work_are_refused(name):
    with pytest.raises(InputError, match=f"^{re.escape(name)}"):
        storage.run_path(name)
    with pytest.raises(InputError, match=f"^{re.escape(name)}"):
        load(name)


def test_a_gs_address_is_of_runs_alone(capsys):
    with pytest.raises(InputError, match=r"^gs://b/x is an address"):
        storage.local_path("gs://b/x")
    assert storage.local_path("a:b/c.tif") == Path("a:b/c.tif")
    with pytest.raises(command_line.argparse.ArgumentTypeError, match="is an address"):
        command_line.path("gs://b/x")


def test_data_in_a_bucket_are_told_to_be_mounted(tiny):
    tiny.data.dir = "gs://bucket/data"
    with pytest.raises(InputError, match=r"gs://bucket/data is an address"):
        source.find_name(tiny.data)
    with pytest.raises(InputError, match=r"data.dir.*gs://bucket/data.* bucket is mounted"):
        checks.check(tiny)


def test_what_is_missing_is_named(monkeypatch):
    storage._prepare.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"gs:// needs gcsfs; pip install gcsfs"):
        storage.run_path("gs://bucket/run")


def test_files_appear_whole_and_stay_if_writing_fails(bucket):
    path = storage.run_path(f"{bucket}/files") / "a.json"
    files.write_text(path, "one")
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]
    with pytest.raises(OSError, match="lost"), files.new_file(path) as partial:
        partial.with_name("lost").read_text()
    assert path.read_text() == "one"
    files.write_text(path, "two")
    assert path.read_text() == "two"
    with files.new_file(path.with_name("b.npy")) as partial:
        np.save(partial, np.arange(3))
    (array,) = files.read_arrays(path.with_name("b.npy"), "again")
    assert array.tolist() == [0, 1, 2]


def test_a_folder_has_one_writer_on_a_machine(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    one, other = (storage.run_path(f"{bucket}/{name}") for name in ("one", "other"))
    with (
        files.sole_writer(one, "taken"),
        files.sole_writer(other, "taken, too"),
        pytest.raises(InputError, match=r"^taken$"),
        files.sole_writer(one, "taken"),
    ):
        pass
    with files.sole_writer(one, "taken"):
        (kept,) = tmp_path.iterdir()
    kept.mkdir()  # a killed writer leaves it
    (kept / ".lock").touch()
    with files.sole_writer(one, "taken"):
        pass
    assert not kept.exists()


def test_a_bucket_that_is_not_there_or_closed_is_told(bucket, tmp_path):
    storage.check_writable(storage.run_path(bucket))
    absent = storage.run_path("gs://elsewhere/run")
    with pytest.raises(InputError, match=r"^gs://elsewhere/run can't be used .*credentials"):
        storage.check_writable(absent)

    out = tmp_path / "x.safetensors"
    with hostile.web_server(403) as (url, _):  # of a process, since a client keeps its server
        done = commands.forked(
            *("elev_ssl_jax.convert", "--from=gs://bucket/run", "--to=torchvision"),
            f"--out={out}",
            STORAGE_EMULATOR_HOST=url,
        )
    assert done.returncode == 2
    assert re.fullmatch(r"error: gs://bucket/run can't be used \(.*may read.*\n", done.stderr), (
        done.stderr
    )


def test_a_client_that_tfds_has_begun_with_is_left_out(bucket, monkeypatch):
    monkeypatch.delenv("EPATH_USE_TF")
    gpath._is_tf_installed.cache_clear()
    assert gpath._is_tf_installed()  # as when TFDS looks for data in a bucket
    storage._prepare.cache_clear()
    path = storage.run_path(f"{bucket}/before")
    files.write_text(path, "one")
    assert path.read_text() == "one"


def test_a_process_without_access_sees_no_file_and_says_so_with_the_others():
    class Closed:
        """A file of a bucket."""

        def __str__(self):
            return "gs://bucket/run/.shared"

        def exists(self):
            raise OSError("Forbidden")

    assert not sharding._sees(Closed())


def test_weights_are_converted_from_a_file_of_this_machine(bucket, tmp_path, monkeypatch, capsys):
    there = storage.run_path(f"{bucket}/x.safetensors")
    there.write_bytes(b"weights")
    arguments = [f"--from={there}", "--to=run", f"--out={tmp_path / 'run'}"]
    monkeypatch.setattr("sys.argv", ["convert", *arguments])
    with pytest.raises(SystemExit):
        convert()
    assert "copy a file of weights to this machine first" in capsys.readouterr().err


def test_a_run_in_a_bucket_is_what_it_is_in_a_folder(bucket, tmp_path, rng):
    settings = runs.settings()
    here, there = tmp_path / "run", storage.run_path(f"{bucket}/run")
    for folder in (here, there):
        runs.save_run(folder, settings, (32, 32, 3))
    chips = {"image": rng.integers(0, 6000, (2, 32, 32, 3)).astype(np.uint16)}
    features = [load(folder).features(chips) for folder in (here, str(there))]
    np.testing.assert_array_equal(*features)
    copied = tmp_path / "copied"
    fsspec.filesystem("gcs").get(str(there), str(copied), recursive=True)
    np.testing.assert_array_equal(load(copied).features(chips), features[0])
    # Nothing is renamed in a bucket: a checkpoint that is not whole has its name already.
    (there / "checkpoints" / "9" / "default" / "manifest.ocdbt").write_text("half")
    assert checkpoint.steps(there) == [4]
    assert load(str(there)).step == 4


def test_a_killed_run_goes_on_in_its_bucket(bucket, tmp_path):
    name = f"{bucket}/killed"
    command = [
        *(sys.executable, "-m", "elev_ssl_jax.main", "--config=configs/simclr_elev.py:demo"),
        *(f"--workdir={name}", "--config.checkpoint.every_epochs=1", *commands.TINY_DEMO),
    ]
    # At home chips are made that can't be in a bucket.
    environment = commands.environment(HOME=str(tmp_path))
    run = storage.run_path(name)
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as killed:
        while killed.poll() is None and not checkpoint.steps(run):
            time.sleep(0.1)
        killed.kill()
        assert killed.wait() == -9, killed.stderr.read().decode()
    done = commands.forked(*command[2:], HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stdout
    found = {path.name for path in run.iterdir()}
    assert {"config.json", "results.json", "views.png", "elevation.png", "checkpoints"} <= found
    assert any(path.startswith("events.") for path in found)
    assert json.loads((run / "results.json").read_text())["elevation_rmse_m"] > 0
    assert load(name).step == checkpoint.steps(run)[-1]
    other = commands.forked(*command[2:], "--config.seed=7", HOME=str(tmp_path))
    assert (other.returncode, "seed was 0 and is 7" in other.stderr) == (2, True)
