"""Measures of a pre-trained encoder: elevation error, contrastive accuracy, scores of probes.

What is over all chips is summed up batch by batch, in float64, so that the chips need not be held
at once.
"""

import numpy as np

from elev_ssl_jax import metrics
from elev_ssl_jax.reporting import evidence

Arrays = dict[str, np.ndarray]


class ElevationErrors:
    """Errors in metres of predicted elevation, over the cells that have one.

    Elevation is a chip's level, its mean over known cells, and its relief, what is left without
    it. The squares of the errors of the two, each level weighed by its known cells, add up to the
    square of the error of the elevation.
    """

    def __init__(self) -> None:
        self._cells = self._squares = self._level_squares = self._relief_squares = 0.0
        self._true = self._true_squares = 0.0  # of cells
        self._true_levels = self._true_level_squares = 0.0  # of levels, by cells
        self._true_relief_squares = self._said_relief_squares = self._products = 0.0

    def add(self, predicted: np.ndarray, elevation: np.ndarray) -> None:
        """Takes in chips: predicted and true elevation [B, h, w] in metres, NaN where missing."""
        known = ~np.isnan(elevation)
        true = np.where(known, elevation, 0).astype(np.float64)
        said = np.where(known, predicted, 0).astype(np.float64)
        levels, reliefs = zip(*(level_and_relief(f, known) for f in (said, true)), strict=True)
        said_relief, relief = (np.where(known, field, 0) for field in reliefs)
        cells = known.sum(axis=(1, 2))
        self._cells += cells.sum()
        self._squares += np.sum((said - true) ** 2)
        self._level_squares += np.sum(cells * (levels[0] - levels[1]) ** 2)
        self._relief_squares += np.sum((said_relief - relief) ** 2)
        self._true += true.sum()
        self._true_squares += np.sum(true**2)
        self._true_levels += np.sum(cells * levels[1])
        self._true_level_squares += np.sum(cells * levels[1] ** 2)
        self._true_relief_squares += np.sum(relief**2)
        self._said_relief_squares += np.sum(said_relief**2)
        self._products += np.sum(said_relief * relief)

    def scores(self, train_mean: float) -> dict[str, float]:
        """By name, each error beside that of saying one number everywhere, or no relief.

        Args:
          train_mean: Mean elevation in metres of the training chips.
        """
        n = max(self._cells, 1)
        own_mean = self._true / n

        def of_constant(value, total, squares):
            return float(np.sqrt(max(squares / n - 2 * value * total / n + value**2, 0)))

        scores = {}
        for name, error, total, squares in (
            ("", self._squares, self._true, self._true_squares),
            ("level_", self._level_squares, self._true_levels, self._true_level_squares),
        ):
            scores[f"elevation_{name}rmse_m"] = float(np.sqrt(error / n))
            for mean, value in (("train", train_mean), ("heldout", own_mean)):
                key = f"elevation_{name}rmse_of_{mean}_mean_m"
                scores[key] = of_constant(value, total, squares)
        size = np.sqrt(self._said_relief_squares * self._true_relief_squares)
        correlation = self._products / size if size > 0 else 0.0
        return scores | {
            "elevation_relief_rmse_m": float(np.sqrt(self._relief_squares / n)),
            "elevation_relief_rmse_of_none_m": float(np.sqrt(self._true_relief_squares / n)),
            "elevation_relief_correlation": float(correlation),
        }


def level_and_relief(field: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What of an elevation is how high a chip lies, and what is the shape of its ground.

    Args:
      field: [N, h, w].
      known: bool [N, h, w], the cells to judge by.

    Returns:
      The level, each chip's mean over its known cells, float64 [N] (0 if it has none), and the
      relief, what is left without it, float64 [N, h, w].
    """
    field = np.asarray(field, np.float64)
    count = np.maximum(known.sum(axis=(1, 2)), 1)
    level = np.where(known, field, 0).sum(axis=(1, 2)) / count
    return level, field - level[:, None, None]


class FeatureSpread:
    """How far unit-length features differ between chips: 0 is collapse, 1 uncorrelated."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, features: np.ndarray) -> None:
        """Takes in features float [B, C]."""
        norms = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
        unit = features / np.maximum(norms, 1e-12)
        self._count += len(unit)
        self._sum += unit.sum(axis=0)
        self._squares += (unit**2).sum(axis=0)

    def score(self) -> float:
        """The standard deviation over chips of each feature, averaged, times sqrt(C)."""
        mean = np.asarray(self._sum) / self._count
        variance = np.maximum(np.asarray(self._squares) / self._count - mean**2, 0)
        return float(np.sqrt(variance).mean() * np.sqrt(variance.size))


def top1(embeddings: np.ndarray) -> float:
    """Share of the views [N, 2, D] whose nearest other view (by cosine) is their partner."""
    z = embeddings.reshape(-1, embeddings.shape[-1]).astype(np.float32)
    z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    similarity = z @ z.T
    np.fill_diagonal(similarity, -np.inf)
    return float(np.mean(similarity.argmax(axis=1) == np.arange(len(z)) ^ 1))


def chip_labels(chips: Arrays) -> np.ndarray:
    """A class for each chip [N]: its label, or its mask's commonest class; -1 for unlabelled.

    Of classes that are as common the lowest counts.
    """
    if "label" in chips:
        return chips["label"].astype(np.int64)
    return metrics.commonest_class(chips["mask"])


def probe_scores(
    labels: np.ndarray, predictions: np.ndarray, blocks: np.ndarray | None = None
) -> dict[str, float]:
    """Accuracy and macro F1 of classes [N] against labels [N], -1 unlabelled; {} without any.

    With the block of ground that each lies in, str [N], and enough of these, `accuracy_low` and so
    on: the ends of 95 % intervals over blocks that are drawn again, see `evidence.resample`.
    """
    known = labels >= 0
    predictions, labels = predictions[known], labels[known]
    if not len(labels):
        return {}
    classes = 1 + int(max(labels.max(), predictions.max()))
    matrix = metrics.confusion_matrix(labels, predictions, classes)
    scores = {"accuracy": metrics.accuracy(matrix), "macro_f1": metrics.macro_f1(matrix)}
    if blocks is None:
        return scores
    matrices, _ = metrics.confusion_matrices(labels, predictions, classes, blocks[known])
    ground = evidence.resample(matrices[None, None, None], tuple(scores))
    if ground.scores is None:
        return scores
    for name, values in zip(tuple(scores), ground.scores[0, 0, 0], strict=True):
        ends, _ = evidence.block_interval(values, ground.blocks)
        scores |= {f"{name}_low": ends[0], f"{name}_high": ends[1]}
    return scores
