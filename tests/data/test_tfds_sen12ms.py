import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tfds_sen12ms
from tfds_chips import shards
from tfds_sen12ms import layout

from elev_ssl_jax.data import prepare, source
from elev_ssl_jax.errors import InputError
from tests.data import hostile, two_sensors
from tests.data.test_prepare import command
from tests.data.test_source import Data
from tests.data.test_tfds_chips import contents
from tests.data.two_sensors import by_id, last, make, write_patch, write_tif

# Area, scene, patch; of the numbers 146 and 15 the summer's 146 alone is not held out.
PATCHES = [
    ("ROIs1158_spring", 1, 30),
    ("ROIs1158_spring", 146, 7),
    ("ROIs1868_summer", 146, 202),
    ("ROIs1868_summer", 146, 9),
    ("ROIs1868_summer", 15, 1),
    ("ROIs1970_fall", 141, 3),
    ("ROIs2017_winter", 43, 5),
]
HELD_OUT = {"ROIs1158_spring_146_p7", "ROIs1868_summer_15_p1", "ROIs1970_fall_141_p3"}


def write_all(root, patches=PATCHES, *, side_by_side=True):
    """The files of some patches; their bands by id."""
    rng, written = np.random.default_rng(0), {}
    for i, (area, scene, patch) in enumerate(patches):
        arrays = make(rng)
        place = (500_000 + i * two_sensors.STEP, 5_000_000) if side_by_side else None
        write_patch(root, area, scene, patch, arrays, place=place)
        written[f"{area}_{scene}_p{patch}"] = arrays
    return written


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with patches of all seasons, and their bands."""
    root = tmp_path_factory.mktemp("sen12ms")
    return root, write_all(root)


@pytest.fixture
def summer(tmp_path):
    """A folder with two scenes of two patches each, to be spoilt."""
    scenes = [("ROIs1868_summer", scene, patch) for scene in (146, 131) for patch in (1, 2)]
    return tmp_path / "root", write_all(tmp_path / "root", scenes)


def path_of(root, sensor, scene, patch):
    name = f"ROIs1868_summer_{sensor}_{scene}_p{patch}.tif"
    return root / "ROIs1868_summer" / f"{sensor}_{scene}" / name


def refused(root, tmp_path):
    """What is said of a folder, in a line; nothing comes of it."""
    with pytest.raises(InputError) as told:
        prepare.prepare_chips(root, tmp_path / "tfds")
    assert "\n" not in str(told.value)
    assert not list((tmp_path / "tfds").rglob("*"))
    return str(told.value)


class Sen12msTest(tfds.testing.DatasetBuilderTestCase):
    """TFDS' own checks."""

    DATASET_CLASS = tfds_sen12ms.Sen12ms
    SPLITS = {"unlabeled": 4, "holdout": 3}  # noqa: RUF012

    @classmethod
    def setUpClass(cls):
        cls._folder = tempfile.TemporaryDirectory()
        cls.EXAMPLE_DIR = cls._folder.name
        write_all(Path(cls.EXAMPLE_DIR))
        super().setUpClass()


def test_what_the_files_hold_comes_back_to_the_bit(there, tmp_path, capsys):
    root, written = there
    target = prepare.prepare_chips(root, tmp_path)
    assert target.parent == tmp_path / "sen12ms"
    assert capsys.readouterr().out.splitlines() == [
        f"{target}: 4 unlabeled, 3 holdout (7 of 7 chips)",
        "0 of 3 holdout patches share ground with unlabeled ones (0.0%)",
    ]
    data, seen = Data(tmp_path, "sen12ms"), {}
    assert source.find_name(data) == "sen12ms"
    for name in ("unlabeled", "holdout"):
        split = source.open_split(data, name)
        assert split.classes == ()
        assert split.shapes == {"s1": (256, 256, 2), "s2": (256, 256, 13)}
        assert split.nodata(["s1", "s2"]) == ()
        assert split.about["sensors"]["s1"] == {"bands": 2, "dtype": "float32", "nodata": None}
        assert split.about["sensors"]["s2"] == {"bands": 13, "dtype": "uint16", "nodata": None}
        records = by_id(split)
        assert {*records} <= HELD_OUT if name == "holdout" else not {*records} & HELD_OUT
        seen |= records
    assert {*seen} == {*written}
    for key, record in seen.items():
        for sensor, dtype in (("s1", np.float32), ("s2", np.uint16)):
            assert record[sensor].dtype == dtype
            np.testing.assert_array_equal(record[sensor], last(written[key][sensor]))
        scene = key.rsplit("_", 1)[0]
        assert record["scene"].decode() == record["block"].decode() == scene
        assert record["season"].decode() == scene.split("_")[1]


def test_tfds_opens_it_by_its_name(there, tmp_path):
    prepare.prepare_chips(there[0], tmp_path)
    loaded = tfds.load("sen12ms", split="unlabeled[:2]", data_dir=tmp_path)
    ids = [example["id"].decode() for example in tfds.as_numpy(loaded)]
    split = source.open_split(Data(tmp_path, "sen12ms"), "unlabeled[:2]")
    assert ids == [record["id"].decode() for record in split]


def test_the_scenes_that_are_held_out_are_those_of_the_authors(tmp_path):
    authors = {
        "ROIs1158_spring": "63 146 97 124 15 17",
        "ROIs1868_summer": "43 131 19 104 72 15 79",
        "ROIs1970_fall": "120 39 144 35 61 47 30 141",
        "ROIs2017_winter": "64 146 32 107 135",
    }
    for area in authors:
        for scene in range(1, 150):
            for sensor in ("s1", "s2"):
                path = tmp_path / area / f"{sensor}_{scene}" / f"{area}_{sensor}_{scene}_p1.tif"
                path.parent.mkdir(parents=True)
                path.touch()
    table = layout.find(tmp_path)
    assert len(table) == 4 * 149
    wanted = {f"{area}_{n}" for area, numbers in authors.items() for n in numbers.split()}
    assert {*table["scene"][table["split"] == "holdout"]} == wanted
    assert {*table["split"]} == {"holdout", "unlabeled"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_patches_that_are_not_finite_are_left_out_and_named(summer, tmp_path, capsys, value):
    root, written = summer
    bands = written["ROIs1868_summer_146_p2"]["s1"].copy()
    bands[1, 255, 255] = value
    write_tif(path_of(root, "s1", 146, 2), bands)
    prepare.prepare_chips(root, tmp_path / "tfds")
    said = capsys.readouterr().out
    assert (
        "1 of 4 patches is left out, with values that are not finite: ROIs1868_summer_146_p2\n"
        in said
    )
    assert "1 unlabeled, 2 holdout (3 of 4 chips)" in said
    kept = by_id(source.open_split(Data(tmp_path / "tfds", "sen12ms"), "unlabeled"))
    assert {*kept} == {"ROIs1868_summer_146_p1"}


def test_of_many_that_are_left_out_the_first_are_named(tmp_path, capsys):
    scenes = [("ROIs1868_summer", 1, patch) for patch in range(8)]
    root = tmp_path / "root"
    for key, arrays in write_all(root, scenes).items():
        patch = int(key.rsplit("p", 1)[1])
        if patch:
            arrays["s1"][0, 0, 0] = np.nan
            write_tif(path_of(root, "s1", 1, patch), arrays["s1"])
    prepare.prepare_chips(root, tmp_path / "tfds")
    names = ", ".join(f"ROIs1868_summer_1_p{patch}" for patch in range(1, 6))
    said = capsys.readouterr().out.splitlines()
    line = f"7 of 8 patches are left out, with values that are not finite: {names} and 2 more"
    assert said[0] == line
    assert said[1] == "there is no split holdout: no scene is of it"
    assert len(said) == 3
    write_tif(path_of(root, "s1", 1, 0), np.full((2, 256, 256), np.nan, np.float32))
    with pytest.raises(InputError, match="nothing is left: 8 of 8 patches"):
        prepare.prepare_chips(root, tmp_path / "other")


@pytest.mark.parametrize(("sensor", "other"), [("s1", "s2"), ("s2", "s1")])
def test_a_missing_file_of_the_other_sensor_is_named(summer, tmp_path, sensor, other):
    root, _ = summer
    missing, beside = (path_of(root, name, 146, 2) for name in (sensor, other))
    missing.unlink()
    said = refused(root, tmp_path)
    assert said.startswith(
        f"{missing} not found, though {beside} is there; a patch needs s1 and s2"
    )
    path_of(root, sensor, 131, 1).unlink()
    path_of(root, sensor, 131, 2).unlink()
    first = path_of(root, sensor, 131, 1)
    assert refused(root, tmp_path).startswith(f"{first} not found, nor are 2 more, though ")


@pytest.mark.parametrize(
    ("sensor", "bands", "message"),
    [
        ("s1", np.zeros((2, 256, 255), np.float32), "is 256 x 255 pixels, 2 band(s); 256 x 256"),
        ("s2", np.zeros((13, 128, 128), np.uint16), "is 128 x 128 pixels, 13 band(s); 256 x 256"),
        ("s1", np.zeros((1, 256, 256), np.float32), "is 256 x 256 pixels, 1 band(s); 256 x 256 "),
        (
            "s2",
            np.zeros((12, 256, 256), np.uint16),
            "is 256 x 256 pixels, 12 band(s); 256 x 256 and 13",
        ),
        ("s1", np.zeros((2, 256, 256), np.int16), "has type int16; floats are needed"),
        ("s2", np.zeros((13, 256, 256), np.complex64), "has type complex64; integers are needed"),
        ("s2", np.full((13, 256, 256), -3, np.int16), "has the value -3; s2 has whole numbers"),
        ("s2", np.full((13, 256, 256), 70_000, np.int32), "has the value 70000; s2 has whole"),
        ("s2", np.full((13, 256, 256), 0.25, np.float32), "has the value 0.25; s2 has whole"),
    ],
)
def test_files_that_do_not_fit_are_named(summer, tmp_path, sensor, bands, message):
    root, _ = summer
    path = write_tif(path_of(root, sensor, 131, 2), bands)
    assert refused(root, tmp_path).startswith(f"{path} {message}")


def test_other_types_that_hold_the_same_numbers_will_do(summer, tmp_path, capsys):
    root, written = summer
    first, second = written["ROIs1868_summer_146_p1"], written["ROIs1868_summer_131_p1"]
    write_tif(path_of(root, "s1", 146, 1), first["s1"].astype(np.float64))
    write_tif(path_of(root, "s2", 146, 1), first["s2"].astype(np.float32))
    write_tif(path_of(root, "s2", 131, 1), second["s2"].astype(np.int32))
    lost = written["ROIs1868_summer_146_p2"]["s2"].astype(np.float32)
    lost[12, 9, 9] = np.nan
    write_tif(path_of(root, "s2", 146, 2), lost)
    prepare.prepare_chips(root, tmp_path / "tfds")
    assert "1 of 4 patches is left out" in capsys.readouterr().out
    data = Data(tmp_path / "tfds", "sen12ms")
    seen = by_id(source.open_split(data, "unlabeled+holdout"))
    assert {*seen} == {*written} - {"ROIs1868_summer_146_p2"}
    for key, record in seen.items():
        for sensor in ("s1", "s2"):
            np.testing.assert_array_equal(record[sensor], last(written[key][sensor]))


@pytest.mark.parametrize("kind", ["torn", "vrt", "scaled", "folder", "away", "twice", "misnamed"])
def test_files_that_can_not_be_trusted_are_named(summer, tmp_path, kind):
    root, written = summer
    path = path_of(root, "s2", 146, 2)
    whole = path.read_bytes()
    if kind == "torn":
        path.write_bytes(whole[: len(whole) // 2])
        message = f"{path} is truncated or not a readable GeoTIFF"
    elif kind == "vrt":
        path.write_text(hostile.vrt(path_of(root, "s2", 146, 1), 256))
        message = f"{path} is truncated or not a readable GeoTIFF"
    elif kind == "scaled":
        import rasterio

        with rasterio.open(path, "r+") as sink:
            sink.scales = (0.0001,) * 13
        message = f"{path} has a scale and an offset"
    elif kind == "folder":
        path.unlink()
        path.mkdir()
        message = f"{path} is not a regular file"
    elif kind == "away":
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
        message = f"{path} is a link that leaves {root}"
    elif kind == "twice":
        path = write_tif(
            path_of(root, "s2", 7, 1).with_name(path.name), written["ROIs1868_summer_146_p2"]["s2"]
        )
        message = f"{path_of(root, 's2', 146, 2)} and {path} are the same patch"
    else:
        path = path.rename(path.with_name("ROIs1868_summer_s2_146_p2 (1).tif"))
        message = f"{path} is not named like ROIs1868_summer_s2_0_p1.tif"
    assert refused(root, tmp_path).startswith(message)


def test_what_else_lies_there_is_not_looked_at(summer, tmp_path):
    root, _ = summer
    for name in ("lc_146/ROIs1868_summer_lc_146_p1.tif", "s1_146/._ROIs1868_summer_s1_146_p1.tif",
                 "s1_146/Thumbs.db", "s2_146.zip"):  # fmt: skip
        path = root / "ROIs1868_summer" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no raster")
    prepare.prepare_chips(root, tmp_path / "tfds")
    assert len(source.open_split(Data(tmp_path / "tfds", "sen12ms"), "unlabeled+holdout")) == 4


def test_ground_that_is_held_out_and_shown_is_counted(tmp_path, capsys):
    rng, root = np.random.default_rng(1), tmp_path / "root"
    # Held out is scene 131; its first patch lies half on one of scene 1, its second elsewhere.
    for scene, patch, left in ((1, 1, 0), (131, 1, 1280), (131, 2, 90_000)):
        place = (500_000 + left, 5_000_000)
        write_patch(root, "ROIs1868_summer", scene, patch, make(rng), place=place)
    prepare.prepare_chips(root, tmp_path / "tfds")
    line = "1 of 2 holdout patches share ground with unlabeled ones (50.0%)"
    assert capsys.readouterr().out.splitlines()[-1] == line
    write_patch(root, "ROIs1868_summer", 1, 2, make(rng), place=None)
    prepare.prepare_chips(root, tmp_path / "tfds", overwrite=True)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "whether the 2 holdout patches share ground with unlabeled ones can't be told: "
        "not all files have coordinates"
    )


def test_processes_and_beam_write_the_same_files(there, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_SHARD_BYTES", 1)
    first = prepare.prepare_chips(there[0], tmp_path / "one")
    assert len(list(first.glob("*unlabeled*"))) == 4
    monkeypatch.setattr(shards, "_LOOK", 2)
    second = prepare.prepare_chips(there[0], tmp_path / "two", workers=2)
    assert contents(first) == contents(second)
    monkeypatch.chdir(there[0].parent)
    words = ["--chips", there[0].name, "--beam", "--data-dir", tmp_path / "beam"]
    monkeypatch.setattr(sys, "argv", ["prepare", *map(str, words), "--runner=DirectRunner"])
    prepare.main()
    assert contents(first) == contents(tmp_path / "beam" / "sen12ms" / first.name)
    assert [path.name for path in (tmp_path / "beam" / "sen12ms").iterdir()] == [first.name]


def test_a_split_is_of_no_more_files_than_can_be_open(there, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_SHARD_BYTES", 1)
    monkeypatch.setattr(shards, "_MOST_SHARDS", 2)
    target = prepare.prepare_chips(there[0], tmp_path)
    assert len(list(target.glob("*unlabeled*"))) == 2
    seen = by_id(source.open_split(Data(tmp_path, "sen12ms"), "unlabeled"))
    for key, record in seen.items():
        np.testing.assert_array_equal(record["s2"], last(there[1][key]["s2"]))


def test_the_command_builds_it_once(summer, tmp_path):
    root, _ = summer
    words = ("prepare", "--chips", root, "--data-dir", tmp_path / "tfds")
    code, said, noise = command(*words)
    assert (code, noise) == (0, [])
    assert "2 unlabeled, 2 holdout (4 of 4 chips)" in said
    code, said, noise = command(*words)
    assert (code, said) == (2, "")
    target = tmp_path / "tfds" / "sen12ms" / "1.0.0"
    assert noise == [f"error: {target} exists already; --overwrite builds it again"]
    path_of(root, "s1", 146, 2).unlink()
    path_of(root, "s2", 146, 2).unlink()
    code, said, noise = command(*words, "--overwrite")
    assert (code, noise) == (0, [])
    assert len(source.open_split(Data(tmp_path / "tfds", "sen12ms"), "unlabeled")) == 1
    assert [path.name for path in target.parent.iterdir()] == ["1.0.0"]


@pytest.mark.parametrize(
    "words",
    [
        ("--config", "classification"),
        ("--purity", 0.9),
        ("--coverage", 0.9),
        ("--split-by", "scene"),
        ("--allow-overlap",),
        ("--labeled", 80),
        ("--test", 10),
        ("--bands", "s2=3,2,1"),
    ],
    ids=lambda words: words[0],
)
def test_what_has_no_say_in_it_is_refused(there, tmp_path, monkeypatch, capsys, words):
    every = ["prepare", "--chips", there[0], "--data-dir", tmp_path / "tfds", *words]
    monkeypatch.setattr(sys, "argv", [*map(str, every)])
    with pytest.raises(SystemExit) as ended:
        prepare.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said == [f"error: {words[0]} is not for sen12ms, whose splits and bands are fixed"]
    assert not (tmp_path / "tfds").exists()


def test_a_folder_that_is_not_clear_is_refused(summer, tmp_path):
    root, _ = summer
    with pytest.raises(InputError, match=r"root is not a folder of elev_ssl_jax.data.chips"):
        prepare.prepare_chips([root, root], tmp_path / "tfds")
    (root / "ROIs0000_test").mkdir()
    assert f"{root} holds both SEN12MS and DFC2020" in refused(root, tmp_path)
    (tmp_path / "bare" / "ROIs1970_fall").mkdir(parents=True)
    assert f"{tmp_path / 'bare'} has no patches; they are expected as" in refused(
        tmp_path / "bare", tmp_path
    )
    assert "SEN12MS (ROIs1868_summer and so on)" in refused(root / "ROIs1868_summer", tmp_path)
