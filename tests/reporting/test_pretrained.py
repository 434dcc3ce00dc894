import json

import pytest

from elev_ssl_jax.errors import InputError
from elev_ssl_jax.reporting import pretrained


def write(run, name, level=None, relief=0.0):
    folder = run / "pretrain" / name
    folder.mkdir(parents=True)
    scores = {"feature_std": 0.5}
    if level is not None:
        scores |= {
            "elevation_level_rmse_m": level,
            "elevation_level_rmse_of_train_mean_m": 402.0,
            "elevation_relief_rmse_m": relief,
            "elevation_relief_rmse_of_none_m": 90.0,
            "elevation_relief_correlation": 0.25,
        }
    (folder / "results.json").write_text(json.dumps(scores))
    return folder


def test_level_and_relief_stand_beside_each_other_with_what_is_to_beat(tmp_path):
    write(tmp_path, "simclr-0")
    for repetition, level in enumerate((100, 120, 140)):
        folder = write(tmp_path, f"simclr_elev-{repetition}", level, 80 + repetition)
        (folder / "elevation.png").touch()
    write(tmp_path, "elevation-0", 200, 85)
    (tmp_path / "pretrain" / "elevation-1").mkdir()  # under way
    methods = ["random", "simclr", "simclr_elev", "simclr_elev_frozen", "elevation"]
    found = pretrained.blocks(tmp_path, methods)
    (table,) = (content for kind, content in found if kind == "table")
    assert [[*row] for row in table.to_numpy()] == [
        # Student's t: 4.303 * 20 / sqrt(3)
        ["SimCLR+Elevation", "3", "120.0 ± 49.7", "81.0 ± 2.5", "0.25 ± 0.00"],
        ["Elevation-Map", "1", "200.0", "85.0", "0.25"],
        ["nothing learned", "", "402.0", "90.0", ""],
    ]
    (picture,) = (content for kind, content in found if kind == "image")
    assert picture == tmp_path / "pretrain" / "simclr_elev-0" / "elevation.png"
    assert pretrained.blocks(tmp_path, ["random", "simclr"]) == []
    (tmp_path / "pretrain" / "elevation-0" / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"elevation-0/results.json can't be read"):
        pretrained.blocks(tmp_path, methods)
