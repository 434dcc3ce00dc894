import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tfds_nwrc

from elev_ssl_jax.data import prepare, source
from elev_ssl_jax.errors import InputError
from tests import commands
from tests.data import reference


class NwrcTest(tfds.testing.DatasetBuilderTestCase):
    """TFDS' own checks, on a folder in the reference format."""

    DATASET_CLASS = tfds_nwrc.Nwrc
    SPLITS = {"unlabeled": 26, "labeled": 2, "test": 2}  # noqa: RUF012

    @classmethod
    def setUpClass(cls):
        cls._folder = tempfile.TemporaryDirectory()
        cls.EXAMPLE_DIR = cls._folder.name
        reference.write_folder(Path(cls.EXAMPLE_DIR))
        super().setUpClass()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Chips of 20 pixels in the reference format, and both configs made of them."""
    folder, data_dir = tmp_path_factory.mktemp("chips"), tmp_path_factory.mktemp("tfds")
    metadata = reference.write_folder(folder, count=40, size=20, elevation_size=7)
    for config in ("segmentation", "classification"):
        prepare.prepare_chips(folder, data_dir, config=config, num_labeled=8, num_test=6)
    return folder, data_dir, metadata


class Data:
    """Stands for config.data."""

    def __init__(self, folder, name):
        self.dir, self.name = str(folder), name


def test_features_are_what_the_files_hold(prepared):
    folder, data_dir, metadata = prepared
    seen = []
    for split in ("unlabeled", "labeled", "test"):
        for record in source.open_split(Data(data_dir, "nwrc/segmentation"), split):
            row = metadata.iloc[int(record["id"])]
            seen.append(row["Id"])
            chip = np.load(folder / "Dataset" / row["Image"]).reshape(4, 20, 20)
            assert record["image"].dtype == np.uint16
            np.testing.assert_array_equal(record["image"], chip[:3].transpose(1, 2, 0))
            assert record["elevation"].shape == (7, 7)
            assert record["elevation"].dtype == np.float32
            assert np.isnan(record["elevation"]).any() == (row["Id"] == 4)
            np.testing.assert_allclose(
                (record["mask"] == 1).mean(), row["agricultural_frontier(km2)"]
            )
            assert record["tile"].decode() == row["Image"][:5]
    assert sorted(seen) == list(range(40))  # all but the two legal exclusions


def test_classification_holds_pure_balanced_chips(prepared):
    _, data_dir, metadata = prepared
    data = Data(data_dir, "nwrc/classification")
    labels = []
    for split in ("labeled", "test"):
        for record in source.open_split(data, split):
            frontier = metadata.iloc[int(record["id"])]["agricultural_frontier(km2)"]
            assert frontier == record["label"]
            labels.append(record["label"])
    assert labels[:8] == [0, 1] * 4
    assert all(r["label"] == -1 for r in source.open_split(data, "unlabeled"))


def test_tfds_opens_it_by_name_and_by_slice(prepared):
    _, data_dir, _ = prepared
    builder = tfds.builder("nwrc/segmentation", data_dir=data_dir)
    assert builder.info.splits["unlabeled"].num_examples == 26
    loaded = tfds.load("nwrc/segmentation", split="test", data_dir=data_dir)
    ids = [example["id"].decode() for example in tfds.as_numpy(loaded)]
    split = source.open_split(Data(data_dir, "nwrc/segmentation"), "test")
    assert ids == [record["id"].decode() for record in split]
    assert (
        len(source.open_split(Data(data_dir, "nwrc/segmentation"), "unlabeled+labeled[5:]")) == 29
    )
    assert len(source.open_split(Data(data_dir, "nwrc/segmentation"), "test+labeled[80:]")) == 6
    arrays = split.arrays()
    assert set(arrays) == {"image", "elevation", "mask"}
    np.testing.assert_array_equal(arrays["image"][3], split[3]["image"])


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("nwrc/nothing", "test", "has no nwrc/nothing; build it with"),
        ("nwrc/segmentation", "train", "it has {'unlabeled': 26, 'labeled': 8"),
        ("nwrc/segmentation", "test[99:]", "is empty"),
    ],
)
def test_what_is_not_there_is_named(prepared, name, split, message):
    with pytest.raises(InputError, match=message):
        source.open_split(Data(prepared[1], name), split)


def test_a_failed_rebuild_keeps_what_was_there(prepared, tmp_path):
    reference.write_folder(tmp_path / "chips", count=20, size=20, elevation_size=7)
    settings = {"num_labeled": 4, "num_test": 3}
    target = prepare.prepare_chips(tmp_path / "chips", tmp_path / "tfds", **settings)
    with pytest.raises(InputError, match="--overwrite"):
        prepare.prepare_chips(tmp_path / "chips", tmp_path / "tfds", **settings)

    bad = next((tmp_path / "chips" / "Dataset").rglob("chip.npy"))
    whole = bad.read_bytes()
    np.save(bad, np.zeros((4, 20, 21), np.uint16))
    with pytest.raises(InputError, match=r"chip.npy is 20 x 21 pixels|first chip is 20 x 21"):
        prepare.prepare_chips(tmp_path / "chips", tmp_path / "tfds", overwrite=True, **settings)
    assert len(source.open_split(Data(tmp_path / "tfds", "nwrc/segmentation"), "unlabeled")) == 13
    assert [p.name for p in target.parent.iterdir()] == ["1.2.0"]

    bad.write_bytes(whole)
    settings["num_test"] = 5
    prepare.prepare_chips(tmp_path / "chips", tmp_path / "tfds", overwrite=True, **settings)
    assert len(source.open_split(Data(tmp_path / "tfds", "nwrc/segmentation"), "unlabeled")) == 11


def test_the_command_reports_bad_files_in_one_line(prepared, tmp_path):
    command = ["elev_ssl_jax.data.prepare", "--chips", tmp_path / "none"]
    done = commands.forked(*command)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    folder, _, _ = prepared
    command = [*command[:-1], folder, "--data-dir", tmp_path, "--bands", "0", "7"]
    done = commands.forked(*command)
    assert done.returncode == 2
    assert "has 4 bands; band 7" in done.stderr
    assert not list(tmp_path.iterdir())
