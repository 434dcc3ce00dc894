import json
import os
import subprocess
import sys

import numpy as np
import pytest

from elev_ssl_jax.data import prepare, source, synthetic
from elev_ssl_jax.errors import InputError


class Data:
    """Stands for config.data."""

    def __init__(self, folder, name="chips/segmentation", **fields):
        self.dir, self.name = str(folder), name
        self.__dict__.update(fields)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """40 synthetic chips of 12 pixels, prepared."""
    folder = tmp_path_factory.mktemp("data")
    synthetic.write_chips(folder / "chips", 40, size=12, progress=False)
    prepare.prepare_chips(folder / "chips", folder / "tfds", num_labeled=10, num_test=8)
    return folder


@pytest.fixture
def copy(prepared, tmp_path):
    """A copy of the prepared data's folder of versions."""
    subprocess.run(["cp", "-r", prepared / "tfds", tmp_path], check=True)
    return tmp_path / "tfds" / "chips" / "segmentation"


def test_a_text_becomes_an_array_of_str_if_it_is_asked_for(prepared):
    split = source.open_split(Data(prepared / "tfds"), "test")
    assert set(split.arrays()) == {"image", "elevation", "mask"}
    arrays = split.arrays("block", "image")
    assert arrays["image"].shape == (8, 12, 12, 3)
    assert arrays["block"].dtype.kind == "U"
    for block, record in zip(arrays["block"], split, strict=True):
        scene = record["scene"].decode()
        assert block == f"{scene}/{scene}_0_0"
    with pytest.raises(InputError, match="no label; prepare them again"):
        split.arrays("label")


def test_the_newest_whole_version_is_read(copy):
    for name in ("9.0.0", "10.0.0", "10.0.0.old", "11.0.0.incompleteABC", "99.0.0.xyz"):
        subprocess.run(["cp", "-r", copy / "1.0.0", copy / name], check=True)
    assert source.newest(copy).name == "10.0.0"
    data = Data(copy.parents[1])
    assert len(source.open_split(data, "test")) == 8
    subprocess.run(["rm", "-r", copy / "1.0.0", copy / "9.0.0", copy / "10.0.0"], check=True)
    with pytest.raises(InputError, match="has no chips/segmentation; build it"):
        source.open_split(data, "test")


@pytest.mark.parametrize("empty", [False, True])
def test_a_newest_version_that_is_not_whole_never_loses_to_an_older_one(copy, empty):
    newest = copy / "2.0.0"
    if empty:
        newest.mkdir()
    else:
        subprocess.run(["cp", "-r", copy / "1.0.0", newest], check=True)
        (newest / "dataset_info.json").unlink()
    with pytest.raises(InputError, match=r"2.0.0 is not whole; delete it, or prepare it again"):
        source.open_split(Data(copy.parents[1]), "test")
    # Only the one that was to be replaced may stand in for it.
    subprocess.run(["cp", "-r", copy / "1.0.0", copy / ".2.0.0.old"], check=True)
    assert source.newest(copy).name == ".2.0.0.old"


def test_data_of_the_version_without_blocks_still_open(copy):
    (copy / "1.0.0").rename(copy / "1.0.0")
    info = json.loads((copy / "1.0.0" / "dataset_info.json").read_text()) | {"version": "1.0.0"}
    (copy / "1.0.0" / "dataset_info.json").write_text(json.dumps(info))
    features = json.loads((copy / "1.0.0" / "features.json").read_text())
    del features["featuresDict"]["features"]["block"]
    (copy / "1.0.0" / "features.json").write_text(json.dumps(features))
    split = source.open_split(Data(copy.parents[1]), "test")
    assert set(split.arrays()) == {"image", "elevation", "mask"}
    assert "block" not in split.features
    import tensorflow_datasets as tfds
    import tfds_chips  # noqa: F401

    builder = tfds.builder("chips/segmentation:1.0.0", data_dir=copy.parents[1])
    assert builder.info.splits["test"].num_examples == 8


EVIL = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()"
GOOD = "tensorflow_datasets.core.features.features_dict.FeaturesDict"


def evil_class(features):
    features["featuresDict"]["features"]["image"]["pythonClassName"] = "evilmod.Feature"


def evil_snake(features):
    features["featuresDict"]["features"]["image"]["python_class_name"] = "evilmod.Feature"
    del features["featuresDict"]["features"]["image"]["pythonClassName"]


def evil_type(features):
    features.clear()
    features |= {"type": "evilmod.Feature", "content": {}}


def evil_nested(features):
    inner = {"type": "evilmod.Feature", "content": {}}
    features |= {"type": GOOD, "content": {"image": inner}}


def evil_string(features):
    features.clear()
    inner = json.dumps({"image": {"type": "evilmod.Feature", "content": {}}})
    features |= {"pythonClassName": GOOD, "jsonFeature": {"json": inner}}


@pytest.mark.parametrize("reader", ["open_split", "builder"])
@pytest.mark.parametrize(
    "change",
    [evil_class, evil_snake, evil_type, evil_nested, evil_string],
    ids=lambda f: f.__name__,
)
def test_data_run_no_code(copy, monkeypatch, change, reader):
    path = copy / "1.0.0" / "features.json"
    features = json.loads(path.read_text())
    change(features)
    path.write_text(json.dumps(features))
    (copy / "evilmod.py").write_text(EVIL)
    monkeypatch.chdir(copy)
    monkeypatch.syspath_prepend(str(copy))
    import tfds_chips

    read = {
        "open_split": lambda: source.open_split(Data(copy.parents[1]), "test"),
        "builder": lambda: tfds_chips.Chips(data_dir=copy.parents[1], config="segmentation"),
    }[reader]
    with pytest.raises(InputError, match=r"features.json names the class"):
        read()
    assert not (copy / "ran").exists()
    assert "evilmod" not in sys.modules


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_damaged_files_are_named(copy, name, content):
    (copy / "1.0.0" / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is damaged; prepare it again"):
        source.open_split(Data(copy.parents[1]), "test")


def test_other_damage_gives_one_line(copy):
    whole = (copy / "1.0.0" / "dataset_info.json").read_text()
    for text in (
        "{}",
        whole.replace('"version": "1.0.0"', '"version": "x"'),
        whole.replace('"shardLengths"', '"shardWidths"'),
        whole.replace('"numBytes": "', '"numBytes": "x'),
        whole.replace("array_record", "nonsense"),
        whole.replace("{DATASET}-{SPLIT}", "../../{DATASET}-{SPLIT}"),
        whole.replace('"filepathTemplate": "', '"filepath_template": "../'),
        whole.replace('"name": "test"', '"name": "../test"'),
    ):
        (copy / "1.0.0" / "dataset_info.json").write_text(text)
        with pytest.raises(InputError) as raised:
            source.open_split(Data(copy.parents[1]), "test")
        assert str(copy / "1.0.0") in str(raised.value)
        assert "\n" not in str(raised.value)
    (copy / "1.0.0" / "dataset_info.json").write_text(whole)
    for shard in (copy / "1.0.0").glob("*test.array_record*"):
        shard.unlink()
    with pytest.raises(InputError, match=r"1.0.0.*test.array_record.* not found; prepare it again"):
        source.open_split(Data(copy.parents[1]), "test")
    (copy / "1.0.0" / "features.json").unlink()
    os.mkfifo(copy / "1.0.0" / "features.json")
    with pytest.raises(InputError, match=r"1.0.0 is not whole; delete it"):
        source.open_split(Data(copy.parents[1]), "test")


@pytest.mark.parametrize("split", ["labeled[-:4]", "labeled[:-]", "labeled[", "moon", "[:4]", "+"])
def test_a_split_that_is_none_is_one_line(prepared, split):
    with pytest.raises(InputError, match="split ") as raised:
        source.open_split(Data(prepared / "tfds"), split)
    assert "\n" not in str(raised.value)


def test_a_split_that_is_too_small_says_what_to_do(prepared):
    for field in ("split", "eval_split"):
        data = Data(prepared / "tfds", **{field: "labeled[:80]"})
        with pytest.raises(InputError) as raised:
            source.open_split(data, "labeled[:80]", exact=True)
        assert f"--config.data.{field}='labeled[:10]'" in str(raised.value)
        assert "prepare again with --labeled 80" in str(raised.value)
    with pytest.raises(InputError, match=r"ask for 'test\[:8\]', or prepare again with --test 90$"):
        source.open_split(Data(prepared / "tfds"), "test[:90]", exact=True)
    with pytest.raises(InputError, match=r"has: .*; prepare again with --labeled 20$"):
        source.open_split(Data(prepared / "tfds"), "labeled[10:20]", exact=True)
    np.testing.assert_equal(len(source.open_split(Data(prepared / "tfds"), "labeled[:80]")), 10)


@pytest.mark.parametrize("damage", ["half", "noise"])
def test_a_damaged_shard_is_one_line(tmp_path, damage):
    synthetic.write_chips(tmp_path / "chips", 20, size=12, progress=False)
    version = prepare.prepare_chips(tmp_path / "chips", tmp_path, num_labeled=3, num_test=5)
    (shard,) = version.glob("*-test.array_record*")
    content = shard.read_bytes()
    noise = np.random.default_rng(0).bytes(len(content))
    shard.write_bytes({"half": content[: len(content) // 2], "noise": noise}[damage])
    with pytest.raises(InputError, match="prepare it again"):
        source.open_split(Data(str(tmp_path), "chips/segmentation"), "test").arrays()


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ("labeled", "labeled[60:]", 40),
        ("labeled[:60]", "labeled[60:]", 0),
        ("labeled[:-10]", "labeled[80:200]", 10),
        ("unlabeled + labeled[80:]", "test+labeled[:90]+unlabeled[5:6]", 11),
        ("labeled", "test", 0),
    ],
)
def test_chips_of_two_splits_are_counted(one, other, common):
    counts = {"unlabeled": 500, "labeled": 100, "test": 50}
    assert source.shared(one, other, counts) == source.shared(other, one, counts) == common
