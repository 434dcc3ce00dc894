"""Classification metrics, all from one confusion matrix."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

PER_CLASS = ("precision", "recall", "f1", "iou")


def confusion_matrix(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int
) -> NDArray[np.int64]:
    """Counts [num_classes, num_classes], int64: row the true class, column the predicted one.

    Matrices of several batches add up. Labels outside 0..num_classes-1 (such as 255, unlabelled)
    are not counted.

    Args:
      labels: Integers of any shape.
      predictions: Integers of the same shape, in 0..num_classes-1.
      num_classes: How many classes there are.
    """
    true = np.asarray(labels).astype(np.int64).ravel()
    counted = (true >= 0) & (true < num_classes)
    cells = true[counted] * num_classes + np.asarray(predictions).ravel()[counted]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy(matrix: ArrayLike) -> float:
    """Share of predictions that are right; NaN for an empty matrix."""
    matrix = np.asarray(matrix, np.float64)
    total = matrix.sum()
    return float(np.trace(matrix) / total) if total else math.nan


def macro_f1(matrix: ArrayLike) -> float:
    """F1 averaged over the classes that occur among the labels or the predictions."""
    return _mean(per_class(matrix)["f1"])


def mean_iou(matrix: ArrayLike) -> float:
    """Intersection over union, averaged over classes that occur as label or prediction."""
    return _mean(per_class(matrix)["iou"])


def per_class(matrix: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Precision, recall, F1 and intersection over union of each class [num_classes].

    NaN for a class that is neither label nor prediction; precision is 0 for one that is never
    predicted, recall for one that is never the label, as in scikit-learn.
    """
    counts = np.asarray(matrix, np.float64)  # products of counts leave the integers
    correct, labelled, predicted = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)

    def ratio(numerator, denominator):
        return np.where(labelled + predicted > 0, numerator / np.maximum(denominator, 1), math.nan)

    return {
        "precision": ratio(correct, predicted),
        "recall": ratio(correct, labelled),
        "f1": ratio(2 * correct, labelled + predicted),
        "iou": ratio(correct, labelled + predicted - correct),
    }


def _mean(values):
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def summary(matrix: NDArray[np.int64]) -> dict[str, Any]:
    """All metrics of a confusion matrix, and the matrix, as plain numbers; None where undefined."""
    return {
        "accuracy": accuracy(matrix),
        "macro_f1": macro_f1(matrix),
        "mean_iou": mean_iou(matrix),
        **{
            name: [None if math.isnan(v) else v for v in values.tolist()]
            for name, values in per_class(matrix).items()
        },
        "confusion_matrix": np.asarray(matrix).tolist(),
    }
