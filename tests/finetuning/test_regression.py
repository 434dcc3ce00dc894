import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rasterio
import sklearn.metrics
from rasterio.transform import from_origin

from elev_ssl_jax import metrics, squares
from elev_ssl_jax.checks import check
from elev_ssl_jax.config import fine_tuning
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import labelled, single
from elev_ssl_jax.inference import model as inference
from elev_ssl_jax.inference import scenes
from elev_ssl_jax.inference.maps import check_classes
from tests.data.test_chips import LEFT, TOP, write
from tests.pretraining.test_loop import Stop, Stopping, Writer

SIZE, CELLS = 32, 8


@pytest.fixture
def config():
    config = fine_tuning("regression")
    config.model.width = 0.125
    config.finetune.frozen_epochs, config.epochs = 2, 6
    config.finetune.frozen_learning_rate = config.optimizer.learning_rate = 3e-3
    config.checkpoint.every_epochs = 1
    check(config)
    return config


def make_chips(count, seed=0):
    """The brighter a place, the higher; some elevation is missing."""
    rng = np.random.default_rng(seed)
    heights = rng.uniform(0, 1, (count, 2, 2)).repeat(CELLS // 2, 1).repeat(CELLS // 2, 2)
    images = 5000 * heights.repeat(SIZE // CELLS, 1).repeat(SIZE // CELLS, 2)
    images = images[..., None] + rng.integers(0, 300, (count, SIZE, SIZE, 3))
    elevation = (400 + 1500 * heights).astype(np.float32)
    elevation[:, 0, :3] = np.nan
    return labelled.Labelled({"image": images.astype(np.uint16)}, elevation)


def test_scores_equal_scikit_learns_over_what_is_known(rng):
    true = rng.normal(900, 300, (7, 5, 5))
    told = true + rng.normal(40, 90, true.shape)
    true[rng.random(true.shape) < 0.2] = np.nan
    known = ~np.isnan(true)
    scores = metrics.regression_scores(true, told)
    assert scores == pytest.approx(
        {
            "rmse": sklearn.metrics.root_mean_squared_error(true[known], told[known]),
            "mae": sklearn.metrics.mean_absolute_error(true[known], told[known]),
            "bias": float(np.mean(told[known] - true[known])),
            "r2": sklearn.metrics.r2_score(true[known], told[known]),
        }
    )


def test_it_learns_is_chosen_by_validation_goes_on_and_maps(config, tmp_path, capsys):
    train, test, validation = make_chips(40), make_chips(12, 1), make_chips(10, 2)
    config.finetune.scale = 1000.0, 500.0  # not that of the labels
    config.data.validation_split = "labeled[80:]"
    scores = single.finetune(config, tmp_path / "whole", train, test, Writer(), validation)
    assert json.loads((tmp_path / "whole" / "results.json").read_text()) == scores
    said = capsys.readouterr().out
    assert "RMSE (m)" in said
    assert "which has the best R2 on labeled[80:]" in said
    assert scores["r2"] > 0.5 > 0.01 > scores["of_mean"]["r2"]
    labels_mean = np.nanmean(train.targets.astype(np.float64))
    assert scores["of_mean"]["bias"] == pytest.approx(
        labels_mean - np.nanmean(test.targets), abs=0.1
    )
    assert scores["relief_rmse"] < scores["of_mean"]["relief_rmse"]
    model = inference.load(tmp_path / "whole")
    told = model.elevation(test.inputs["image"])
    assert told.shape == test.targets.shape
    again = metrics.regression_scores(test.targets, told)
    assert {name: scores[name] for name in again} == pytest.approx(again, rel=1e-4)
    with pytest.raises(InputError, match="knows no classes"):
        model.predict(test.inputs["image"])

    with pytest.raises(Stop):
        single.finetune(config, tmp_path / "parts", train, test, Stopping(5), validation)
    resumed = single.finetune(config, tmp_path / "parts", train, test, Writer(), validation)
    assert resumed == scores

    bands = np.moveaxis(test.inputs["image"][:4], -1, 1).reshape(2, 2, 3, SIZE, SIZE)
    bands = bands.transpose(2, 0, 3, 1, 4).reshape(3, 2 * SIZE, 2 * SIZE)
    path = write(tmp_path / "scene.tif", bands, from_origin(LEFT, TOP, 10, 10))
    scenes.map_scene(model, [path], out=tmp_path / "map.tif", overlap=0, progress=False)
    with rasterio.open(tmp_path / "map.tif") as source:
        assert source.descriptions == ("elevation (m)",)
        found = source.read(1)
    wanted = np.asarray(jax.image.resize(told[:4], (4, SIZE, SIZE), "linear"))
    wanted = wanted.reshape(2, 2, SIZE, SIZE).swapaxes(1, 2).reshape(found.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    with pytest.raises(InputError, match="--confidence is for runs that tell classes"):
        scenes.map_scene(model, [path], confidence=tmp_path / "c.tif")


def test_another_quantity_has_its_name_and_unit_and_may_be_told_from_elevation(
    config, tmp_path, capsys
):
    """From the DEM alone, which the model sees, and of every pixel."""
    config.finetune.target, config.finetune.quantity = "quantity", ("snow depth", "m w.e.")
    config.data.inputs = ("image", "elevation")
    check(config)

    def chips(count, seed):
        made, rng = make_chips(count, seed), np.random.default_rng(seed)
        noise = rng.integers(0, 6000, made.inputs["image"].shape).astype(np.uint16)
        inputs = {"image": noise, "elevation": np.nan_to_num(made.targets, nan=1000.0)}
        snow = made.targets.repeat(SIZE // CELLS, 1).repeat(SIZE // CELLS, 2) / 1e5
        return labelled.Labelled(inputs, snow)

    train, test = chips(40, 0), chips(12, 1)
    scores = single.finetune(config, tmp_path / "run", train, test, Writer())
    assert (scores["quantity"], scores["unit"]) == ("snow depth", "m w.e.")
    assert scores["r2"] > 0.5
    said = capsys.readouterr().out
    assert f"snow depth of {(~np.isnan(test.targets)).sum():,} cells of 12 test chips" in said
    assert re.search(r"RMSE \(m w\.e\.\) +0\.00\d\d", said), said
    model = inference.load(tmp_path / "run")
    assert model.tells == ("snow depth", "m w.e.")
    told = model.quantity(test.inputs)
    again = metrics.regression_scores(test.targets, told)
    assert {name: scores[name] for name in again} == pytest.approx(again, rel=1e-4)
    with pytest.raises(InputError, match="has not learned elevation"):
        model.elevation(test.inputs)

    grid = from_origin(LEFT, TOP, 10, 10)
    path = write(tmp_path / "scene.tif", np.moveaxis(test.inputs["image"][0], -1, 0), grid)
    dem = write(tmp_path / "dem.tif", test.inputs["elevation"][0], from_origin(LEFT, TOP, 40, 40))
    scenes.map_scene(model, [path], elevation=dem, out=tmp_path / "map.tif", progress=False)
    with rasterio.open(tmp_path / "map.tif") as source:
        assert source.descriptions == ("snow depth (m w.e.)",)
        assert source.units == ("m w.e.",)
        with pytest.raises(InputError, match=r"is a map of snow depth \(m w.e.\), and not of"):
            check_classes(tmp_path / "map.tif", source)
        np.testing.assert_allclose(source.read(1), told[0], rtol=1e-4)


@pytest.mark.parametrize("target", ["elevation", "quantity"])
def test_squares_have_the_elevation_of_their_ground(config, target):
    config.augment.crop_size, config.finetune.target = 16, target
    chips = make_chips(3)
    judged = labelled.as_judged(config, chips)
    assert judged.targets.shape == (12, 4, 4)
    for i, (top, left) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        at = jnp.full(3, top), jnp.full(3, left)
        wanted = squares.cut_elevation(jnp.asarray(chips.targets), at, 16, (SIZE, SIZE))
        np.testing.assert_array_equal(judged.targets[i::4], wanted)


def test_squares_may_be_turned_whatever_the_chips_are(config, rng):
    config.augment.crop_size = 24
    chips = labelled.Labelled(
        {"image": rng.integers(0, 6000, (4, 32, 40, 3)).astype(np.uint16)},
        np.arange(4 * 8 * 10, dtype=np.float32).reshape(4, 8, 10),
    )
    labelled.check_chips(config, chips, chips)


def test_images_to_judge_by_are_named_by_their_field(config):
    chips = make_chips(6)
    chips.targets[:] = 5.0
    config.data.validation_split = "labeled[40:46]"
    message = r"of labeled\[40:46\] of .*, are all of one elevation; .*config.data.validation_split"
    with pytest.raises(InputError, match=message):
        labelled.as_judged(config, chips, "data.validation_split")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("none", "none of the 6 labelled chips .* has any elevation"),
        ("flat", "the 6 images to judge by, .* are all of one elevation"),
        ("oblong", "transpose is 0.5; it must be 0 for elevation of 8 x 6"),
    ],
)
def test_elevation_that_cannot_be_learned_is_refused(config, tmp_path, change, message):
    train, test = make_chips(6), make_chips(6, 1)
    if change == "none":
        train.targets[:] = np.nan
    elif change == "flat":
        test.targets[:] = 5.0
    else:
        train, test = (c._replace(targets=c.targets[:, :, :6]) for c in (train, test))
    with pytest.raises(InputError, match=message):
        single.finetune(config, tmp_path / "run", train, test, Writer())
    assert not (tmp_path / "run").exists()
