"""Runs in a bucket of Google Cloud Storage, by an emulator of it."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest

from elev_ssl_jax import command_line, files, load, storage
from elev_ssl_jax.data import source
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.runtime import checkpoint
from tests import buckets, runs

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
    with pytest.raises(InputError, match=r"config.data.dir=gs://bucket/data: .* mount the bucket"):
        source.find_name(tiny.data)


def test_what_is_missing_is_named(monkeypatch):
    storage._prepare.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'gs:// needs gcsfs; pip install -e ".\[cloud\]"'):
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
    assert files.content(path).read() == b"two"


def test_a_folder_has_one_writer_on_a_machine(bucket):
    one, other = (storage.run_path(f"{bucket}/{name}") for name in ("one", "other"))
    with (
        files.sole_writer(one, "taken"),
        files.sole_writer(other, "taken, too"),
        pytest.raises(InputError, match=r"^taken$"),
        files.sole_writer(one, "taken"),
    ):
        pass
    with files.sole_writer(one, "taken"):
        pass


def test_a_bucket_that_is_not_there_or_closed_is_told(bucket, monkeypatch):
    storage.check_writable(storage.run_path(bucket))
    absent = storage.run_path("gs://elsewhere/run")
    with pytest.raises(InputError, match=r"^gs://elsewhere/run can't be used .*credentials"):
        storage.check_writable(absent)

    class Closed(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(403)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Closed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # Another process, since a client keeps the server that it began with.
    words = "from elev_ssl_jax import load; load('gs://bucket/run')"
    environment = {**os.environ, "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{server.server_port}"}
    done = subprocess.run(
        [sys.executable, "-c", words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    server.shutdown()
    assert "InputError: gs://bucket/run can't be used (" in done.stderr, done.stderr


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
        *(f"--workdir={name}", "--config.epochs=3", "--config.batch_size=8"),
        *("--config.data.synthetic.chips=60", "--config.data.synthetic.size=32"),
        *("--config.model.width=0.125", "--config.checkpoint.every_epochs=1"),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "HOME": str(tmp_path),  # where chips are made that can't be in a bucket
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    run = storage.run_path(name)
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as killed:
        while killed.poll() is None and not checkpoint.steps(run):
            time.sleep(0.1)
        killed.kill()
        assert killed.wait() == -9, killed.stderr.read().decode()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stdout
    found = {path.name for path in run.iterdir()}
    assert {"config.json", "results.json", "views.png", "elevation.png", "checkpoints"} <= found
    assert any(path.startswith("events.") for path in found)
    assert json.loads((run / "results.json").read_text())["elevation_rmse_m"] > 0
    assert load(name).step == checkpoint.steps(run)[-1]
    other = subprocess.run(
        [*command, "--config.seed=7"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (other.returncode, "seed was 0 and is 7" in other.stderr) == (2, True)
