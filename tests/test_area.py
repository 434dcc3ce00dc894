import json
import shutil

import numpy as np
import pandas as pd
import pytest
import rasterio

from elev_ssl_jax import area
from elev_ssl_jax.finetuning import labelled, single
from elev_ssl_jax.inference import scenes
from elev_ssl_jax.inference.model import load
from tests import runs
from tests.commands import call
from tests.data.test_chips import write
from tests.inference.test_scenes import GRID


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A segmentation with its test, and a map of 90 x 70 pixels of 10 m that it made."""
    folder = tmp_path_factory.mktemp("area")
    runs.save_run(folder / "forest", runs.settings("unet"), (32, 32, 3))
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (12, 8, 8)).astype(np.uint8)
    classes = np.where(rng.random(targets.shape) < 0.8, targets, 1 - targets).astype(np.uint8)
    test = labelled.Labelled({}, targets, np.array([f"b{i // 2}" for i in range(12)]))
    matrix = np.array([[np.sum((targets == i) & (classes == j)) for j in (0, 1)] for i in (0, 1)])
    single.save_by_block(folder / "forest" / "judged.npz", matrix, test, classes)
    results = {"confusion_matrix": matrix.tolist()}
    (folder / "forest" / "results.json").write_text(json.dumps(results))
    write(folder / "scene.tif", rng.integers(0, 6000, (3, 90, 70)).astype(np.uint16), GRID)
    scenes.map_scene(
        load(folder / "forest"), [folder / "scene.tif"], out=folder / "map.tif", progress=False
    )
    return folder


def run(monkeypatch, capsys, *words):
    code, said = call(area.main, monkeypatch, capsys, *words)
    return code, said.out + said.err


def test_areas_add_up_and_have_intervals_over_blocks(folder, monkeypatch, capsys):
    out = folder / "areas.csv"
    words = ["--run", folder / "forest", "--map", folder / "map.tif", "--out", out]
    code, said = run(monkeypatch, capsys, *words)
    assert code == 0
    assert "95 % intervals over 6 blocks of test ground" in said
    found = pd.read_csv(out)
    with rasterio.open(folder / "map.tif") as source:
        counts = np.bincount(source.read(1).ravel(), minlength=2)[:2]
    # 100 pixels of 10 m are a hectare, but for UTM's scale.
    np.testing.assert_allclose(found["mapped (ha)"], counts / 100, rtol=2e-3)
    assert found["estimated (ha)"].sum() == pytest.approx(63, rel=2e-3)
    matrix = np.array(
        json.loads((folder / "forest" / "results.json").read_text())["confusion_matrix"]
    )
    told = matrix / matrix.sum(axis=0)
    np.testing.assert_allclose(found["estimated (ha)"], told @ counts / 100, rtol=2e-3)
    assert (found["low (ha)"] < found["estimated (ha)"]).all()
    assert (found["estimated (ha)"] < found["high (ha)"]).all()
    code, said = run(monkeypatch, capsys, *words)
    assert code == 2
    assert "exists already" in said


def test_without_blocks_there_is_no_interval_of_pixels(folder, monkeypatch, capsys):
    (folder / "forest" / "judged.npz").rename(folder / "aside")
    words = ["--run", folder / "forest", "--map", folder / "map.tif"]
    code, said = run(monkeypatch, capsys, *words)
    (folder / "aside").rename(folder / "forest" / "judged.npz")
    assert code == 0
    assert "no intervals: they need 5 blocks" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("another run", "map.tif is a map of the run forest"),
        ("a scene", "is no map of classes that predict has made"),
        ("without a sensor", "was made without s1, and the run's test is of another model"),
        ("an earlier step", "was made after 1 steps of"),
        ("a pre-training", "doesn't tell one class a pixel or chip"),
        ("no results", "results.json not found; the command that made the run judges again"),
        ("other results", "judged.npz is of another test than results.json"),
    ],
)
def test_what_is_no_map_of_the_run_is_refused_in_a_line(
    folder, monkeypatch, capsys, tmp_path, change, message
):
    name, path = folder / "forest", folder / "map.tif"
    if change == "another run":
        name = tmp_path / "other"
        runs.save_run(name, runs.settings("unet"), (32, 32, 3))
        (name / "results.json").write_text((folder / "forest" / "results.json").read_text())
    elif change == "a scene":
        path = folder / "scene.tif"
    elif change in ("without a sensor", "an earlier step"):
        path = tmp_path / "map.tif"
        shutil.copy(folder / "map.tif", path)
        with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as source:
            source.update_tags(**{"without": "s1"} if "sensor" in change else {"step": "1"})
    elif change == "a pre-training":
        name = tmp_path / "elevation"
        runs.save_run(name, runs.settings(), (32, 32, 3))
    elif change == "no results":
        name = tmp_path / "forest"
        runs.save_run(name, runs.settings("unet"), (32, 32, 3))
    else:
        name = tmp_path / "forest"
        runs.save_run(name, runs.settings("unet"), (32, 32, 3))
        (name / "judged.npz").write_bytes((folder / "forest" / "judged.npz").read_bytes())
        (name / "results.json").write_text(json.dumps({"confusion_matrix": [[1, 2], [3, 4]]}))
    code, said = run(monkeypatch, capsys, "--run", name, "--map", path)
    assert code == 2
    assert message in said
    assert "Traceback" not in said
