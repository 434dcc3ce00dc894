import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tensorflow_datasets as tfds
import tfds_chips
from rasterio.transform import from_origin
from tfds_chips import shards

from elev_ssl_jax.data import band_choice, chips, cutting, labels, prepare, source, store, synthetic
from elev_ssl_jax.data.planning import Quantity, Settings
from elev_ssl_jax.data.scene_files import SceneFiles
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.runtime import beam
from tests import commands
from tests.data.test_chips import write
from tests.data.test_source import Data

NAMES = ("water", "wood", "town")
PLACES = {
    "north": ("EPSG:32618", 500_000),
    "south": ("EPSG:32720", 300_000),
    "west": ("EPSG:4326", 0),
}


def write_scenes(folder, side=60):
    """Three scenes of two sensors, a DEM and three classes, in coordinate systems of their own."""
    rng, rows = np.random.default_rng(0), ["name,s1,s2,elevation,labels"]
    for name, (crs, left) in PLACES.items():
        pixel = 1e-4 if crs == "EPSG:4326" else 10.0
        grid = from_origin(left, 1.0 if crs == "EPSG:4326" else 8e5, pixel, pixel)
        height, width = side, side + 20 * len(rows)
        arrays = {
            "s1": rng.normal(-12, 4, (2, height, width)).astype(np.float64),
            "s2": rng.integers(-50, 9000, (4, height, width)).astype(np.int16),
            "dem": rng.uniform(0, 900, (height, width)).astype(np.float32),
            "cover": rng.integers(0, 3, (height // 20, width // 20)).repeat(20, 0).repeat(20, 1),
        }
        for kind, array in arrays.items():
            array = array.astype(np.uint8) if kind == "cover" else array
            write(folder / f"{name}_{kind}.tif", array, grid, crs)
        rows.append(",".join([name, *(f"{name}_{kind}.tif" for kind in arrays)]))
    (folder / "scenes.csv").write_text("\n".join(rows) + "\n")
    return folder / "scenes.csv"


CLASSES = labels.parse_classes([f"{name}={i}" for i, name in enumerate(NAMES)])
SETTINGS = Settings(size=20, elevation_size=7, classes=CLASSES)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def cut(scenes):
    out = scenes.parent / "chips"
    chips.cut_scenes(chips.read_scenes(scenes), SETTINGS, out, progress=False)
    return out


def contents(folder):
    """Hashes of all files of prepared data or of chips but those that name their folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


class ChipsTest(tfds.testing.DatasetBuilderTestCase):
    """TFDS' own checks."""

    DATASET_CLASS = tfds_chips.Chips
    SPLITS = {"unlabeled": 34, "labeled": 3, "test": 3}  # noqa: RUF012

    @classmethod
    def setUpClass(cls):
        cls._folder = tempfile.TemporaryDirectory()
        cls.EXAMPLE_DIR = str(Path(cls._folder.name, "chips"))
        synthetic.write_chips(Path(cls.EXAMPLE_DIR), 40, size=12, progress=False)
        super().setUpClass()

    def _make_builder(self, config=None):
        return tfds_chips.Chips(
            data_dir=self.tmp_dir, config=config, folders=[Path(self.EXAMPLE_DIR)]
        )


def test_scenes_of_other_grids_zones_and_sizes_become_one_data_set(scenes, cut, tmp_path):
    settings = {"split_by": "scene", "num_labeled": 8, "num_test": 10}
    prepare.prepare_chips(cut, tmp_path, **settings)
    data = Data(tmp_path)
    splits = {name: source.open_split(data, name) for name in ("unlabeled", "labeled", "test")}
    assert {name: len(split) for name, split in splits.items()} == (splits["test"].counts)
    by_scene = {name: set(split.arrays("scene")["scene"]) for name, split in splits.items()}
    assert not by_scene["test"] & (by_scene["unlabeled"] | by_scene["labeled"])
    assert set.union(*by_scene.values()) == set(PLACES)
    split = splits["test"]
    assert split.classes == NAMES
    assert split.shapes == {
        "s1": (20, 20, 2), "s2": (20, 20, 4), "elevation": (7, 7), "mask": (20, 20)
    }  # fmt: skip
    assert split.nodata(["s1", "s2"]) == ()
    for record in split:
        _, top, left = record["id"].decode().split("_")
        window = rasterio.windows.Window(int(left), int(top), 20, 20)
        scene = record["scene"].decode()
        for name, dtype in (("s1", np.float32), ("s2", np.int16)):
            with rasterio.open(scenes.parent / f"{scene}_{name}.tif") as raster:
                wanted = np.moveaxis(raster.read(window=window), 0, -1).astype(dtype)
            np.testing.assert_array_equal(record[name], wanted)
        with rasterio.open(scenes.parent / f"{scene}_cover.tif") as raster:
            np.testing.assert_array_equal(record["mask"], raster.read(1, window=window))


def test_classification_takes_any_number_of_classes(cut, tmp_path):
    prepare.prepare_chips(cut, tmp_path, config="classification", num_labeled=9, num_test=3)
    data = Data(tmp_path, "chips/classification")
    labelled = source.open_split(data, "labeled")
    assert labelled.classes == NAMES
    assert labelled.arrays("label")["label"].tolist() == [0, 1, 2] * 3
    for record in labelled:
        assert (record["mask"] == record["label"]).all()


def test_folders_are_one_data_set_and_processes_change_nothing(scenes, cut, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_SHARD_BYTES", 40_000)  # several shards a split
    monkeypatch.setattr(cutting, "WORTH_PROCESSES", 0)
    read = chips.read_scenes(scenes)
    folders = [tmp_path / scene.name for scene in read]
    for scene, folder in zip(read, folders, strict=True):
        chips.cut_scenes([scene], SETTINGS, folder, progress=False)
    settings = {"num_labeled": 8, "num_test": 10, "split_by": "block"}
    first = prepare.prepare_chips(cut, tmp_path / "one", **settings)
    second = prepare.prepare_chips(folders, tmp_path / "several", **settings, workers=2)
    assert len(list(first.glob("*unlabeled*"))) > 2
    assert contents(first) == contents(second)
    again = scenes.parent / "again"
    chips.cut_scenes(read, SETTINGS._replace(stride=5), again, progress=False, workers=2)
    alone = scenes.parent / "alone"
    chips.cut_scenes(read, SETTINGS._replace(stride=5), alone, progress=False)
    assert contents(again) == contents(alone)


def test_folders_that_do_not_go_together_are_refused(scenes, cut, tmp_path):
    read = chips.read_scenes(scenes)
    for change, message in (
        ({"size": 10}, "has size 10, and .* 20; cut all scenes alike"),
        ({"classes": labels.two_classes([1])}, "has classes .*'other'"),
        ({}, "both have a scene north; name one by --tile"),
    ):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        chips.cut_scenes(read[:1], SETTINGS._replace(**change), out, progress=False)
        with pytest.raises(InputError, match=message):
            prepare.prepare_chips([cut, out], tmp_path / "tfds", num_labeled=3, num_test=3)
    assert not (tmp_path / "tfds").exists() or not any((tmp_path / "tfds").rglob("*.*"))


def test_bands_are_chosen_by_sensor(cut, tmp_path):
    settings = {"num_labeled": 8, "num_test": 10}
    prepare.prepare_chips(cut, tmp_path / "a", **settings)
    prepare.prepare_chips(cut, tmp_path / "b", **settings, bands={"s2": [2, 0]})
    whole, some = (source.open_split(Data(tmp_path / n), "test") for n in "ab")
    np.testing.assert_array_equal(some[3]["s2"], whole[3]["s2"][..., [2, 0]])
    np.testing.assert_array_equal(some[3]["s1"], whole[3]["s1"])
    for bands, message in (
        ([0], "say of which sensor: s1=0,1,2"),
        ({"s3": [0]}, "there is no sensor s3; s1, s2"),
        ({"s2": [4]}, "s2 has 4 bands; band 4 is asked for"),
        ({"s2": [1, 1]}, "different bands are needed"),
    ):
        with pytest.raises(InputError, match=message):
            prepare.prepare_chips(cut, tmp_path / "c", **settings, bands=bands)
    assert band_choice.parse(["s2=2,0", "s1=1"]) == {"s2": [2, 0], "s1": [1]}
    assert band_choice.parse(["2", "0"]) == [2, 0]


def edit(scenes, tmp_path, old, new):
    path = scenes.parent / f"{tmp_path.name}.csv"
    path.write_text(scenes.read_text().replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("south_dem.tif", "none.tif", r"scene south: elevation .*none.tif not found"),
        ("south,", "north,", "scene north is there twice"),
        ("west,west_s1.tif", "west,", "scene west has no s1"),
        ("name,s1", "scene,s1", "has no column name"),
        ("s1,s2", "mask,s2", "'mask' can't be the name of a sensor"),
        ("west,", "a/b,", "scene 'a/b': a name has letters"),
        ("south_cover.tif", "south_cover.tif;south_dem.tif", "scene south: labels is one file"),
    ],
)
def test_a_table_that_is_wrong_is_told_in_one_line(scenes, tmp_path, old, new, message):
    with pytest.raises(InputError, match=message) as told:
        chips.read_scenes(edit(scenes, tmp_path, old, new))
    assert "\n" not in str(told.value)


def test_scenes_of_other_sensors_are_refused(scenes, tmp_path):
    other = write(
        tmp_path / "o.tif",
        np.ones((3, 60, 120), np.int16),
        from_origin(0, 1.0, 1e-4, 1e-4),
        "EPSG:4326",
    )
    read = chips.read_scenes(scenes)
    for images, message in (
        (
            {"s1": read[2].images["s1"], "s2": (other,)},
            "scene west: of the sensor s2 .* 3 bands",
        ),
        ({"s1": read[2].images["s1"]}, "of the sensor s2 it has none, and north 4 bands"),
    ):
        wrong = [*read[:2], read[2]._replace(images=images, elevation=None, labels=None)]
        with pytest.raises(InputError, match=message):
            chips.cut_scenes(wrong, SETTINGS, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_an_error_in_one_scene_leaves_the_others_and_the_command_goes_on(scenes, tmp_path, capsys):
    for path in scenes.parent.glob("*.tif"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    table = tmp_path / "scenes.csv"
    table.write_text(scenes.read_text())
    torn = tmp_path / "south_s2.tif"
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    read, out = chips.read_scenes(table), tmp_path / "out"
    with pytest.raises(InputError, match="1 of 3 scenes can't be cut, see above; the others are"):
        chips.cut_scenes(read, SETTINGS, out, progress=False)
    assert "scene south: " in capsys.readouterr().err
    assert not out.exists()
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob(".out.unfinished/[nw]*/*/*")}
    assert len(kept) > 8
    torn.write_bytes(whole)
    chips.cut_scenes(read, SETTINGS, out, progress=False)
    assert len(store.read_table(out)["scene"].unique()) == 3
    for path, when in kept.items():  # what was finished is as it was
        place = out / path.relative_to(tmp_path / ".out.unfinished")
        assert place.stat().st_mtime_ns == when
    assert {path.name for path in out.iterdir()} == {*PLACES, "chips.json"}


def test_scenes_that_are_no_longer_asked_for_do_not_stay(scenes, tmp_path, monkeypatch):
    read, out = chips.read_scenes(scenes), tmp_path / "out"

    def stop(*_):
        raise InputError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_about", stop)
        with pytest.raises(InputError, match="stopped"):
            chips.cut_scenes(read, SETTINGS, out, progress=False)
    assert (tmp_path / ".out.unfinished" / "west" / "scene.json").exists()
    renamed = [read[0], read[1]._replace(name="middle")]
    chips.cut_scenes(renamed, SETTINGS, out, progress=False)
    assert set(store.read_table(out)["scene"]) == {"north", "middle"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cut_that_is_killed_goes_on(scenes, cut, tmp_path, workers):
    command = [sys.executable, "-m", "elev_ssl_jax.data.chips", "--scenes", scenes, "--stride", "2"]
    command += ["--size", "20", "--elevation-size", "7", "--workers", workers, "--classes"]
    command += [f"{name}={i}" for i, name in enumerate(NAMES)]
    command = list(map(str, [*command, "--out", tmp_path / "out"]))
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob(".out.unfinished/*/0*/part.json"))) < 2:
        assert process.poll() is None
    process.kill()
    process.wait()
    done = {p: p.stat().st_mtime_ns for p in tmp_path.glob(".out.unfinished/*/0*/*")}
    assert not (tmp_path / "out").exists()
    finished = commands.forked(*command[2:])
    assert finished.returncode == 0, finished.stderr
    for path, when in done.items():
        name = path.relative_to(tmp_path / ".out.unfinished")
        assert (tmp_path / "out" / name).stat().st_mtime_ns == when  # not made again
    read = chips.read_scenes(scenes)
    chips.cut_scenes(read, SETTINGS._replace(stride=2), tmp_path / "whole", progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chips.json", b"[]"),
        ("chips.json", b'{"format": 9}'),
        ("north/scene.json", b"{}"),
        ("north/00000/places.npy", b"\x93NUMPY"),
        ("north/00000/counts.npy", b""),
        ("north/00000/s1.npy", None),
    ],
)
def test_damaged_chips_are_named(cut, tmp_path, name, content):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", cut, copy], check=True)
    if content is None:
        data = (copy / name).read_bytes()
        content = data[: len(data) // 2]
    (copy / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} (is|can.t be read) ") as told:
        prepare.prepare_chips(copy, tmp_path / "tfds", num_labeled=3, num_test=3)
    assert "\n" not in str(told.value)
    assert not any((tmp_path / "tfds").rglob("*.*ecord*"))


def test_what_data_say_of_themselves_is_checked(cut, tmp_path):
    target = prepare.prepare_chips(cut, tmp_path, num_labeled=3, num_test=3)
    path = target / "metadata.json"
    about = json.loads(path.read_text())
    assert about["classes"] == list(NAMES)
    for wrong in ({"classes": [1]}, {"sensors": {"s1": {"nodata": "x"}}}, {"sensors": []}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="is not a prepared dataset"):
            source.open_split(Data(tmp_path), "test")


@pytest.mark.parametrize(
    "options",
    [
        ["--runner=DirectRunner"],
        [
            "--runner=DirectRunner",
            "--direct_running_mode=multi_processing",
            "--direct_num_workers=2",
        ],
    ],
    ids=["in one process", "in several"],
)
def test_beam_writes_what_the_two_commands_write(scenes, cut, tmp_path, monkeypatch, options):
    monkeypatch.setattr(shards, "_SHARD_BYTES", 40_000)
    wanted = prepare.prepare_chips(
        cut, tmp_path / "a", split_by="scene", num_labeled=8, num_test=10
    )
    words = ["prepare", "--scenes", scenes, "--size", 20, "--elevation-size", 7, "--classes"]
    words += [f"{name}={i}" for i, name in enumerate(NAMES)]
    words += ["--beam", "--data-dir", tmp_path / "b", "--split-by", "scene", "--labeled", 8]
    monkeypatch.setattr(
        sys, "argv", list(map(str, [*words, "--test", 10, "--runner=DirectRunner", *options]))
    )
    prepare.main()
    got = tmp_path / "b" / wanted.relative_to(tmp_path / "a")
    assert contents(got) == contents(wanted)
    assert {path.name for path in got.parent.iterdir()} == {wanted.name}


def test_beam_works_from_any_folder_and_does_again_what_it_is_given_twice(
    scenes, cut, tmp_path, monkeypatch
):
    call = beam._call

    def elsewhere_and_twice(*task):
        there = Path.cwd()
        os.chdir("/")
        try:
            call(*task)
            call(*task)
        finally:
            os.chdir(there)

    monkeypatch.setattr(beam, "_call", elsewhere_and_twice)
    monkeypatch.chdir(scenes.parent)
    read, sizes = chips.read_scenes(Path(scenes.name)), {"num_labeled": 8, "num_test": 10}
    relative = Path(os.path.relpath(tmp_path))
    got = prepare.prepare_scenes(read, SETTINGS, relative / "beam", **sizes)
    wanted = prepare.prepare_chips(cut, tmp_path / "chips", **sizes)
    assert contents(got) == contents(wanted)


def test_what_is_cut_anew_is_not_taken_from_what_was_read_before(scenes, tmp_path):
    (first, *_), data_dir = chips.read_scenes(scenes), tmp_path / "tfds"
    image, sizes = tmp_path / "image.tif", {"num_labeled": 1, "num_test": 1}
    with rasterio.open(first.images["s2"][0]) as there:
        grid, shape = there.transform, (1, *there.shape)
    scene = first._replace(images={"image": (image,)})
    for value in (100, 200):
        write(image, np.full(shape, value, np.int16), grid)
        shutil.rmtree(tmp_path / "chips", ignore_errors=True)
        chips.cut_scenes([scene], SETTINGS, tmp_path / "chips", progress=False)
        prepare.prepare_chips(tmp_path / "chips", data_dir, overwrite=True, **sizes)
        assert source.open_split(Data(data_dir), "test")[0]["image"].max() == value
        write(image, np.full(shape, value + 1, np.int16), grid)
        prepare.prepare_scenes([scene], SETTINGS, data_dir, overwrite=True, **sizes)
        assert source.open_split(Data(data_dir), "test")[0]["image"].max() == value + 1


def test_a_quantity_is_prepared_alike_by_both_commands(scenes, tmp_path):
    """Of two scenes of three; one of them knows it in part."""
    scenes = [scene._replace(labels=None) for scene in chips.read_scenes(scenes)]
    for scene in scenes[:2]:
        with rasterio.open(scene.elevation) as dem:
            values, grid, crs = dem.read(1) * 100, dem.transform, dem.crs
        values[:, :20] = -1
        write(tmp_path / f"{scene.name}.tif", values, grid, crs, nodata=-1)
    scenes = [s._replace(quantity=tmp_path / f"{s.name}.tif") for s in scenes[:2]] + scenes[2:]
    settings = SETTINGS._replace(classes=None, quantity=Quantity("people", "1/km2"))
    sizes = {"num_labeled": 5, "num_test": 5, "split_by": "random"}
    chips.cut_scenes(scenes, settings, tmp_path / "chips", progress=False)
    one = prepare.prepare_chips(tmp_path / "chips", tmp_path / "one", **sizes)
    other = prepare.prepare_scenes(scenes, settings, tmp_path / "other", **sizes)
    assert contents(one) == contents(other)
    for name in ("labeled", "test"):
        split = source.open_split(Data(tmp_path / "one"), name)
        assert split.quantity == ("people", "1/km2")
        assert split.shapes["quantity"] == (20, 20)
        arrays = split.arrays("quantity", "scene")
        assert not np.isnan(arrays["quantity"]).any()
        assert "west" not in arrays["scene"]
    unlabeled = source.open_split(Data(tmp_path / "one"), "unlabeled").arrays("quantity", "scene")
    assert np.isnan(unlabeled["quantity"][unlabeled["scene"] == "west"]).all()


def test_scenes_that_disagree_on_what_is_none_keep_all_their_values(tmp_path):
    grid = from_origin(500_000, 800_000, 10, 10)
    image = np.arange(1600, dtype=np.int16).reshape(40, 40) % 7
    a = write(tmp_path / "a.tif", image, grid, nodata=0)
    b = write(tmp_path / "b.tif", image, grid)
    scenes = [SceneFiles(path.stem, {"image": (path,)}, None, None) for path in (a, b)]
    settings = Settings(size=20, max_nodata=0.5)
    chips.cut_scenes(scenes, settings, tmp_path / "chips", progress=False)
    about, rows = store.read_about(tmp_path / "chips"), store.read_table(tmp_path / "chips")
    assert about.sensors["image"] == {"bands": 1, "dtype": "float32", "nodata": None}
    for row in rows.to_dict("records"):
        chip = store.open_array(Path(row["part"]), about, "image")[row["index"]]
        there = image[row["top_row"] :, row["left_column"] :][:20, :20, None]
        if row["scene"] == "a":
            np.testing.assert_array_equal(np.isnan(chip), there == 0)
        else:
            np.testing.assert_array_equal(chip, there)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", 64), "--size is for cutting"),
        (("--classes", "a=1", "b=2"), "--classes is for cutting"),
        (("--max-nodata", 0.5), "--max-nodata is for cutting"),
    ],
)
def test_what_prepare_would_pass_over_is_refused(
    cut, tmp_path, monkeypatch, capsys, words, message
):
    words = ("prepare", "--chips", cut, "--data-dir", tmp_path / "tfds", *words)
    monkeypatch.setattr(sys, "argv", [*map(str, words)])
    with pytest.raises(SystemExit):
        prepare.main()
    assert message in capsys.readouterr().err


def test_what_beam_does_not_take_is_told(scenes, cut, tmp_path, monkeypatch, capsys):
    def said(*words):
        monkeypatch.setattr(sys, "argv", ["prepare", *map(str, words), "--data-dir", str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            prepare.main()
        assert ended.value.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "either --chips is needed, or --beam" in said()
    assert "--beam needs --scenes, or --image" in said("--beam")
    assert "--workers: with --beam" in said("--beam", "--scenes", scenes, "--workers", 2)
    assert "--beam goes with --scenes or --image, or with SEN12MS" in said("--beam", "--chips", cut)
    assert "unknown argument --runner=x" in said("--chips", cut, "--runner=x")
    many = ("--beam", "--scenes", scenes, "--size", 20, "--label-values", 1)
    assert "nor Beam takes all of --labelled 8: not labelled" in said(*many, "--labelled", 8)
    unknown = (*many, "--data-dir", tmp_path / "x", "--runner=Foo")
    assert "error: Apache Beam: ValueError: " in said(*unknown)
    small = ("--beam", "--scenes", scenes, "--size", 61, "--label-values", 1)
    assert "scene north: " in said(*small)
    assert not [*tmp_path.rglob("*")]


def test_what_beam_writes_is_of_what_was_asked_for_last(scenes, tmp_path):
    read, settings = chips.read_scenes(scenes), {"num_labeled": 8, "num_test": 10}
    for name, classes in (("a", CLASSES), ("b", labels.two_classes([2]))):
        cut = SETTINGS._replace(classes=classes)
        prepare.prepare_scenes(read, cut, tmp_path / name, **settings)
    masks = [source.open_split(Data(tmp_path / n), "test").arrays("mask")["mask"] for n in "ab"]
    np.testing.assert_array_equal(masks[0] == 2, masks[1] == 1)
    assert masks[1].max() == 1


def test_a_scene_that_can_not_be_looked_at_for_once_is_not_cut_again(scenes, tmp_path):
    for path in scenes.parent.glob("*.tif"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "scenes.csv").write_text(scenes.read_text())
    read, out = chips.read_scenes(tmp_path / "scenes.csv"), tmp_path / "out"
    torn = tmp_path / "west_s2.tif"
    whole, when = torn.read_bytes(), torn.stat()
    broken = tmp_path / "north_s2.tif"
    kept_whole, kept_when = broken.read_bytes(), broken.stat()

    def spoil(path, data):
        path.write_bytes(data[:100])
        with pytest.raises(InputError, match="can't be cut"):
            chips.cut_scenes(read, SETTINGS, out, progress=False)

    spoil(torn, whole)
    part = tmp_path / ".out.unfinished" / "north" / "00000" / "s2.npy"
    made = part.stat().st_mtime_ns
    torn.write_bytes(whole)
    os.utime(torn, ns=(when.st_atime_ns, when.st_mtime_ns))
    spoil(broken, kept_whole)  # now the one that is finished can't be opened
    broken.write_bytes(kept_whole)
    os.utime(broken, ns=(kept_when.st_atime_ns, kept_when.st_mtime_ns))
    chips.cut_scenes(read, SETTINGS, out, progress=False)
    assert (out / "north" / "00000" / "s2.npy").stat().st_mtime_ns == made
