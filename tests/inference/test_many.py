import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from elev_ssl_jax import area, predict
from elev_ssl_jax.inference import model as inference
from elev_ssl_jax.inference import scenes, windows
from tests import runs
from tests.commands import call
from tests.data.test_chips import write
from tests.inference.test_scenes import GRID


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unet"
    runs.save_run(folder, runs.settings("unet"), (32, 32, 3))
    return folder


@pytest.fixture
def table(tmp_path, rng):
    """Three scenes of two sizes, of which the second's file is missing."""
    lines = ["name,image,elevation,labels"]
    for name, size in (("a", 40), ("b", 40), ("c", 64)):
        bands = rng.integers(500, 5500, (3, size, size)).astype(np.uint16)
        write(tmp_path / f"{name}.tif", bands, GRID)
        lines.append(f"{name},{name}.tif,,")
    (tmp_path / "b.tif").rename(tmp_path / "aside.tif")
    (tmp_path / "scenes.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "scenes.csv"


def shown(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def read(path):
    with rasterio.open(path) as source:
        return source.read(1)


def test_scenes_that_are_done_stay_and_one_that_fails_stops_no_other(
    run, table, tmp_path, monkeypatch, capsys
):
    maps, polygons = tmp_path / "maps", tmp_path / "polygons"
    words = ["--run", run, "--scenes", table, "--out", maps, "--vector", polygons]
    code, said = call(predict.main, monkeypatch, capsys, *words)
    assert code == 2
    assert "3 scenes, 0 of them done already" in said.out
    assert f"failed: scene b: {tmp_path / 'b.tif'} not found" in said.err
    last = said.err.splitlines()[-1]
    assert last == "error: 1 of 3 scenes failed, see above; the same command tries them again"
    assert shown(maps) == {"a.tif", "a.png", "c.tif", "c.png"}
    assert shown(polygons) == {"a.gpkg", "c.gpkg"}

    (tmp_path / "aside.tif").rename(tmp_path / "b.tif")
    before = (maps / "a.tif").stat().st_mtime_ns
    code, said = call(predict.main, monkeypatch, capsys, *words)
    assert code == 0
    assert "3 scenes, 2 of them done already" in said.out
    assert "1,600 pixels" in said.out
    assert (maps / "a.tif").stat().st_mtime_ns == before
    for name in "abc":
        alone = tmp_path / "alone.tif"
        image = [tmp_path / f"{name}.tif"]
        scenes.map_scene(inference.load(run), image, out=alone, overwrite=True, progress=False)
        np.testing.assert_array_equal(read(maps / f"{name}.tif"), read(alone))

    # Another overlap makes another map, which is in the way of this one.
    code, said = call(predict.main, monkeypatch, capsys, *words, "--overlap", 0)
    assert code == 2
    assert said.err.count("exists already") == 3
    code, said = call(predict.main, monkeypatch, capsys, *words, "--overlap", 0, "--overwrite")
    assert code == 0
    assert "3 scenes, 0 of them done already" in said.out


def test_a_shard_of_a_table_is_every_nth_scene(run, table, tmp_path, monkeypatch, capsys):
    (tmp_path / "aside.tif").rename(tmp_path / "b.tif")
    words = ["--run", run, "--scenes", table, "--out", tmp_path / "maps", "--shard"]
    for shard, names in (("2/2", {"b"}), ("1/2", {"a", "b", "c"})):
        code, _ = call(predict.main, monkeypatch, capsys, *words, shard)
        assert code == 0
        assert {Path(name).stem for name in shown(tmp_path / "maps")} == names


def test_an_interruption_keeps_what_is_whole(run, table, tmp_path, monkeypatch, capsys):
    write_all, calls = windows.write, []

    def write_one(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return write_all(*arguments)

    monkeypatch.setattr(windows, "write", write_one)
    words = ["--run", run, "--scenes", table, "--out", tmp_path / "maps"]
    code, said = call(predict.main, monkeypatch, capsys, *words)
    assert code == 130
    assert said.err.splitlines()[-1].startswith("interrupted; nothing is left half written")
    assert shown(tmp_path / "maps") == {"a.tif", "a.png"}
    # As if it had been killed while the files of c got their names.
    (tmp_path / "aside.tif").rename(tmp_path / "b.tif")
    monkeypatch.setattr(windows, "write", write_all)
    assert call(predict.main, monkeypatch, capsys, *words)[0] == 0
    (tmp_path / "maps" / "c.tif").unlink()
    code, said = call(predict.main, monkeypatch, capsys, *words)
    assert code == 0
    assert "3 scenes, 2 of them done already" in said.out
    assert (tmp_path / "maps" / "c.tif").exists()


def test_what_others_made_is_not_taken_for_done(run, table, tmp_path, monkeypatch, capsys):
    (tmp_path / "aside.tif").rename(tmp_path / "b.tif")
    runs.save_run(tmp_path / "other", runs.settings("unet"), (32, 32, 3), seed=1)
    words = ["--scenes", table, "--features", tmp_path / "table"]
    assert call(predict.main, monkeypatch, capsys, "--run", run, *words)[0] == 0
    for change in (["--run", tmp_path / "other"], ["--run", run, "--nodata", 500]):
        code, said = call(predict.main, monkeypatch, capsys, *change, *words)
        assert code == 2
        assert said.err.count("exists already") == 3
    # Another training of that name and length, and another image of that name.
    again = tmp_path / "again" / run.name
    runs.save_run(again, runs.settings("unet"), (32, 32, 3), seed=2)
    code, said = call(predict.main, monkeypatch, capsys, "--run", again, *words)
    assert code == 2
    assert said.err.count("exists already") == 3
    shutil.copy2(tmp_path / "a.tif", tmp_path / "kept.tif")
    write(tmp_path / "a.tif", np.full((3, 40, 40), 900, np.uint16), GRID)
    code, said = call(predict.main, monkeypatch, capsys, "--run", run, *words)
    assert code == 2
    assert "3 scenes, 2 of them done already" in said.out
    assert "a.parquet exists already" in said.err
    shutil.copy2(tmp_path / "kept.tif", tmp_path / "a.tif")
    words += ["--run", run, "--workers", 2, "--batch-size", 16]  # which change nothing of a map
    code, said = call(predict.main, monkeypatch, capsys, *words)
    assert code == 0
    assert "3 scenes, 3 of them done already" in said.out


def test_no_file_of_the_table_is_overwritten(run, table, tmp_path, monkeypatch, capsys):
    (tmp_path / "aside.tif").rename(tmp_path / "b.tif")
    words = ["--run", run, "--scenes", table, "--out", tmp_path, "--overwrite"]
    before = (tmp_path / "a.tif").read_bytes()
    code, said = call(predict.main, monkeypatch, capsys, *words)
    assert code == 2
    assert "a.tif is a file of the table; name another folder" in said.err
    assert (tmp_path / "a.tif").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "maps", "--elevation", "dem.tif"], "with --scenes the table has it"),
        (["--out", "maps", "--probabilities", "maps"], "name a folder for each"),
        ([], "nothing to write; name --out"),
        (["--out", "a.tif"], "a.tif is no folder, and can't be made"),
        (["--out", "maps", "--shard", "3/2"], "'3/2' is not I/N"),
        (["--out", "maps", "--nodata", "s1=0"], "there is no sensor s1"),
    ],
)
def test_tables_that_cannot_be_mapped_end_in_one_line(
    run, table, tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, said = call(predict.main, monkeypatch, capsys, "--run", run, "--scenes", table, *words)
    assert code == 2
    assert message in said.err
    assert "Traceback" not in said.err
    assert sorted(tmp_path.iterdir()) == before


def test_areas_are_of_all_maps_together(run, table, tmp_path, monkeypatch):
    model, mapped = inference.load(run), []
    for name in ("a", "c"):
        path = tmp_path / f"map_{name}.tif"
        scenes.map_scene(model, [tmp_path / f"{name}.tif"], out=path, progress=False)
        mapped.append(path)
    monkeypatch.setattr(area.single, "judged", lambda run: (np.array([[[5, 1], [2, 8]]]), 0))
    each = [area.table(run, [path])[0]["mapped (ha)"] for path in mapped]
    both = area.table(run, mapped)[0]["mapped (ha)"]
    np.testing.assert_allclose(both, each[0] + each[1])
    with pytest.raises(area.InputError, match="a map is named twice"):
        area.table(run, [mapped[0], mapped[0]])
    again = tmp_path / "again" / run.name
    runs.save_run(again, runs.settings("unet"), (32, 32, 3), seed=2)
    with pytest.raises(area.InputError, match="by another training that was called"):
        area.table(again, mapped)
