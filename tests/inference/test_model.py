import jax
import numpy as np
import pytest

import elev_ssl_jax
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference import model as inference
from tests import runs

SHAPE = (32, 32, 3)


def images(rng, count=3, size=32, bands=3):
    return rng.integers(0, 7000, (count, size, size, bands)).astype(np.uint16)


def test_a_pretrained_model_gives_features_and_metres(tmp_path, rng):
    config = runs.settings(high=5000.0)
    variables = runs.save_run(tmp_path, config, SHAPE)
    model = elev_ssl_jax.load(tmp_path)
    assert (model.num_classes, model.step, model.tells) == (None, 4, ("elevation", "m"))
    batch = images(rng)

    # The model as it was trained, on three views that are all the image itself.
    from elev_ssl_jax.pretraining import elevation as objective

    module = objective.make_model(config, {"image": (32, 32, 3), "elevation": (11, 11)}, "cpu")
    views = (batch.clip(0, 5000) / 5000).astype(np.float32)[:, None].repeat(3, axis=1)
    outputs = jax.jit(lambda: module.apply(variables, views, train=False))()
    features, elevation = model.features(batch), model.elevation(batch)
    np.testing.assert_allclose(features, outputs["features"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(elevation, 500 * outputs["elevation"], rtol=1e-4, atol=1e-2)
    assert features.dtype == elevation.dtype == np.float32

    with pytest.raises(InputError, match="knows no classes; name a run that was fine-tuned"):
        model.predict(batch)
    with pytest.raises(InputError, match=r"images are 64 x 64 pixels; .* from 32 x 32"):
        model.elevation(images(rng, size=64))
    for wrong, message in (
        (images(rng, bands=4), "an image has 4 bands; .* takes 3"),
        (batch[0], r"images have shape \(32, 32, 3\)"),
        (batch[:0], r"images have shape \(0, 32, 32, 3\)"),
    ):
        with pytest.raises(InputError, match=message):
            model.features(wrong)


def test_a_fine_tuned_model_gives_classes(tmp_path, rng):
    for head, shape in (("linear", (40,)), ("unet", (40, 64, 64))):
        runs.save_run(tmp_path / head, runs.settings(head), SHAPE)
        model = inference.load(tmp_path / head)
        batch = images(rng, 40, size=64)  # more than a batch, and larger than the run's chips
        probabilities = model.probabilities(batch)
        assert probabilities.shape == (*shape, 2)
        np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
        np.testing.assert_array_equal(model.predict(batch), probabilities.argmax(-1))
        alone = model.probabilities(batch[37:38])
        np.testing.assert_allclose(alone[0], probabilities[37], atol=1e-5)
        assert model.features(batch).shape == (40, 64)
        with pytest.raises(InputError, match="has not learned elevation"):
            model.elevation(batch)


def test_few_programs_serve_any_number_of_images(tmp_path, rng):
    runs.save_run(tmp_path, runs.settings(), SHAPE)
    model = inference.load(tmp_path)
    inference._features.clear_cache()
    batch = images(rng, 40)
    whole = model.features(batch)
    for count in (1, 2, 3, 5, 7, 11, 20, 31, 33, 39):
        np.testing.assert_allclose(model.features(batch[:count]), whole[:count], atol=1e-5)
    assert inference._features._cache_size() <= 6


def test_what_is_missing_has_the_mean_of_its_band_and_a_whole_band_is_refused(tmp_path, rng):
    runs.save_run(tmp_path, runs.settings("unet"), SHAPE)
    model, batch = inference.load(tmp_path), images(rng).astype(np.float32)
    filled = batch.copy()
    batch[1, 3, 4, 0] = np.nan
    filled[1, 3, 4, 0] = np.nanmean(np.clip(batch[1, :, :, 0], *model.inputs.value_range[0]))
    np.testing.assert_allclose(
        model.probabilities(batch), model.probabilities(filled), rtol=1e-4, atol=1e-5
    )
    for wrong in (np.full(batch.shape[1:3], np.nan), np.inf):
        batch[1, :, :, 0] = wrong
        with pytest.raises(InputError, match="infinite somewhere, or has a band without values"):
            model.predict(batch)


def test_what_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere has no checkpoint"):
        inference.load(tmp_path / "nowhere")
    runs.save_run(tmp_path / "early", runs.settings(), SHAPE, step=3)
    with pytest.raises(InputError, match=r"early is not finished \(step 3 of 4\)"):
        inference.load(tmp_path / "early")

    import orbax.checkpoint as ocp

    path = (tmp_path / "foreign" / "checkpoints").absolute()
    handler = ocp.StandardCheckpointHandler()
    with ocp.CheckpointManager(path, item_handlers=handler) as foreign:
        foreign.save(1, args=ocp.args.StandardSave({"weights": np.zeros(3)}))
    with pytest.raises(InputError, match="foreign holds checkpoints of another program"):
        inference.load(tmp_path / "foreign")


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_a_missing_sensor_is_done_without_and_told(tmp_path, rng, capsys, fusion):
    shapes = {"s1": (32, 32, 2), "s2": (32, 32, 3)}
    config = runs.settings("linear")
    config.data.inputs, config.model.fusion = ("s1", "s2"), fusion
    config.data.value_range = (*[(-25.0, 0.0)] * 2, *[(0.0, 6000.0)] * 3)
    runs.save_run(tmp_path, config, (32, 32, 5), shapes=shapes)
    model = inference.load(tmp_path)
    both = {"s1": rng.normal(-12, 4, (3, *shapes["s1"])).astype(np.float32), "s2": images(rng)}
    whole = model.probabilities(both)
    assert not capsys.readouterr().err
    one = model.probabilities({"s2": both["s2"]})
    said = capsys.readouterr().err
    assert f"there is no s1: {tmp_path} does without" in said
    assert "a fine-tuning's results.json" not in said
    assert "its results.json says by how much" in said
    # As if the radar had heard nothing at all.
    silent = np.full_like(both["s1"], -25)
    np.testing.assert_allclose(
        one, model.probabilities({"s1": silent, "s2": both["s2"]}), rtol=1e-4, atol=1e-6
    )
    assert np.abs(one - whole).max() > 1e-3
    np.testing.assert_array_equal(model.probabilities({"s1": None, "s2": both["s2"]}), one)
    lists = {name: array.tolist() for name, array in both.items()}
    np.testing.assert_array_equal(model.probabilities(lists), whole)
    with pytest.raises(InputError, match="takes s1, s2; it knows no s-1"):
        model.predict({"s-1": both["s1"], "s2": both["s2"]})
    assert model.without("s1").features({"s2": both["s2"]}).shape == model.features(both).shape
    with pytest.raises(InputError, match="takes s1, s2; there is no s1"):
        model.predict({})
    with pytest.raises(InputError, match="takes s1, s2; there is no s1"):
        model.predict({"s1": None, "s2": None})
    with pytest.raises(InputError, match="sees s1, s2; it can't do without s1, s2"):
        model.without("s1", "s2")


def test_a_pre_training_without_a_sensor_has_no_scores_to_point_to(tmp_path, rng, capsys):
    config = runs.settings()
    config.data.inputs, config.objective.alpha = ("s1", "s2"), 0.0
    config.data.value_range = (0.0, 6000.0)
    runs.save_run(tmp_path, config, (32, 32, 5), shapes={"s1": (32, 32, 2), "s2": (32, 32, 3)})
    inference.load(tmp_path).features({"s2": images(rng)})
    said = capsys.readouterr().err
    assert "there is no s1" in said
    assert "results.json" not in said
