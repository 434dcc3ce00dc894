"""Classification metrics, all from one confusion matrix."""

import math
from collections.abc import Sequence
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


def confusion_matrices(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int, groups: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Counts [G, num_classes, num_classes], a matrix for each group, and the groups' names [G].

    Args:
      labels: Integers [N, ...].
      predictions: Integers of the same shape.
      num_classes: How many classes there are.
      groups: The group of each of the N.
    """
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    matrices = [
        confusion_matrix(labels[group == i], predictions[group == i], num_classes)
        for i in range(len(names))
    ]
    return np.stack(matrices), names


def accuracy(matrix: ArrayLike) -> float:
    """Share of predictions that are right; NaN for an empty matrix."""
    return float(scores(matrix)["accuracy"])


def macro_f1(matrix: ArrayLike) -> float:
    """F1 averaged over the classes that occur among the labels or the predictions."""
    return float(scores(matrix)["macro_f1"])


def mean_iou(matrix: ArrayLike) -> float:
    """Intersection over union, averaged over classes that occur as label or prediction."""
    return float(scores(matrix)["mean_iou"])


def scores(matrices: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Accuracy, macro F1 and mean IoU of each matrix of [..., K, K]: [...] each."""
    counts = np.asarray(matrices, np.float64)
    total, classes = counts.sum(axis=(-2, -1)), per_class(counts)
    correct = np.trace(counts, axis1=-2, axis2=-1)
    return {
        "accuracy": np.where(total > 0, correct / np.maximum(total, 1), math.nan),
        "macro_f1": _mean(classes["f1"]),
        "mean_iou": _mean(classes["iou"]),
    }


def per_class(matrices: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Precision, recall, F1 and intersection over union of each class: [..., K] of [..., K, K].

    NaN for a class that is neither label nor prediction; precision is 0 for one that is never
    predicted, recall for one that is never the label, as in scikit-learn.
    """
    counts = np.asarray(matrices, np.float64)  # products of counts leave the integers
    correct = np.diagonal(counts, axis1=-2, axis2=-1)
    labelled, predicted = counts.sum(axis=-1), counts.sum(axis=-2)

    def ratio(numerator, denominator):
        return np.where(labelled + predicted > 0, numerator / np.maximum(denominator, 1), math.nan)

    return {
        "precision": ratio(correct, predicted),
        "recall": ratio(correct, labelled),
        "f1": ratio(2 * correct, labelled + predicted),
        "iou": ratio(correct, labelled + predicted - correct),
    }


def _mean(values):
    """Over the last axis, without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def summary(matrix: NDArray[np.int64], classes: Sequence[str] = ()) -> dict[str, Any]:
    """All metrics of a confusion matrix, and the matrix, as plain numbers; None where undefined.

    With the names of its classes, if they are given.
    """
    return {
        **({"classes": list(classes)} if classes else {}),
        "accuracy": accuracy(matrix),
        "macro_f1": macro_f1(matrix),
        "mean_iou": mean_iou(matrix),
        **{
            name: [None if math.isnan(v) else v for v in values.tolist()]
            for name, values in per_class(matrix).items()
        },
        "confusion_matrix": np.asarray(matrix).tolist(),
    }
