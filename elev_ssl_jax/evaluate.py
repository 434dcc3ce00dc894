"""What a pre-trained encoder knows: elevation error, contrastive accuracy, linear probe."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from elev_ssl_jax import augment, metrics, objective, sharding

Arrays = dict[str, np.ndarray]
UNLABELLED = 255
TOP1_POOL = 2048  # chips, the first of the held-out ones, among whose views a partner is sought


class Outputs(NamedTuple):
    """A model's outputs on a set of chips, on the host."""

    features: np.ndarray  # float32 [N, C], of the unaugmented images
    elevation: np.ndarray | None  # float32 [N, h, w], metres
    embeddings: np.ndarray | None  # float32 [N, 2, D], of the first TOP1_POOL chips


def make_predict(config: Any, model: Any, mesh: Mesh) -> Callable[[Any, Arrays], Outputs]:
    """A function of the model's variables and chips, BatchNorm in inference mode."""
    batch_size = config.microbatch_size or config.batch_size

    # On every device, so that every process has all of them.
    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def step(variables, images, elevation, first):
        # A chip's views depend on its place among the chips, not on how they are batched.
        keys = augment.sample_keys(config.seed, 0, batch_size, first)
        views = objective.make_views(config, keys, images, elevation, train=False)
        outputs = model.apply(variables, views.images, train=False)
        result = {"features": outputs["features"][:, -1]}
        if "elevation" in outputs:
            result["elevation"] = outputs["elevation"] * config.data.elevation_scale
        if "embeddings" in outputs:
            result["embeddings"] = outputs["embeddings"]
        return result

    def predict(variables, chips):
        parts = []
        for start in range(0, len(chips["image"]), batch_size):
            batch = [chips[name][start : start + batch_size] for name in ("image", "elevation")]
            count = len(batch[0])
            # The last batch is filled up, and cut to its own chips afterwards.
            padded = [np.resize(array, (batch_size, *array.shape[1:])) for array in batch]
            arrays = sharding.place(padded, sharding.split(mesh))
            outputs = step(variables, *arrays, start)
            if start >= TOP1_POOL:
                outputs.pop("embeddings", None)
            parts.append({name: array[:count] for name, array in jax.device_get(outputs).items()})

        def whole(name):
            arrays = [part[name] for part in parts if name in part]
            return np.concatenate(arrays) if arrays else None

        embeddings = whole("embeddings")
        return Outputs(
            whole("features"),
            whole("elevation"),
            None if embeddings is None else embeddings[:TOP1_POOL],
        )

    return predict


def top1(embeddings: np.ndarray) -> float:
    """Share of the views [N, 2, D] whose nearest other view (by cosine) is their partner."""
    z = embeddings.reshape(-1, embeddings.shape[-1]).astype(np.float32)
    z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    similarity = z @ z.T
    np.fill_diagonal(similarity, -np.inf)
    return float(np.mean(similarity.argmax(axis=1) == np.arange(len(z)) ^ 1))


def rmse(predicted: np.ndarray | float, elevation: np.ndarray) -> float:
    """Root mean square error in metres over the cells that have an elevation."""
    return float(np.sqrt(np.nanmean((predicted - elevation.astype(np.float64)) ** 2)))


def level_and_relief(field: np.ndarray | float, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What of an elevation is how high a chip lies, and what is the shape of its ground.

    Args:
      field: [N, h, w], or one number for all cells.
      known: bool [N, h, w], the cells to judge by.

    Returns:
      The level, each chip's mean over its known cells, float64 [N] (0 if it has none), and the
      relief, what is left without it, float64 [N, h, w].
    """
    field = np.broadcast_to(np.asarray(field, np.float64), known.shape)
    count = np.maximum(known.sum(axis=(1, 2)), 1)
    level = np.where(known, field, 0).sum(axis=(1, 2)) / count
    return level, field - level[:, None, None]


def level_rmse(predicted: np.ndarray | float, elevation: np.ndarray) -> float:
    """Root mean square error in metres of the chips' levels, each weighed by its known cells.

    With `relief_rmse` it makes up `rmse`: the squares of the two add up to its square.

    Args:
      predicted: [N, h, w] in metres, or one number for all cells.
      elevation: [N, h, w] in metres, NaN where missing.
    """
    known = ~np.isnan(elevation)
    error = level_and_relief(predicted, known)[0] - level_and_relief(elevation, known)[0]
    return float(np.sqrt(np.average(error**2, weights=known.sum(axis=(1, 2)))))


def relief_rmse(predicted: np.ndarray | float, elevation: np.ndarray) -> float:
    """Root mean square error in metres of the relief; of a number, that of saying "no relief"."""
    predicted_relief, relief = _reliefs(predicted, elevation)
    return float(np.sqrt(np.mean((predicted_relief - relief) ** 2)))


def relief_correlation(predicted: np.ndarray, elevation: np.ndarray) -> float:
    """Correlation of predicted and true relief over all known cells; 0 if either has none."""
    predicted_relief, relief = _reliefs(predicted, elevation)
    # Each chip's relief has mean 0, and so has all of it.
    size = np.sqrt(np.sum(predicted_relief**2) * np.sum(relief**2))
    return float(np.sum(predicted_relief * relief) / size) if size > 0 else 0.0


def _reliefs(predicted, elevation):
    """Predicted and true relief of the known cells, each [cells]."""
    known = ~np.isnan(elevation)
    return tuple(level_and_relief(field, known)[1][known] for field in (predicted, elevation))


def feature_std(features: np.ndarray) -> float:
    """How far unit-length features [N, C] differ between chips: 0 is collapse, 1 uncorrelated.

    The standard deviation over chips of each feature, averaged over features, times sqrt(C).
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(norms, 1e-12)
    return float(unit.std(axis=0).mean() * np.sqrt(features.shape[1]))


def chip_labels(chips: Arrays) -> np.ndarray:
    """A class for each chip [N]: its label, or its mask's commonest class; -1 for unlabelled.

    Of classes that are as common the lowest counts.
    """
    if "label" in chips:
        return chips["label"].astype(np.int64)
    mask = chips["mask"].reshape(len(chips["mask"]), -1)
    # One class at a time, since a count for each chip and class may not fit.
    classes = np.setdiff1d(np.unique(mask), UNLABELLED)
    label = np.full(len(mask), -1, np.int64)
    most = np.zeros(len(mask), np.int64)
    for value in classes:
        count = (mask == value).sum(axis=1)
        label[count > most] = value
        most = np.maximum(most, count)
    return label


def linear_probe(
    features: np.ndarray, labels: np.ndarray, test_features: np.ndarray, test_labels: np.ndarray
) -> dict[str, float] | None:
    """Logistic regression on frozen features: accuracy and macro F1 on the test chips.

    Args:
      features: float [N, C] of the chips to learn from, and `labels` int [N], -1 unlabelled.
      labels: See there.
      test_features: float [M, C] of the chips to judge by, and `test_labels` int [M].
      test_labels: See there.

    Returns:
      None if either side has no labels or the first fewer than two classes.
    """
    features, labels = features[labels >= 0], labels[labels >= 0]
    test_features, test_labels = test_features[test_labels >= 0], test_labels[test_labels >= 0]
    if len(np.unique(labels)) < 2 or not len(test_labels):
        return None
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    predictions = probe.fit(features, labels).predict(test_features)
    classes = 1 + max(labels.max(), test_labels.max())
    matrix = metrics.confusion_matrix(test_labels, predictions, int(classes))
    return {
        "accuracy": metrics.accuracy(matrix),
        "macro_f1": metrics.macro_f1(matrix),
    }
