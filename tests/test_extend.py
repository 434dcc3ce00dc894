"""The examples of docs/extend, as a reader would use them."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import elev_ssl_jax
from elev_ssl_jax.checks import check
from elev_ssl_jax.config import fine_tuning
from elev_ssl_jax.finetuning import single
from elev_ssl_jax.finetuning.labelled import Labelled
from elev_ssl_jax.models import encoders
from elev_ssl_jax.pretraining import controls, loop
from elev_ssl_jax.runtime import sharding
from tests.pretraining.test_loop import Writer

EXAMPLES = Path(__file__).parents[1] / "docs" / "extend"


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch, batch_mesh):
    """What examples add to the package is not there for other tests."""
    monkeypatch.setattr(encoders, "ENCODERS", encoders.ENCODERS.copy())
    monkeypatch.setattr(controls, "TARGETS", controls.TARGETS.copy())
    make = sharding.make_mesh  # of two devices, if none are named
    monkeypatch.setattr(
        sharding, "make_mesh", lambda given=None: make(given) if given else batch_mesh(2)
    )


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_method(tiny, tmp_path, rng, capsys):
    method, used = example("method"), example("run")
    one, other = rng.normal(size=(2, 50, 6))
    z = np.linalg.qr(one - one.mean(axis=0))[0]  # nothing of it is said twice
    assert method.barlow_twins(z, z) == pytest.approx(0, abs=1e-8)
    expected = np.corrcoef(one.T, other.T)[:6, 6:] - np.eye(6)
    expected = np.sum(expected**2 * np.where(np.eye(6), 1, 5e-3))
    assert method.barlow_twins(one, other) == pytest.approx(expected, rel=1e-3)

    used.Printed().write_scalars(2, {"loss": np.float32(0.25)})
    assert capsys.readouterr().out == "2 {'loss': 0.25}\n"
    check(used.config)
    assert len(used.data.train["image"]) == len(used.data.train["elevation"]) == 64
    chips = used.chips(range(20), 33)
    writer, data = Writer(), loop.Data(chips, chips)
    scores = loop.pretrain(tiny, tmp_path, data, writer, make_method=method.make)
    for values in (writer.scalars[1], writer.scalars[4]):
        halves = values["barlow_loss"] + values["elevation_loss"]
        assert values["loss"] == pytest.approx(halves / 2, rel=1e-5)
        assert "global_loss" not in values
    assert scores["elevation_rmse_m"] > 0


@pytest.fixture
def folder(chips, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("image", "elevation"):
        np.save(tmp_path / "data" / f"{name}.npy", chips[name])
    return example("dataset").Folder(tmp_path / "data")


def test_an_encoder(rng):
    encoder = example("encoder").Separable(width=0.125)
    assert encoders.ENCODERS["separable"] is type(encoder)
    images = rng.uniform(size=(2, 32, 48, 4)).astype(np.float32)
    maps, variables = encoder.init_with_output(jax.random.key(0), images, train=True)
    shapes = [(16, 24, 8), (8, 12, 16), (4, 6, 32), (2, 3, 64)]
    assert [x.shape for x in maps] == [(2, *shape) for shape in shapes]
    assert set(variables) == {"params", "batch_stats"}


def test_a_data_set(folder, chips):
    assert len(folder) == len(chips["image"])
    assert folder.nbytes("image") == chips["image"].nbytes
    for name in ("image", "elevation"):
        np.testing.assert_array_equal(folder[3][name], chips[name][3])
        np.testing.assert_array_equal(folder.arrays(name)[name], chips[name])


def test_an_encoder_and_a_data_set_are_learned_with(tiny, chips, folder, tmp_path):
    example("encoder")
    tiny.model.encoder, tiny.epochs = "separable", 1
    for run, gib in (("held", 1.0), ("streamed", 0.0)):
        tiny.data.resident_gib = gib
        loop.pretrain(tiny, tmp_path / run, loop.Data(folder, chips), Writer())
    held, streamed = (
        json.loads((tmp_path / n / "results.json").read_text()) for n in ("held", "streamed")
    )
    assert held == streamed
    assert elev_ssl_jax.load(tmp_path / "held").features(chips["image"]).shape == (20, 64)

    tuning = fine_tuning("unet")
    tuning.model.encoder, tuning.model.width = "separable", tiny.model.width
    tuning.init_from, tuning.finetune.num_classes = str(tmp_path / "held"), 2
    tuning.epochs, tuning.finetune.frozen_epochs = 1, 1
    classes = (chips["image"][..., 0] > 3000).astype(np.uint8)
    labelled = Labelled({"image": chips["image"]}, classes)
    single.finetune(tuning, tmp_path / "tuned", labelled, labelled, Writer())
    assert elev_ssl_jax.load(tmp_path / "tuned").predict(chips["image"]).shape == classes.shape


def test_a_target(tiny):
    position = example("target").position
    hill = np.zeros((1, 5, 5), np.float32)
    hill[0, 2, 2] = 9.0
    found = np.asarray(position(tiny, {"elevation": hill}))[0]
    assert found[2, 2] == pytest.approx(8)
    assert found[1, 1] == found[2, 3] == pytest.approx(-1)
    assert found[0, 0] == 0


def test_a_target_is_learned(tiny, chips, tmp_path):
    example("target")
    tiny.objective.target, tiny.epochs, writer = "position", 1, Writer()
    scores = loop.pretrain(tiny, tmp_path, loop.Data(chips, chips), writer)
    assert writer.scalars[2]["elevation_loss"] > 0
    assert not any(name.startswith("elevation") for name in scores)  # it isn't what was learned


def test_the_page_shows_the_examples():
    page = (EXAMPLES.parent / "extend.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'--8<-- "docs/extend/{path.name}"' in page
