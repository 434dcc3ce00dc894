"""What classes can be told from frozen features: a linear probe, and the nearest neighbours.

Neither knows anything of the chips that they are judged by. How strongly the linear probe is
regularised is chosen on validation chips or, where there are none, within those it learns from.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from elev_ssl_jax.errors import InputError

STRENGTHS = np.logspace(-6, 2, 40)  # C of the linear probe, of features of variance 1
NEIGHBOURS = 5
_FOLDS = 5

Classify = Callable[[np.ndarray], np.ndarray]


class Examples(NamedTuple):
    """Features with their classes."""

    features: np.ndarray  # float [N, C]
    labels: np.ndarray  # int [N], -1 unlabelled

    def known(self) -> "Examples":
        """Those that have a class."""
        return Examples(*(array[self.labels >= 0] for array in self))


def fit(kind: str, train: Examples, validation: Examples | None = None) -> Classify | None:
    """A function from features [M, C] to classes [M].

    Args:
      kind: "probe", logistic regression on features of mean 0 and variance 1, or "knn", the five
        nearest by cosine.
      train: What to learn from.
      validation: What the probe's C is chosen by, out of `STRENGTHS`; None chooses by stratified
        cross-validation within `train`. It is not learned from, and has no chip of `train`.

    Returns:
      None if there are fewer than two classes.

    Raises:
      InputError: As `choose_strength`.
    """
    train = train.known()
    if len(np.unique(train.labels)) < 2:
        return None
    if kind == "knn":
        count = min(NEIGHBOURS, len(train.labels))
        return KNeighborsClassifier(count, metric="cosine").fit(*train).predict
    scaler = StandardScaler().fit(train.features)
    predict = _fitted(_scaled(scaler, train), choose_strength(train, validation)).predict
    return lambda features: predict(scaler.transform(features))


def choose_strength(train: Examples, validation: Examples | None = None) -> float:
    """The C of the linear probe, see `fit`; 1 where there is nothing to choose it by.

    Raises:
      InputError: No validation chip has a class.
    """
    train = train.known()
    scaler = StandardScaler().fit(train.features)
    if validation is None:
        folds = _folds(_scaled(scaler, train))
        return _best(folds) if folds else 1.0
    validation = validation.known()
    if not len(validation.labels):
        raise InputError("no chip of config.data.validation_split has a class; name another split")
    return _best([(_scaled(scaler, train), _scaled(scaler, validation))])


def _best(pairs: list[tuple[Examples, Examples]]) -> float:
    """The C with the highest accuracy over all of them, of equals the middle one."""
    right = np.zeros(len(STRENGTHS))
    for train, validation in pairs:
        warm: Any = None
        for i, strength in enumerate(STRENGTHS):
            warm = _fitted(train, strength, warm)
            right[i] += np.sum(warm.predict(validation.features) == validation.labels)
    equals = np.flatnonzero(right == right.max())
    return float(STRENGTHS[equals[len(equals) // 2]])


def _fitted(train, strength, warm=None):
    """Logistic regression, begun at the weights of another."""
    model = warm or LogisticRegression(max_iter=1000, warm_start=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of features that tell all apart
        return model.set_params(C=strength).fit(*train)


def _folds(train):
    """Parts to learn from and to validate by, as alike in classes as can be.

    None of them if each class has a single chip; those with one class to learn are passed over.
    """
    count = min(_FOLDS, np.unique(train.labels, return_counts=True)[1].max())
    if count < 2:
        return []
    splits = StratifiedKFold(count, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer chips than parts
        pairs = [
            [Examples(*(a[rows] for a in train)) for rows in pair] for pair in splits.split(*train)
        ]
    return [(learned, judged) for learned, judged in pairs if len(np.unique(learned.labels)) > 1]


def _scaled(scaler, examples):
    return examples._replace(features=scaler.transform(examples.features))
