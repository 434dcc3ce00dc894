"""The compiled steps of fine-tuning, frozen and full, and evaluation."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from elev_ssl_jax import augment, metrics
from elev_ssl_jax.train_state import TrainState

UNLABELLED = 255
_VIEWS = 8  # of a chip, by augment.dihedral
_EVAL_BATCH = 64


class Chips(NamedTuple):
    """Labelled chips."""

    images: Any  # [N, H, W, C] in sensor units
    targets: Any  # uint8, a class for each chip [N] or each pixel [N, H, W]; 255 is unlabelled
    groups: Any = None  # str [N], the block of ground that each lies in, if that is known

    def take(self, index: Any) -> "Chips":
        """Those at `index`, a slice or an array of positions."""
        return Chips(*(None if array is None else array[index] for array in self))


@dataclasses.dataclass(frozen=True)
class Setup:
    """What fine-tunings share that differ in chips, seed and initial weights alone.

    It is hashable, and the steps are compiled once for each.
    """

    model: Any  # UNet or Classifier
    frozen_optimizer: optax.GradientTransformation
    full_optimizer: optax.GradientTransformation
    frozen_epochs: int
    full_epochs: int
    batch_size: int
    fixed: bool  # the frozen encoder's BatchNorm is in inference mode
    value_range: tuple[float, float]
    flip: float
    transpose: float
    cache_bytes: float  # the most that the frozen encoder's maps may take


@functools.partial(jax.jit, static_argnames="setup")
def encode_batch(setup: Setup, variables: Any, images: jax.Array) -> list[jax.Array]:
    """The encoder's maps, in inference mode, of all views of images [B, ...]: [B, 8, ...] each."""
    views = [augment.dihedral(images, jnp.full(len(images), i)) for i in range(_VIEWS)]
    stacked = jnp.stack(views, axis=1).reshape(-1, *images.shape[1:])
    maps = setup.model.apply(variables, _normalize(setup, stacked), train=False, method="encode")
    return [m.reshape(-1, _VIEWS, *m.shape[1:]) for m in maps]


@functools.partial(jax.jit, static_argnames="setup", donate_argnames="state")
def frozen_step(
    setup: Setup,
    state: TrainState,
    encoder: Any,
    maps: list[jax.Array] | None,
    chips: Chips,
    indices: Any,
    seed: int | jax.Array,
) -> tuple[TrainState, jax.Array]:
    """One step of the new layers alone, on the chips at `indices`: state, used up, and loss.

    `maps` are those of all chips, by `finetune.encode_views`; without them they are computed.
    """
    which = _draw_views(setup, seed, state.step, len(indices))
    batch_stats = state.batch_stats
    if maps is not None:
        inputs = [m[indices, which] for m in maps]
    else:
        images = augment.dihedral(chips.images[indices], which)
        inputs, updates = setup.model.apply(
            {"params": {"encoder": encoder}, "batch_stats": batch_stats},
            _normalize(setup, images),
            train=not setup.fixed,
            method="encode",
            mutable=["batch_stats"],
        )
        batch_stats = {**batch_stats, **updates["batch_stats"]}

    def loss_fn(params):
        logits, updates = setup.model.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs,
            train=True,
            method="decode",
            mutable=["batch_stats"],
        )
        loss = cross_entropy(logits, augment.dihedral(chips.targets[indices], which))
        return loss, {**batch_stats, **updates.get("batch_stats", {})}

    return _update(setup.frozen_optimizer, state, loss_fn)


@functools.partial(jax.jit, static_argnames="setup", donate_argnames="state")
def full_step(
    setup: Setup, state: TrainState, chips: Chips, indices: Any, seed: int | jax.Array
) -> tuple[TrainState, jax.Array]:
    """One step of everything."""
    # The key of a step differs from that of the frozen stage, whose steps count from 0 as well.
    which = _draw_views(setup, seed, -1 - state.step, len(indices))

    def loss_fn(params):
        logits, updates = setup.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            _normalize(setup, augment.dihedral(chips.images[indices], which)),
            train=True,
            mutable=["batch_stats"],
        )
        loss = cross_entropy(logits, augment.dihedral(chips.targets[indices], which))
        return loss, updates["batch_stats"]

    return _update(setup.full_optimizer, state, loss_fn)


def _update(optimizer, state, loss_fn):
    (loss, batch_stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, batch_stats, opt_state), loss


def _draw_views(setup, seed, step, count):
    keys = augment.sample_keys(seed, step, count)
    return augment.draw_dihedral(keys, flip=setup.flip, transpose=setup.transpose)


def _normalize(setup, images):
    return augment.normalize(images, setup.value_range)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross-entropy of logits [..., K] over the targets [...] that are labelled."""
    known = targets != UNLABELLED
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(known, targets, 0).astype(jnp.int32)
    )
    return jnp.sum(jnp.where(known, losses, 0)) / jnp.maximum(jnp.sum(known), 1)


def evaluate(setup: Setup, variables: Any, chips: Chips) -> tuple[np.ndarray, np.ndarray]:
    """Confusion matrix over all chips, int64, and the predicted classes, uint8.

    BatchNorm is in inference mode.
    """
    count, parts = len(chips.images), []
    for i in range(0, count, _EVAL_BATCH):
        images = chips.images[i : i + _EVAL_BATCH]
        images = np.resize(images, (_EVAL_BATCH, *images.shape[1:]))  # one compiled program
        parts.append(_classify(setup, variables, images))
    classes = np.concatenate(parts)[:count]
    return metrics.confusion_matrix(chips.targets, classes, setup.model.num_classes), classes


@functools.partial(jax.jit, static_argnames="setup")
def _classify(setup, variables, images):
    logits = setup.model.apply(variables, _normalize(setup, images), train=False)
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8)
