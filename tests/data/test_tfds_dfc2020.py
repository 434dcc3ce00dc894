import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tfds_dfc2020

from elev_ssl_jax.data import prepare, source
from elev_ssl_jax.errors import InputError
from tests.data.test_prepare import command
from tests.data.test_source import Data
from tests.data.test_tfds_chips import contents
from tests.data.two_sensors import by_id, last, make, write_patch, write_tif

NAMES = ("Forest", "Shrubland", "Grassland", "Wetlands", "Croplands", "Urban", "Barren", "Water")
# Of the files' values; the others have no class.
CLASS = {1: 0, 2: 1, 4: 2, 5: 3, 6: 4, 7: 5, 9: 6, 10: 7}
PARTS = {"validation": [(649, 10, 20), (7, 30, 0)], "test": [(2014, 40, 0), (1, 50, 0), (2, 60, 0)]}
ALL = 256 * 256


def cover(*counts, rest=0):
    """Land cover of so many pixels of each value, in no order; (value, count) each."""
    values = np.full(ALL, rest, np.uint8)
    start = 0
    for value, count in counts:
        values[start : start + count] = value
        start += count
    return np.random.default_rng(5).permutation(values).reshape(1, 256, 256)


def every_value(rng):
    """Land cover with each value that the files may hold."""
    return rng.choice([*range(11), 255], (1, 256, 256)).astype(np.uint8)


def write_all(root, layout="new", masks=None):
    """Patches of both parts; their bands by id.

    Args:
      root: Their folder.
      layout: "new", or that of the first release: "early", or "flat", right in the root.
      masks: Land cover by id, in place of random values.
    """
    rng, written = np.random.default_rng(0), {}
    for part, some in PARTS.items():
        for patch, left, up in some:
            arrays = make(rng) | {"dfc": every_value(rng)}
            key = f"ROIs0000_{part}_0_p{patch}"
            arrays["dfc"] = (masks or {}).get(key, arrays["dfc"])
            folder = {"new": "{kind}_0", "early": f"{{kind}}_{part}"}.get(layout)
            folder = folder or f"../{{kind}}_{part}"
            place = (500_000 + left * 2560, 5_000_000 + up * 2560)
            write_patch(root, f"ROIs0000_{part}", 0, patch, arrays, folder=folder, place=place)
            written[key] = arrays
    if layout == "flat":
        for part in PARTS:
            (root / f"ROIs0000_{part}").rmdir()
    return written


def path_of(root, kind, part, patch, layout="new"):
    folder = {
        "new": f"ROIs0000_{part}/{kind}_0",
        "early": f"ROIs0000_{part}/{kind}_{part}",
        "flat": f"{kind}_{part}",
    }[layout]
    return root / folder / f"ROIs0000_{part}_{kind}_0_p{patch}.tif"


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder in the layout of today, and its bands."""
    root = tmp_path_factory.mktemp("dfc2020")
    return root, write_all(root)


@pytest.fixture
def copy(there, tmp_path):
    """The same, to be spoilt."""
    return shutil.copytree(there[0], tmp_path / "root")


def refused(root, tmp_path):
    """What is said of a folder, in a line; nothing comes of it."""
    with pytest.raises(InputError) as told:
        prepare.prepare_chips(root, tmp_path / "tfds")
    assert "\n" not in str(told.value)
    assert not list((tmp_path / "tfds").rglob("*"))
    return str(told.value)


def classes_of(dfc):
    """As the papers have it, pixel by pixel."""
    return np.array([CLASS.get(int(value), 255) for value in dfc.ravel()]).reshape(256, 256)


class Dfc2020Test(tfds.testing.DatasetBuilderTestCase):
    """TFDS' own checks."""

    DATASET_CLASS = tfds_dfc2020.Dfc2020
    SPLITS = {"train": 2, "test": 3}  # noqa: RUF012

    @classmethod
    def setUpClass(cls):
        cls._folder = tempfile.TemporaryDirectory()
        cls.EXAMPLE_DIR = cls._folder.name
        write_all(Path(cls.EXAMPLE_DIR))
        super().setUpClass()


@pytest.mark.parametrize("layout", ["new", "early", "flat"])
def test_what_the_files_hold_comes_back_to_the_bit(tmp_path, capsys, layout):
    root = tmp_path / "root"
    written = write_all(root, layout)
    # The coarse land cover has values of its own, and is not looked at.
    lc = path_of(root, "lc", "test", 1, layout)
    write_tif(lc, np.full((4, 256, 256), 17, np.uint8))
    (lc.parent / "ROIs0000_test_lc_0_p2.tif").write_text("no raster")
    target = prepare.prepare_chips(root, tmp_path / "tfds")
    assert target.parent == tmp_path / "tfds" / "dfc2020"
    assert capsys.readouterr().out.splitlines() == [
        f"{target}: 2 train, 3 test (5 of 5 chips)",
        "0 of 3 test patches share ground with train ones (0.0%)",
    ]
    data, seen = Data(tmp_path / "tfds", "dfc2020"), {}
    for name, part in (("train", "validation"), ("test", "test")):  # they change roles
        split = source.open_split(data, name)
        assert split.classes == NAMES
        assert split.shapes == {
            "s1": (256, 256, 2), "s2": (256, 256, 13), "mask": (256, 256), "label": (),
            "labels": (8,),
        }  # fmt: skip
        assert split.about["sensors"] == {
            "s1": {"bands": 2, "dtype": "float32", "nodata": None},
            "s2": {"bands": 13, "dtype": "uint16", "nodata": None},
        }
        records = by_id(split)
        assert {*records} == {f"ROIs0000_{part}_0_p{patch}" for patch, *_ in PARTS[part]}
        seen |= records
    for key, record in seen.items():
        for sensor, dtype in (("s1", np.float32), ("s2", np.uint16)):
            assert record[sensor].dtype == dtype
            np.testing.assert_array_equal(record[sensor], last(written[key][sensor]))
        assert record["mask"].dtype == np.uint8
        np.testing.assert_array_equal(record["mask"], classes_of(written[key]["dfc"]))
        scene = key.rsplit("_", 1)[0]
        assert record["scene"].decode() == scene
        # A square of 20 km of its zone, so that a test has several.
        part, patch = scene.split("_")[1], int(key.rsplit("_p", 1)[1])
        left, up = next((left, up) for number, left, up in PARTS[part] if number == patch)
        x, y = (
            (start + 1280) // 20_000 for start in (500_000 + left * 2560, 4_997_440 + up * 2560)
        )
        assert record["block"].decode() == f"32632-{x}-{y}"


LABELS = {
    # Land cover, the label, and the classes of which there is a tenth.
    "most": (cover((10, 40_000), rest=1), 7, (0, 7)),
    "a tie of classes": (cover((7, ALL // 2), rest=4), 2, (2, 5)),
    "a tie with none": (cover((10, ALL // 2), rest=0), 7, (7,)),
    "mostly none": (cover((10, ALL // 2 - 1), rest=255), -1, (7,)),
    "none of three kinds": (cover((3, 20_000), (8, 20_000), (9, 15_000)), -1, (6,)),
    "nothing": (cover(rest=3), -1, ()),
    "a tenth and a pixel less": (cover((1, 6_554), (2, 6_553), rest=6), 4, (0, 4)),
    # Of the pixels that have a class these are more than a tenth.
    "a tenth of all pixels": (cover((2, 6_000), (5, 9_000), rest=8), -1, (3,)),
    "a tenth of none": (cover((2, 6_000), (5, 6_000), rest=0), -1, ()),
}


def test_labels_of_patches(tmp_path, monkeypatch):
    names = list(LABELS)
    patches = [(i, 10 * i, 0) for i in range(len(names))]
    monkeypatch.setitem(PARTS, "test", patches)
    masks = {f"ROIs0000_test_0_p{i}": LABELS[name][0] for i, name in enumerate(names)}
    write_all(tmp_path / "root", masks=masks)
    prepare.prepare_chips(tmp_path / "root", tmp_path / "tfds")
    split = source.open_split(Data(tmp_path / "tfds", "dfc2020"), "test")
    for key, record in by_id(split).items():
        name = names[int(key.rsplit("p", 1)[1])]
        _, label, present = LABELS[name]
        assert record["label"] == label, name
        assert record["label"].dtype == np.int64
        assert record["labels"].dtype == np.uint8
        assert record["labels"].tolist() == [int(k in present) for k in range(8)], name
    arrays = split.arrays("label", "labels")
    assert arrays["label"].shape == (len(names),)
    assert arrays["labels"].shape == (len(names), 8)


def test_tfds_opens_it_by_its_name(there, tmp_path):
    prepare.prepare_chips(there[0], tmp_path)
    loaded = tfds.load("dfc2020", split="test[:2]", data_dir=tmp_path)
    seen = [(e["id"].decode(), e["label"]) for e in tfds.as_numpy(loaded)]
    split = source.open_split(Data(tmp_path, "dfc2020"), "test[:2]")
    assert seen == [(record["id"].decode(), record["label"]) for record in split]
    with pytest.raises(InputError, match="split 'labeled' of dfc2020 won't do; it has"):
        source.open_split(Data(tmp_path, "dfc2020"), "labeled")


@pytest.mark.parametrize("sensor", ["s1", "s2"])
def test_patches_that_are_not_finite_are_left_out_and_named(there, copy, tmp_path, capsys, sensor):
    bands = there[1]["ROIs0000_test_0_p1"][sensor].astype(np.float32)
    bands[1, 100, 3] = np.nan
    write_tif(path_of(copy, sensor, "test", 1), bands)
    prepare.prepare_chips(copy, tmp_path / "tfds")
    said = capsys.readouterr().out.splitlines()
    line = "1 of 5 patches is left out, with values that are not finite: ROIs0000_test_0_p1"
    assert said[0] == line
    assert said[1].endswith("2 train, 2 test (4 of 5 chips)")
    kept = by_id(source.open_split(Data(tmp_path / "tfds", "dfc2020"), "test"))
    assert {*kept} == {"ROIs0000_test_0_p2014", "ROIs0000_test_0_p2"}


def test_a_split_of_which_nothing_is_left_is_named(copy, tmp_path):
    for patch in (649, 7):
        path = path_of(copy, "s1", "validation", patch)
        write_tif(path, np.full((2, 256, 256), np.nan, np.float32))
    said = refused(copy, tmp_path)
    assert said.startswith("nothing is left for the split train: 2 of 5 patches are left out, ")


@pytest.mark.parametrize(("part", "role"), [("validation", "trains on"), ("test", "tests on")])
def test_a_part_that_is_missing_is_named(copy, tmp_path, part, role):
    shutil.rmtree(copy / f"ROIs0000_{part}")
    said = refused(copy, tmp_path)
    assert said.startswith(f"{copy} has no patches of ROIs0000_{part}")
    assert f"{role} ROIs0000_{part}" in said


@pytest.mark.parametrize("layout", ["new", "early", "flat"])
@pytest.mark.parametrize("kind", ["s1", "s2", "dfc"])
def test_a_missing_file_is_named_where_it_belongs(tmp_path, kind, layout):
    write_all(tmp_path / "root", layout)
    path = path_of(tmp_path / "root", kind, "test", 1, layout)
    path.unlink()
    said = refused(tmp_path / "root", tmp_path)
    assert said.startswith(f"{path} not found, though ")
    assert "a patch needs s1 and s2 and dfc" in said


def test_patches_that_are_there_in_both_layouts_are_named(copy, tmp_path):
    first = path_of(copy, "s1", "test", 1)
    second = path_of(copy, "s1", "test", 1, "flat")
    second.parent.mkdir()
    shutil.copy(first, second)
    assert refused(copy, tmp_path).startswith(f"{first} and {second} are the same patch")


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (cover((11, 1), rest=1), "has the value 11; dfc has 0 to 10, or 255"),
        (cover((254, 1), rest=1), "has the value 254; dfc has"),
        (np.full((1, 256, 256), 266, np.uint16), "has the value 266; dfc has"),
        (np.full((1, 256, 256), -1, np.int16), "has the value -1; dfc has"),
        (np.full((1, 256, 256), 1.5, np.float32), "has the value 1.5; dfc has"),
        (np.full((1, 256, 256), np.nan, np.float32), "has the value nan; dfc has"),
        (np.zeros((1, 255, 256), np.uint8), "is 255 x 256 pixels, 1 band(s); 256 x 256 and 1 are"),
        (np.zeros((2, 256, 256), np.uint8), "is 256 x 256 pixels, 2 band(s); 256 x 256 and 1 are"),
    ],
)
def test_land_cover_that_does_not_fit_is_named(copy, tmp_path, bands, message):
    path = write_tif(path_of(copy, "dfc", "validation", 649), bands)
    assert refused(copy, tmp_path).startswith(f"{path} {message}")


def test_land_cover_of_another_type_will_do(there, copy, tmp_path):
    dfc = there[1]["ROIs0000_test_0_p2"]["dfc"]
    write_tif(path_of(copy, "dfc", "test", 2), dfc.astype(np.float32))
    prepare.prepare_chips(copy, tmp_path / "tfds")
    record = by_id(source.open_split(Data(tmp_path / "tfds", "dfc2020"), "test"))
    np.testing.assert_array_equal(record["ROIs0000_test_0_p2"]["mask"], classes_of(dfc))


def test_wrong_sizes_are_named(copy, tmp_path):
    path = path_of(copy, "s2", "test", 2014)
    write_tif(path, np.zeros((13, 256, 257), np.uint16))
    assert refused(copy, tmp_path).startswith(f"{path} is 256 x 257 pixels, 13 band(s); 256 x 256")


def test_the_command_builds_it(there, tmp_path):
    words = ("prepare", "--chips", there[0], "--data-dir", tmp_path)
    code, said, noise = command(*words, "--workers", 2)
    assert (code, noise) == (0, [])
    assert "2 train, 3 test (5 of 5 chips)" in said
    code, said, noise = command(*words, "--split-by", "scene")
    assert (code, said) == (2, "")
    assert noise == ["error: --split-by is not for dfc2020, whose splits and bands are fixed"]


def test_beam_writes_the_same_files(there, tmp_path, monkeypatch):
    first = prepare.prepare_chips(there[0], tmp_path / "one")
    words = ["prepare", "--chips", there[0], "--data-dir", tmp_path / "two", "--beam"]
    monkeypatch.setattr(sys, "argv", [*map(str, words), "--runner=DirectRunner"])
    prepare.main()
    assert contents(first) == contents(tmp_path / "two" / "dfc2020" / first.name)
