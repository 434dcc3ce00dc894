import numpy as np
import pytest

from elev_ssl_jax.pretraining import measures


def errors(predicted, true, parts=1):
    """Of fields [N, h, w], taken in so many parts."""
    result = measures.ElevationErrors()
    for said, truth in zip(
        np.array_split(predicted, parts), np.array_split(true, parts), strict=True
    ):
        result.add(said, truth)
    return result


def test_a_partner_is_sought_among_all_views(rng):
    pairs = np.eye(4, dtype=np.float32)[:, None].repeat(2, 1)
    assert measures.top1(pairs) == 1
    pairs[1] = [[0, 1, 0, 0], [1, 0.1, 0, 0]]  # its second view looks like chip 0
    assert measures.top1(pairs) == 7 / 8
    chance = measures.top1(rng.normal(size=(300, 2, 8)))
    assert chance < 0.03


def test_level_and_relief_agree_with_a_loop_over_the_known_cells(rng):
    true = rng.normal(500, 300, (9, 5, 4)).astype(np.float32)
    predicted = rng.normal(400, 200, true.shape).astype(np.float32)
    true[rng.random(true.shape) < 0.3] = np.nan
    true[2], true[5, :4] = np.nan, np.nan  # a chip without, and one with few
    error, level_error, relief_error, none, products, squares = [], [], [], [], [], []
    truths, levels = [], []
    for truth, said in zip(true.astype(float), predicted.astype(float), strict=True):
        cells = [(r, c) for r, c in np.ndindex(truth.shape) if not np.isnan(truth[r, c])]
        truth_mean = sum(truth[cell] for cell in cells) / max(len(cells), 1)
        said_mean = sum(said[cell] for cell in cells) / max(len(cells), 1)
        for cell in cells:
            a, b = said[cell] - said_mean, truth[cell] - truth_mean
            error.append((said[cell] - truth[cell]) ** 2)
            level_error.append((said_mean - truth_mean) ** 2)
            relief_error.append((a - b) ** 2)
            none.append(b**2)
            products.append(a * b)
            squares.append(a**2)
            truths.append(truth[cell])
            levels.append(truth_mean)

    def root(values):
        return pytest.approx(np.sqrt(np.mean(values)))

    for parts in (1, 4):
        scores = errors(predicted, true, parts).scores(450.0)
        mean = np.mean(truths)
        assert scores["elevation_rmse_m"] == root(error)
        assert scores["elevation_rmse_of_train_mean_m"] == root((np.array(truths) - 450) ** 2)
        assert scores["elevation_rmse_of_heldout_mean_m"] == root((np.array(truths) - mean) ** 2)
        assert scores["elevation_level_rmse_m"] == root(level_error)
        train_error = (np.array(levels) - 450) ** 2
        assert scores["elevation_level_rmse_of_train_mean_m"] == root(train_error)
        own_error = (np.array(levels) - mean) ** 2
        assert scores["elevation_level_rmse_of_heldout_mean_m"] == root(own_error)
        assert scores["elevation_relief_rmse_m"] == root(relief_error)
        assert scores["elevation_relief_rmse_of_none_m"] == root(none)
        expected = np.sum(products) / np.sqrt(np.sum(squares) * np.sum(none))
        assert scores["elevation_relief_correlation"] == pytest.approx(expected)
        parts_of_it = [scores[f"elevation_{part}_rmse_m"] for part in ("level", "relief")]
        assert scores["elevation_rmse_m"] == pytest.approx(np.hypot(*parts_of_it))


def test_a_flat_prediction_has_no_correlation_and_the_truth_correlates_fully(rng):
    true = rng.normal(1000, 50, (4, 6, 6)).astype(np.float32)
    flat = errors(np.full_like(true, 7), true).scores(0.0)
    assert flat["elevation_relief_correlation"] == 0
    assert flat["elevation_relief_rmse_m"] == flat["elevation_relief_rmse_of_none_m"]
    tilted = 3 * true + rng.normal(size=(4, 1, 1))  # of each chip's own level
    assert errors(tilted, true).scores(0.0)["elevation_relief_correlation"] == pytest.approx(1)


def test_feature_spread_tells_collapse_from_spread_however_it_is_summed(rng):
    def spread(features, parts=1):
        result = measures.FeatureSpread()
        for part in np.array_split(features, parts):
            result.add(part)
        return result.score()

    assert spread(np.ones((50, 8), np.float32)) == pytest.approx(0, abs=1e-6)
    features = rng.normal(size=(2000, 8))
    assert spread(features) == pytest.approx(1, abs=0.05)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert spread(features, 7) == pytest.approx(unit.std(axis=0).mean() * np.sqrt(8))


def test_chip_labels_come_from_labels_or_masks():
    mask = np.array([[[1, 1], [1, 0]], [[0, 0], [1, 255]], [[255, 255], [255, 255]]], np.uint8)
    np.testing.assert_array_equal(measures.chip_labels({"mask": mask}), [1, 0, -1])
    several = np.array([[[2, 2], [1, 0]], [[4, 255], [3, 4]], [[0, 2], [2, 0]]], np.uint8)
    np.testing.assert_array_equal(measures.chip_labels({"mask": several}), [2, 4, 0])
    labels = np.array([1, -1, 0])
    np.testing.assert_array_equal(measures.chip_labels({"mask": mask, "label": labels}), labels)


def test_probe_scores_are_of_labelled_chips_with_intervals_over_blocks(rng):
    labels = rng.integers(0, 3, 600)
    said = np.where(rng.random(600) < 0.8, labels, (labels + 1) % 3)
    labels[::50] = -1
    blocks = np.array([f"b{i // 30}" for i in range(600)])
    known = labels >= 0
    scores = measures.probe_scores(labels, said, blocks)
    assert scores["accuracy"] == pytest.approx(np.mean(said[known] == labels[known]))
    assert scores["accuracy_low"] < scores["accuracy"] < scores["accuracy_high"]
    # Of independent chips, about as wide as a binomial's.
    width = scores["accuracy_high"] - scores["accuracy_low"]
    assert width == pytest.approx(2 * 2.09 * np.sqrt(0.8 * 0.2 / known.sum()), rel=0.5)
    assert scores["macro_f1_low"] < scores["macro_f1"] < scores["macro_f1_high"]
    # Four blocks say next to nothing about their spread.
    few = measures.probe_scores(labels, said, np.array([f"b{i % 4}" for i in range(600)]))
    assert few == {name: scores[name] for name in ("accuracy", "macro_f1")}
    assert measures.probe_scores(np.full(600, -1), labels) == {}
