"""The compiled steps of fine-tuning, frozen and full, and evaluation."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from elev_ssl_jax import augment, metrics, sensors
from elev_ssl_jax.files import UNLABELLED
from elev_ssl_jax.runtime.train_state import TrainState

_VIEWS = 8  # of a chip, by augment.dihedral
_EVAL_BATCH = 64


class Labelled(NamedTuple):
    """Chips with their classes."""

    inputs: Any  # by feature: sensors [N, H, W, C] in their units, `elevation` [N, h, w] in metres
    targets: Any  # uint8, a class for each chip [N] or each pixel [N, H, W]; 255 is unlabelled
    groups: Any = None  # str [N], the block of ground that each lies in, if that is known

    def take(self, index: Any) -> "Labelled":
        """Those at `index`, a slice or an array of positions."""
        return jax.tree.map(lambda array: array[index], self)


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
    inputs: sensors.Inputs
    flip: float
    transpose: float
    cache_bytes: float  # the most that the frozen encoder's maps may take


@functools.partial(jax.jit, static_argnames="setup")
def encode_batch(setup: Setup, variables: Any, chips: Any) -> list[jax.Array]:
    """The encoder's maps, in inference mode, of all views of chips' inputs: [B, 8, ...] each."""

    def all_views(array):
        views = [augment.dihedral(array, jnp.full(len(array), i)) for i in range(_VIEWS)]
        return jnp.stack(views, axis=1).reshape(-1, *array.shape[1:])

    images = sensors.shown(setup.inputs, jax.tree.map(all_views, chips))
    maps = setup.model.apply(variables, images, train=False, method="encode")
    return [m.reshape(-1, _VIEWS, *m.shape[1:]) for m in maps]


@functools.partial(jax.jit, static_argnames="setup", donate_argnames="state")
def frozen_step(
    setup: Setup,
    state: TrainState,
    encoder: Any,
    maps: list[jax.Array] | None,
    chips: Labelled,
    indices: Any,
    seed: int | jax.Array,
) -> tuple[TrainState, jax.Array]:
    """One step of the new layers alone, on the chips at `indices`: state, used up, and loss.

    `maps` are those of all chips, by `loop.encode_views`; without them they are computed.
    """
    which = _draw_views(setup, seed, state.step, len(indices))
    batch_stats = state.batch_stats
    if maps is not None:
        inputs = [m[indices, which] for m in maps]
    else:
        inputs, updates = setup.model.apply(
            {"params": {"encoder": encoder}, "batch_stats": batch_stats},
            _views(setup, chips.inputs, indices, which),
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
    setup: Setup, state: TrainState, chips: Labelled, indices: Any, seed: int | jax.Array
) -> tuple[TrainState, jax.Array]:
    """One step of everything."""
    # The key of a step differs from that of the frozen stage, whose steps count from 0 as well.
    which = _draw_views(setup, seed, -1 - state.step, len(indices))

    def loss_fn(params):
        logits, updates = setup.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            _views(setup, chips.inputs, indices, which),
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


def _views(setup, chips, indices, which):
    """The network's view of the inputs at `indices`: float32 [B, H, W, C]."""
    chosen = jax.tree.map(lambda array: augment.dihedral(array[indices], which), chips)
    return sensors.shown(setup.inputs, chosen)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross-entropy of logits [..., K] over the targets [...] that are labelled."""
    known = targets != UNLABELLED
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(known, targets, 0).astype(jnp.int32)
    )
    return jnp.sum(jnp.where(known, losses, 0)) / jnp.maximum(jnp.sum(known), 1)


def judge(setup: Setup, variables: Any, chips: Labelled) -> tuple[np.ndarray, np.ndarray]:
    """Confusion matrix over all chips, int64, and the predicted classes, uint8.

    BatchNorm is in inference mode.
    """
    count, parts = len(chips.targets), []
    for i in range(0, count, _EVAL_BATCH):
        rows = np.arange(i, i + _EVAL_BATCH) % count  # one compiled program
        some = {name: array[rows] for name, array in chips.inputs.items()}
        parts.append(_classify(setup, variables, some))
    classes = np.concatenate(parts)[:count]
    return metrics.confusion_matrix(chips.targets, classes, setup.model.num_classes), classes


@functools.partial(jax.jit, static_argnames="setup")
def _classify(setup, variables, chips):
    logits = setup.model.apply(variables, sensors.shown(setup.inputs, chips), train=False)
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8)
