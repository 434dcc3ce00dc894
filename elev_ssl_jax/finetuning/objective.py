"""What fine-tuning minimises: how far what is told is from what is right."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from elev_ssl_jax import metrics
from elev_ssl_jax.files import UNLABELLED

BALANCED = "balanced"
_SMALL = 1e-7


class Objective(NamedTuple):
    """`config.finetune`'s part of it; made of plain values, so that it can be hashed."""

    loss: str  # "cross_entropy", "focal", "dice", or "cross_entropy+dice"
    label_smoothing: float
    focal_gamma: float


def of(config: Any) -> Objective:
    """The objective that `config.finetune` describes."""
    settings = config.finetune
    return Objective(settings.loss, settings.label_smoothing, settings.focal_gamma)


def loss(
    objective: Objective, logits: jax.Array, targets: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """The loss of logits [..., K] against the classes [...], of which 255 is unlabelled.

    Args:
      objective: Which.
      logits: Float.
      targets: uint8.
      weights: Of the classes, float32 [K]; None is one for each.

    Returns:
      A float32 scalar; zero if nothing is labelled.
    """
    parts = {
        "cross_entropy": lambda: cross_entropy(
            logits, targets, weights, smoothing=objective.label_smoothing
        ),
        "focal": lambda: focal(logits, targets, weights, gamma=objective.focal_gamma),
        "dice": lambda: dice(logits, targets, weights),
    }
    return sum((parts[name]() for name in objective.loss.split("+")), jnp.zeros(()))


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None = None,
    *,
    smoothing: float = 0.0,
) -> jax.Array:
    """Mean cross-entropy over the targets that are labelled, as PyTorch weighs and smooths it.

    Each has the weight of its class, by whose sum the whole is divided. Of `smoothing`, each class
    has an equal share of what is right (Szegedy et al., arXiv 1512.00567).
    """
    every = -jax.nn.log_softmax(logits.astype(jnp.float32))
    known, right = _right(targets, logits.shape[-1])
    w = jnp.ones(logits.shape[-1]) if weights is None else weights
    total = (1 - smoothing) * jnp.sum(right * w * every)
    if smoothing:
        total += smoothing / logits.shape[-1] * jnp.sum(known[..., None] * w * every)
    return total / jnp.maximum(jnp.sum(right * w), _SMALL)


def focal(
    logits: jax.Array, targets: jax.Array, weights: jax.Array | None = None, *, gamma: float = 2.0
) -> jax.Array:
    """Cross-entropy in which what is told already counts less (Lin et al., arXiv 1708.02002).

    Each target's is multiplied by (1 - p)**gamma, p the probability of its class.
    """
    every = -jax.nn.log_softmax(logits.astype(jnp.float32))
    _, right = _right(targets, logits.shape[-1])
    w = jnp.ones(logits.shape[-1]) if weights is None else weights
    # 1 - p, without what is lost where p is near 1; its gradient has no end at 0 for gamma < 1.
    doubt = jnp.maximum(-jnp.expm1(-jnp.sum(right * every, axis=-1)), _SMALL)
    total = jnp.sum(doubt**gamma * jnp.sum(right * w * every, axis=-1))
    return total / jnp.maximum(jnp.sum(right * w), _SMALL)


def dice(logits: jax.Array, targets: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """One minus the overlap of what is said and what is right (Milletari et al., 1606.04797).

    A class's overlap is 2 sum(p y) / (sum(p) + sum(y)) over all labelled targets of the batch; the
    loss is the mean over the classes that the batch has, each by its weight.
    """
    known, right = _right(targets, logits.shape[-1])
    said = jax.nn.softmax(logits.astype(jnp.float32)) * known[..., None]
    over = tuple(range(logits.ndim - 1))
    both, each = jnp.sum(said * right, axis=over), jnp.sum(said + right, axis=over)
    w = (1.0 if weights is None else weights) * (jnp.sum(right, axis=over) > 0)
    return jnp.sum(w * (1 - 2 * both / jnp.maximum(each, _SMALL))) / jnp.maximum(jnp.sum(w), _SMALL)


def _right(targets, count):
    """Which targets are labelled [...], and their classes [..., K] as ones and zeros: float32."""
    known = targets != UNLABELLED
    return known, jax.nn.one_hot(targets, count)  # of 255 all are zeros


def presence(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean binary cross-entropy of logits [B, K] that tell whether each class is there [B, K]."""
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets))


def squared_error(told: jax.Array, targets: jax.Array, scale: tuple[float, float]) -> jax.Array:
    """Mean squared error of a quantity over the cells in which it is known, in units of `scale`.

    Args:
      told: float [B, h, w, 1], 0 for the mean of `scale`, 1 for a deviation above.
      targets: float32 [B, h, w] in the data's unit, NaN where unknown.
      scale: Mean and standard deviation.

    Returns:
      A float32 scalar; zero if nothing is known.
    """
    mean, deviation = scale
    known = ~jnp.isnan(targets)
    error = told[..., 0].astype(jnp.float32) - (jnp.where(known, targets, mean) - mean) / deviation
    return jnp.sum(known * error**2) / jnp.maximum(jnp.sum(known), 1)


def class_weights(
    asked: Sequence[Any], targets: NDArray[np.uint8], target: str, count: int
) -> NDArray[np.float32]:
    """The weight of each class, float32 [K].

    Args:
      asked: `finetune.class_weights`: numbers, or "balanced", which makes each class weigh as much
        in all targets together: N / (K n) for a class of n of them, K the classes that there are.
      targets: Of the chips that are learned from, those of an epoch.
      target: As `Setup.target`.
      count: How many classes there are.
    """
    if tuple(asked) != (BALANCED,):
        return np.asarray(asked, np.float32)
    # -1, of a chip without a class, becomes 255, as of a pixel.
    classes = (
        metrics.commonest_class(targets).astype(np.uint8) if target == "commonest" else targets
    )
    counts = np.bincount(classes.ravel(), minlength=UNLABELLED + 1)[:count]
    there = counts > 0
    return np.where(there, counts.sum() / (there.sum() * np.maximum(counts, 1)), 0.0).astype(
        np.float32
    )
