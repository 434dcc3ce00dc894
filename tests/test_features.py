import os

import numpy as np
import pytest

from elev_ssl_jax import features
from elev_ssl_jax.config import default
from elev_ssl_jax.data import source, synthetic
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference.model import load
from tests import commands, runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pre-training on prepared chips."""
    folder = tmp_path_factory.mktemp("run")
    config = default()
    config.data.synthetic.update(chips=60, size=32)
    config.data.name, config.data.probe_split = "chips/segmentation", "labeled"
    synthetic.prepare(config.data, folder)
    config.data.synthetic.chips = 0
    config.data.split = "unlabeled"
    config.model.encoder = "vgg"  # compiles soonest
    config.model.width, config.model.projection = 0.125, (16, 8)
    shapes = source.open_split(config.data, "unlabeled").shapes
    runs.save_run(folder / "run", config, shapes["image"], elevation=shapes["elevation"])
    return folder / "run"


def test_the_file_has_what_the_model_says_of_labelled_chips(run, tmp_path):
    out = tmp_path / "features.npz"
    same = os.environ["XLA_FLAGS"]  # programs as they are compiled here
    done = commands.forked("elev_ssl_jax.features", run, f"--out={out}", XLA_FLAGS=same)
    assert done.returncode == 0, done.stderr
    assert "chips of labeled for train" in done.stdout
    found = np.load(out)
    model = load(run)
    split = source.open_split(model.config.data, "test")
    arrays = split.arrays("image", "mask", "block")
    known = np.array([(mask != 255).any() for mask in arrays["mask"]])
    np.testing.assert_allclose(
        found["X_test"], model.features(arrays["image"][known]), atol=1e-5, rtol=1e-4
    )
    assert found["y_test"].tolist() == [
        np.bincount(mask[mask != 255]).argmax() for mask in arrays["mask"][known]
    ]
    assert found["block_test"].tolist() == arrays["block"][known].tolist()
    assert found["classes"].tolist() == ["wild", "farmed"]
    assert set(found) == {
        *(f"{key}_{part}" for key in ("X", "y", "block") for part in ("train", "test")),
        "classes",
    }
    with pytest.raises(InputError, match="exists"):
        features.write(run, out, {})
    said = features.write(run, out, {"val": "labeled[:3]"}, overwrite=True)
    assert "3 chips of labeled[:3] for val" in said
    assert len(np.load(out)["X_val"]) == 3


def test_data_that_are_not_there_are_said_in_a_line(run, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        features.write(run, tmp_path / "x.npz", {}, folder="/nowhere")
    assert not any(tmp_path.iterdir())
