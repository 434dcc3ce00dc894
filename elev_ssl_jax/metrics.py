"""Classification metrics, all from one confusion matrix."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

PER_CLASS = ("precision", "recall", "f1", "iou")


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> jax.Array:
    """Counts [num_classes, num_classes], int32: row the true class, column the predicted one.

    Matrices of several batches add up. Labels outside 0..num_classes-1 (such as 255, unlabelled)
    are not counted.

    Args:
      labels: Integers of any shape.
      predictions: Integers of the same shape, in 0..num_classes-1.
      num_classes: How many classes there are.
    """
    labels = jnp.ravel(jnp.asarray(labels)).astype(jnp.int32)
    counted = (labels >= 0) & (labels < num_classes)
    cell = labels * num_classes + jnp.ravel(jnp.asarray(predictions)).astype(jnp.int32)
    # Uncounted pixels go to one cell past the end.
    cell = jnp.where(counted, cell, num_classes**2)
    counts = jnp.bincount(cell, length=num_classes**2 + 1)
    return counts[:-1].reshape(num_classes, num_classes).astype(jnp.int32)


def accuracy(matrix: jax.Array) -> jax.Array:
    """Share of predictions that are right; NaN for an empty matrix."""
    return jnp.trace(matrix) / jnp.sum(matrix)


def macro_f1(matrix: jax.Array) -> jax.Array:
    """F1 averaged over the classes that occur among the labels or the predictions."""
    return jnp.nanmean(per_class(matrix)["f1"])


def mean_iou(matrix: jax.Array) -> jax.Array:
    """Intersection over union, averaged over classes that occur as label or prediction."""
    return jnp.nanmean(per_class(matrix)["iou"])


def per_class(matrix: jax.Array) -> dict[str, jax.Array]:
    """Precision, recall, F1 and intersection over union of each class [num_classes].

    NaN for a class that is neither label nor prediction; precision is 0 for one that is never
    predicted, recall for one that is never the label, as in scikit-learn.
    """
    correct, labelled = jnp.diagonal(matrix), jnp.sum(matrix, axis=1)
    predicted = jnp.sum(matrix, axis=0)

    def ratio(numerator, denominator):
        return jnp.where(labelled + predicted > 0, numerator / jnp.maximum(denominator, 1), jnp.nan)

    return {
        "precision": ratio(correct, predicted),
        "recall": ratio(correct, labelled),
        "f1": ratio(2 * correct, labelled + predicted),
        "iou": ratio(correct, labelled + predicted - correct),
    }


def summary(matrix: np.ndarray) -> dict[str, Any]:
    """All metrics of a confusion matrix, and the matrix, as plain numbers; None where undefined."""
    counts = jnp.asarray(matrix)
    return {
        "accuracy": float(accuracy(counts)),
        "macro_f1": float(macro_f1(counts)),
        "mean_iou": float(mean_iou(counts)),
        **{
            name: [None if math.isnan(v) else v for v in values.tolist()]
            for name, values in per_class(counts).items()
        },
        "confusion_matrix": matrix.tolist(),
    }
