"""Classification metrics, all from one confusion matrix."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


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
    correct, labelled, predicted = _per_class(matrix)
    return _mean_over_occurring(2 * correct, labelled + predicted)


def mean_iou(matrix: jax.Array) -> jax.Array:
    """Intersection over union, averaged over classes that occur as label or prediction."""
    correct, labelled, predicted = _per_class(matrix)
    return _mean_over_occurring(correct, labelled + predicted - correct)


def _per_class(matrix):
    return jnp.diagonal(matrix), jnp.sum(matrix, axis=1), jnp.sum(matrix, axis=0)


def _mean_over_occurring(numerator, denominator):
    occurs = denominator > 0
    ratio = jnp.where(occurs, numerator / jnp.maximum(denominator, 1), 0)
    return jnp.sum(ratio) / jnp.sum(occurs)
