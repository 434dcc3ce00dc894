"""How right classes are, all from one confusion matrix, and how far off a quantity is."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elev_ssl_jax.files import UNLABELLED

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
    labels: ArrayLike,
    predictions: ArrayLike,
    num_classes: int,
    groups: ArrayLike,
    *,
    presence: bool = False,
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Counts [G, num_classes, num_classes], a matrix for each group, and the groups' names [G].

    Args:
      labels: Integers [N, ...].
      predictions: Integers of the same shape.
      num_classes: How many classes there are.
      groups: The group of each of the N.
      presence: Whether both say which classes are there, [N, K]: the counts are then those of
        `presence_matrices`, [G, K, 2, 2].
    """
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    rows = [group == i for i in range(len(names))]
    if presence:
        return np.stack([presence_matrices(labels[r], predictions[r]) for r in rows]), names
    matrices = [confusion_matrix(labels[r], predictions[r], num_classes) for r in rows]
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
    """Accuracy, macro F1, mean IoU and mean recall of each matrix of [..., K, K]: [...] each.

    Mean recall, over the classes that occur among the labels, is also called average accuracy.
    """
    counts = np.asarray(matrices, np.float64)
    total, classes = counts.sum(axis=(-2, -1)), per_class(counts)
    correct = np.trace(counts, axis1=-2, axis2=-1)
    labelled = counts.sum(axis=-1) > 0
    return {
        "accuracy": np.where(total > 0, correct / np.maximum(total, 1), math.nan),
        "macro_f1": _mean(classes["f1"]),
        "mean_iou": _mean(classes["iou"]),
        "mean_recall": _mean(np.where(labelled, classes["recall"], math.nan)),
    }


def commonest_class(targets: ArrayLike) -> NDArray[np.int64]:
    """A class for each of [N]: of masks [N, H, W] the commonest, of equals the lowest; -1 for none.

    Args:
      targets: Classes [N] or [N, H, W]; those below 0, and 255, are unlabelled.
    """
    array = np.asarray(targets)
    array = array.reshape(len(array), -1)
    # One class at a time, since a count for each chip and class may not fit.
    found = np.full(len(array), -1, np.int64)
    most = np.zeros(len(array), np.int64)
    for value in np.unique(array):
        if 0 <= value < UNLABELLED:
            count = (array == value).sum(axis=1)
            found[count > most] = value
            most = np.maximum(most, count)
    return found


def presence_matrices(labels: ArrayLike, predictions: ArrayLike) -> NDArray[np.int64]:
    """Counts [K, 2, 2] of whether each class is there: row the truth, column what was predicted.

    Args:
      labels: Zeros and ones [N, K].
      predictions: Likewise.
    """
    true, said = (np.asarray(array).astype(np.int64) for array in (labels, predictions))
    return np.stack([confusion_matrix(t, s, 2) for t, s in zip(true.T, said.T, strict=True)])


def presence_scores(matrices: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Macro F1, micro F1 and accuracy of each stack of [..., K, 2, 2]: [...] each.

    A class that is never there and never predicted has no F1; micro F1 is that of all classes'
    counts together, and accuracy is over chips and classes.
    """
    counts = np.asarray(matrices, np.float64)
    together = counts.sum(axis=-3)
    correct = np.trace(together, axis1=-2, axis2=-1)
    total = together.sum(axis=(-2, -1))
    return {
        "macro_f1": _mean(per_class(counts)["f1"][..., 1]),
        "micro_f1": per_class(together)["f1"][..., 1],
        "accuracy": np.where(total > 0, correct / np.maximum(total, 1), math.nan),
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


def regression_scores(true: ArrayLike, told: ArrayLike) -> dict[str, float]:
    """How far a quantity that is told is from the true one, over all of it that is known.

    Args:
      true: Of any shape and unit, NaN where unknown; some is known.
      told: Of the same.

    Returns:
      In that unit, `rmse`, `mae` and `bias`, which is above zero where too much is told; and `r2`,
      one minus the squared error over that of the true mean, NaN if the truth is a single value.
    """
    right = np.asarray(true, np.float64)
    known = ~np.isnan(right)
    error = (np.asarray(told, np.float64) - right)[known]
    variance = float(right[known].var())
    squared = float(np.mean(error**2))
    return {
        "rmse": math.sqrt(squared),
        "mae": float(np.abs(error).mean()),
        "bias": float(error.mean()),
        "r2": 1 - squared / variance if variance else math.nan,
    }


def _mean(values):
    """Over the last axis, without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _number(value):
    """As JSON has it, which knows no NaN."""
    return None if math.isnan(value) else float(value)


def summary(matrix: NDArray[np.int64], classes: Sequence[str] = ()) -> dict[str, Any]:
    """All metrics of a confusion matrix, and the matrix, as plain numbers; None where undefined.

    With the names of its classes, if they are given. Of several classes' matrices [K, 2, 2], as
    `presence_matrices` has them, it is that of their presence.
    """
    presence = np.ndim(matrix) == 3
    found = presence_scores(matrix) if presence else scores(matrix)
    each = per_class(matrix)
    if presence:
        each = {name: values[..., 1] for name, values in each.items()}
    return {
        **({"classes": list(classes)} if classes else {}),
        **{name: _number(value) for name, value in found.items()},
        **{name: [_number(v) for v in values] for name, values in each.items()},
        "confusion_matrix": np.asarray(matrix).tolist(),
    }
