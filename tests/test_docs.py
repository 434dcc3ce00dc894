"""What the documentation shows, as a reader would do it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jupytext
import numpy as np
import rasterio
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from tests import commands
from tests.campaign import world

ROOT = Path(__file__).parents[1]


def test_the_pages_are_built_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    assert "nt_xent" in api
    first = (tmp_path / "site" / "index.html").read_text()
    assert "From GeoTIFFs to a map".lower() in first.lower()


def test_the_readme_is_short_and_its_links_lead_somewhere():
    for page in ("README.md", "launch/README.md", "SECURITY.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text()
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


SMALL = {
    "elev_ssl_jax.data.chips": ("--size=32", "--elevation-size=11", "--block=48"),
    "elev_ssl_jax.data.prepare": ("--labeled=8", "--test=8"),
    "elev_ssl_jax.main": (
        *("--config.model.width=0.0625", "--config.epochs=1"),
        "--config.model.encoder=vgg",  # compiles soonest
    ),
}


def test_the_readmes_way_from_geotiffs_to_a_map(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (shown,) = re.findall(r"```sh\n(python -m elev_ssl_jax.data.chips.*?)```", readme(), re.DOTALL)
    world.scene(tmp_path, side=200)
    with rasterio.open(tmp_path / "image.tif") as source:
        for name, band in zip(("red", "green", "blue"), source.read(), strict=True):
            world.write(tmp_path / f"{name}.tif", band[None])
    with rasterio.open(tmp_path / "labels.tif") as source:
        world.write(tmp_path / "cover.tif", np.where(source.read() == 2, 4, 1).astype(np.uint8))
    for line in shown.replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        small = SMALL.get(words[2], ())
        if "configs/simclr_elev.py" in line:
            small = (*small, "--config.batch_size=8", "--config.augment.crop_size=32")
        elif "configs/finetune" in line:
            small = (*small, "--config.finetune.frozen_epochs=0", "--config.data.split=labeled")
            small = (*small, "--config.batch_size=4")
        words = [word.replace("--stride", "--stride=16") for word in words if word != "50"]
        done = commands.forked(*words[2:], *small, cwd=tmp_path)
        assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
    with rasterio.open(tmp_path / "map.tif") as source:
        assert source.shape == (200, 200)
        assert source.tags(1)["class_0"] == "water"


def readme():
    return (ROOT / "README.md").read_text()


def test_the_notebook_goes_from_arrays_to_a_map_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.delenv("XLA_FLAGS")  # which a reader has not
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = jupytext.read(ROOT / "docs" / "from_arrays.py")
    absent = "tensorflow", "tensorflow_datasets", "array_record", "grain"
    first = f"import sys\nsys.modules.update(dict.fromkeys({absent}))"
    last = "scores['accuracy'], float(np.mean(mapped == classes)), mapped.shape == classes.shape"
    notebook.cells = [new_code_cell(first), *notebook.cells, new_code_cell(last)]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    drawn = [o for cell in notebook.cells for o in cell.get("outputs", ()) if "data" in o]
    assert sum("image/png" in o["data"] for o in drawn) == 2  # the reader's own figures
    accuracy, right, whole = eval(notebook.cells[-1].outputs[0]["data"]["text/plain"])
    assert accuracy > 0.4
    assert right > 0.3
    assert whole
    assert (tmp_path / "runs" / "notebook" / "map.tif").exists()
