"""Whether what a model says with 80 % confidence is right in 80 % of all cases."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from elev_ssl_jax.files import UNLABELLED

BINS = 15  # of equal width, as in Guo et al.


class Reliability:
    """Targets by how sure the model was, gathered batch by batch."""

    def __init__(self) -> None:
        """Of nothing yet."""
        self._counts, self._right = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
        self._sure = np.zeros(BINS)

    def add(
        self,
        targets: NDArray[np.uint8],
        classes: NDArray[np.uint8],
        confidence: NDArray[np.floating],
    ) -> None:
        """Takes in targets, what was told of them, and the probability of that: one shape."""
        known = targets != UNLABELLED
        sure = confidence[known].astype(np.float64)
        place = np.clip((sure * BINS).astype(int), 0, BINS - 1)
        self._counts += np.bincount(place, minlength=BINS)
        self._right += np.bincount(place[(targets == classes)[known]], minlength=BINS)
        self._sure += np.bincount(place, sure, BINS)

    def summary(self) -> dict[str, Any]:
        """The expected calibration error (Guo et al., arXiv 1706.04599), and what it is made of.

        `error` is the mean gap between confidence and accuracy over all targets; `count`,
        `confidence` and `accuracy` are those of each bin, the latter None of an empty one.
        """
        total = max(int(self._counts.sum()), 1)
        means = [
            [float(v / n) if n else None for v, n in zip(values, self._counts, strict=True)]
            for values in (self._sure, self._right)
        ]
        return {
            "error": float(np.abs(self._sure - self._right).sum() / total),
            "count": self._counts.tolist(),
            "confidence": means[0],
            "accuracy": means[1],
        }
