import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elev_ssl_jax import evaluate, objective, sharding


def test_predictions_do_not_depend_on_how_the_last_batch_is_filled(tiny, chips):
    model = objective.make_model(tiny, (11, 11))
    variables = model.init(jax.random.key(0), jnp.zeros((2, 3, 32, 32, 3)), train=True)
    predict = evaluate.make_predict(tiny, model, sharding.make_mesh())
    whole = predict(variables, chips)
    assert whole.features.shape == (20, 64)
    assert whole.elevation.shape == (20, 11, 11)
    part = predict(variables, {k: v[16:] for k, v in chips.items()})
    np.testing.assert_allclose(part.features, whole.features[16:], atol=1e-5)
    np.testing.assert_allclose(part.elevation, whole.elevation[16:], rtol=1e-3, atol=1e-2)


def test_nothing_depends_on_the_size_of_a_batch(tiny, chips):
    outputs = []
    for size in (8, 24):
        tiny.batch_size = size
        model = objective.make_model(tiny, (11, 11))
        variables = model.init(jax.random.key(0), jnp.zeros((2, 3, 32, 32, 3)), train=True)
        outputs.append(evaluate.make_predict(tiny, model, sharding.make_mesh())(variables, chips))
    assert outputs[0].embeddings.shape == (20, 2, 8)
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_without_a_contrastive_branch_no_views_are_made_for_it(tiny, chips):
    tiny.objective.alpha = 1.0
    keys = jax.random.split(jax.random.key(0), 4)
    few = [chips[name][:4] for name in ("image", "elevation")]
    views = objective.make_views(tiny, keys, *few, train=False)
    assert views.images.shape == (4, 1, 32, 32, 3)


def test_a_partner_is_sought_among_all_views(rng):
    pairs = np.eye(4, dtype=np.float32)[:, None].repeat(2, 1)
    assert evaluate.top1(pairs) == 1
    pairs[1] = [[0, 1, 0, 0], [1, 0.1, 0, 0]]  # its second view looks like chip 0
    assert evaluate.top1(pairs) == 7 / 8
    chance = evaluate.top1(rng.normal(size=(300, 2, 8)))
    assert chance < 0.03


def test_rmse_leaves_out_missing_cells():
    true = np.array([[1.0, np.nan], [3.0, 5.0]], np.float32)
    assert evaluate.rmse(3.0, true) == pytest.approx(np.sqrt((4 + 0 + 4) / 3))


def test_level_and_relief_agree_with_a_loop_over_the_known_cells(rng):
    true = rng.normal(500, 300, (9, 5, 4)).astype(np.float32)
    predicted = rng.normal(400, 200, true.shape).astype(np.float32)
    true[rng.random(true.shape) < 0.3] = np.nan
    true[2], true[5, :4] = np.nan, np.nan  # a chip without, and one with few
    level_error, relief_error, none, products, squares = [], [], [], [], []
    for truth, said in zip(true.astype(float), predicted.astype(float), strict=True):
        cells = [(r, c) for r, c in np.ndindex(truth.shape) if not np.isnan(truth[r, c])]
        truth_mean = sum(truth[cell] for cell in cells) / max(len(cells), 1)
        said_mean = sum(said[cell] for cell in cells) / max(len(cells), 1)
        for cell in cells:
            a, b = said[cell] - said_mean, truth[cell] - truth_mean
            level_error.append((said_mean - truth_mean) ** 2)
            relief_error.append((a - b) ** 2)
            none.append(b**2)
            products.append(a * b)
            squares.append(a**2)
    level, relief = evaluate.level_rmse(predicted, true), evaluate.relief_rmse(predicted, true)
    assert level == pytest.approx(np.sqrt(np.mean(level_error)))
    assert relief == pytest.approx(np.sqrt(np.mean(relief_error)))
    assert evaluate.relief_rmse(0.0, true) == pytest.approx(np.sqrt(np.mean(none)))
    assert evaluate.relief_rmse(1234.5, true) == pytest.approx(np.sqrt(np.mean(none)))
    expected = np.sum(products) / np.sqrt(np.sum(squares) * np.sum(none))
    assert evaluate.relief_correlation(predicted, true) == pytest.approx(expected)
    assert evaluate.rmse(predicted, true) == pytest.approx(np.hypot(level, relief))
    assert evaluate.rmse(450.0, true) == pytest.approx(
        np.hypot(evaluate.level_rmse(450.0, true), evaluate.relief_rmse(450.0, true))
    )


def test_a_flat_prediction_has_no_correlation_and_the_truth_correlates_fully(rng):
    true = rng.normal(1000, 50, (4, 6, 6)).astype(np.float32)
    assert evaluate.relief_correlation(np.full_like(true, 7), true) == 0
    tilted = 3 * true + rng.normal(size=(4, 1, 1))  # of each chip's own level
    assert evaluate.relief_correlation(tilted, true) == pytest.approx(1)


def test_feature_std_tells_collapse_from_spread(rng):
    assert evaluate.feature_std(np.ones((50, 8), np.float32)) == pytest.approx(0, abs=1e-6)
    spread = evaluate.feature_std(rng.normal(size=(2000, 8)))
    assert spread == pytest.approx(1, abs=0.05)


def test_chip_labels_come_from_labels_or_masks():
    mask = np.array([[[1, 1], [1, 0]], [[0, 0], [1, 255]], [[255, 255], [255, 255]]], np.uint8)
    np.testing.assert_array_equal(evaluate.chip_labels({"mask": mask}), [1, 0, -1])
    several = np.array([[[2, 2], [1, 0]], [[4, 255], [3, 4]], [[0, 2], [2, 0]]], np.uint8)
    np.testing.assert_array_equal(evaluate.chip_labels({"mask": several}), [2, 4, 0])
    labels = np.array([1, -1, 0])
    np.testing.assert_array_equal(evaluate.chip_labels({"mask": mask, "label": labels}), labels)


def test_linear_probe_learns_what_is_linear_and_needs_two_classes(rng):
    features = rng.normal(size=(400, 6))
    labels = (features[:, 0] > 0).astype(int)
    scores = evaluate.linear_probe(features[:200], labels[:200], features[200:], labels[200:])
    assert scores["accuracy"] > 0.9
    assert scores["macro_f1"] > 0.9
    assert evaluate.linear_probe(features, np.zeros(400, int), features, labels) is None
    assert evaluate.linear_probe(features, labels, features, np.full(400, -1)) is None
