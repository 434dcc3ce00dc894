from pathlib import Path

import ml_collections
import numpy as np

from elev_ssl_jax.data import source, store, synthetic


def test_scenes_are_seeded_and_within_their_ranges():
    image, dem, labels = synthetic.make_scene(3, 96)
    for ours, again in zip((image, dem, labels), synthetic.make_scene(3, 96), strict=True):
        np.testing.assert_array_equal(ours, again)
    assert not np.array_equal(image, synthetic.make_scene(4, 96)[0])
    assert image.shape == (3, 96, 96)
    assert image.dtype == np.uint16
    assert dem.shape == (32, 32)
    assert 0 <= dem.min() < dem.max() < 5000
    assert image.min() >= 1
    assert image.max() <= 10_000


def test_both_classes_are_common_and_elevation_matters():
    scenes = [synthetic.make_scene(seed, 48) for seed in range(60)]
    shares = np.array([labels.mean() for _, _, labels in scenes])
    heights = np.array([dem.mean() for _, dem, _ in scenes])
    assert 0.3 < shares.mean() < 0.7
    assert np.corrcoef(shares, heights)[0, 1] < -0.4


def test_any_number_of_chips(tmp_path):
    synthetic.write_chips(tmp_path / "chips", 11, size=24, seed=1, progress=False)
    rows, about = store.read_table(tmp_path / "chips"), store.read_about(tmp_path / "chips")
    assert len(rows) == 11
    assert rows["scene"].nunique() == 2
    part = Path(rows["part"][10])
    assert store.open_array(part, about, "image").shape == (2, 24, 24, 3)
    assert np.isfinite(store.open_array(part, about, "elevation")).all()
    assert about.elevation_size == 8
    assert about.classes == ("wild", "farmed")


def test_chips_of_another_number_or_size_are_others(tmp_path):
    folders = set()
    for chips, size in ((40, 12), (41, 12), (40, 15)):
        data = ml_collections.ConfigDict(
            {
                "dir": "",
                "name": "nwrc/segmentation",
                "synthetic": {"chips": chips, "size": size},
            }
        )
        synthetic.prepare(data, tmp_path)
        folders.add(data.dir)
        splits = source.open_split(data, "unlabeled")
        assert splits[0]["image"].shape == (size, size, 3)
        assert splits.counts["test"] == chips // 5
    assert len(folders) == 3
