import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from elev_ssl_jax import metrics


@pytest.mark.parametrize("present", [(0, 1, 2, 3), (0, 2), (3,)])
def test_metrics_equal_sklearn_also_with_absent_classes(rng, present):
    labels, predictions = rng.choice(present, (2, 300))
    matrix = metrics.confusion_matrix(labels, predictions, 4)
    np.testing.assert_array_equal(
        matrix, sklearn_metrics.confusion_matrix(labels, predictions, labels=range(4))
    )
    for ours, theirs in (
        (metrics.accuracy, sklearn_metrics.accuracy_score(labels, predictions)),
        (metrics.macro_f1, sklearn_metrics.f1_score(labels, predictions, average="macro")),
        (metrics.mean_iou, sklearn_metrics.jaccard_score(labels, predictions, average="macro")),
    ):
        np.testing.assert_allclose(ours(matrix), theirs, rtol=1e-6)


def test_unlabelled_pixels_do_not_count():
    labels = np.array([[0, 255], [1, -1]])
    matrix = metrics.confusion_matrix(labels, np.array([[0, 1], [0, 0]]), 2)
    np.testing.assert_array_equal(matrix, [[1, 0], [1, 0]])


def test_counts_are_right_at_a_million_million_pixels():
    few = np.array([[6, 2], [1, 3]])
    many = few * 10**11
    for metric in (metrics.accuracy, metrics.macro_f1, metrics.mean_iou):
        np.testing.assert_allclose(metric(many), metric(few), rtol=1e-12)
    assert metrics.summary(many)["confusion_matrix"] == many.tolist()
    # Counted, too: batches add up beyond what 32 bits hold.
    batch = metrics.confusion_matrix(np.zeros(10, np.uint8), np.zeros(10, np.uint8), 2)
    assert (batch * 3 * 10**8)[0, 0] == 3 * 10**9


def test_many_matrices_at_once_and_one_a_group(rng):
    labels, predictions = rng.integers(0, 3, (2, 40, 5, 5))
    groups = rng.choice(["a", "b", "cc"], 40)
    matrices, names = metrics.confusion_matrices(labels, predictions, 4, groups)
    np.testing.assert_array_equal(
        matrices.sum(axis=0), metrics.confusion_matrix(labels, predictions, 4)
    )
    scores = metrics.scores(np.stack([matrices, 2 * matrices]))
    for i, name in enumerate(names):
        alone = metrics.confusion_matrix(labels[groups == name], predictions[groups == name], 4)
        np.testing.assert_array_equal(matrices[i], alone)
        for key, value in scores.items():
            np.testing.assert_allclose(value[:, i], metrics.summary(alone)[key])


def test_a_summary_is_json_as_others_read_it():
    for nothing in (np.zeros((3, 3), int), np.zeros((2, 2, 2), int)):
        found = metrics.summary(nothing)
        assert found["macro_f1"] is found["accuracy"] is None
        json.dumps(found, allow_nan=False)
