from pathlib import Path

import ml_collections
import numpy as np

from elev_ssl_jax.data import source, store, synthetic


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
    for chips, size, inputs in (
        (40, 12, ("image",)),
        (41, 12, ("image", "elevation")),
        (40, 15, ("image",)),
        (40, 12, ("s2",)),
    ):
        data = ml_collections.ConfigDict(
            {
                "dir": "",
                "inputs": inputs,
                "name": "nwrc/segmentation",
                "synthetic": {"chips": chips, "size": size},
            }
        )
        synthetic.prepare(data, tmp_path)
        folders.add(data.dir)
        splits = source.open_split(data, "unlabeled")
        if inputs[0] == "image":
            assert splits[0]["image"].shape == (size, size, 3)
        else:
            assert splits[0]["s1"].shape == (size, size, 2)
            assert splits[0]["s2"].shape == (size, size, 13)
            assert len(splits.classes) == 8
        assert splits.counts["test"] == chips // 5
    assert len(folders) == 4
