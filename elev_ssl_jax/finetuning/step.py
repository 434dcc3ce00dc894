"""The compiled steps of fine-tuning, frozen and full, and evaluation."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from elev_ssl_jax import augment, metrics, sensors, squares
from elev_ssl_jax.finetuning import objective
from elev_ssl_jax.finetuning.calibration import Reliability
from elev_ssl_jax.finetuning.labelled import Labelled, as_learned
from elev_ssl_jax.runtime.batches import Rows
from elev_ssl_jax.runtime.train_state import TrainState

_VIEWS = 8  # of a chip, by augment.dihedral
_SENSORS = 0x5E  # apart from the keys that other draws fold in or split
_EVAL_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Setup:
    """What fine-tunings share that differ in chips, seed and initial weights alone.

    It is hashable, and the steps are compiled once for each.
    """

    model: Any  # as `loop.make_model` makes it
    frozen_optimizer: optax.GradientTransformation
    full_optimizer: optax.GradientTransformation
    frozen_epochs: int
    full_epochs: int
    batch_size: int
    fixed: bool  # the frozen encoder's BatchNorm is in inference mode
    inputs: sensors.Inputs
    bands: tuple[str, ...]  # the input that each band of the image is of
    target: str  # "label", "mask", "commonest", "present", or, of a regression, one of FIELDS
    present_share: float
    scale: tuple[float, ...]  # mean and deviation of what a regression tells; () is of classes
    objective: objective.Objective
    class_weights: tuple[Any, ...]  # as `finetune.class_weights`
    oversample: bool
    crop_size: int
    drop_sensor: float
    flip: float
    transpose: float
    cache_bytes: float  # the most that the frozen encoder's maps may take

    @property
    def views(self) -> tuple[int, ...]:
        """Those of the eight views of a chip that can occur."""
        flips = range(4) if self.flip else (0,)
        return tuple(flip + turn for turn in ((0, 4) if self.transpose else (0,)) for flip in flips)


@functools.partial(jax.jit, static_argnames="setup")
def encode_batch(setup: Setup, variables: Any, chips: Any) -> list[jax.Array]:
    """The encoder's maps, in inference mode, of all views of chips' inputs: [B * V, ...] each."""

    def all_views(array):
        views = [augment.dihedral(array, jnp.full(len(array), i)) for i in setup.views]
        return jnp.stack(views, axis=1).reshape(-1, *array.shape[1:])

    images = sensors.shown(setup.inputs, jax.tree.map(all_views, chips))
    return [*setup.model.apply(variables, images, train=False, method="encode")]


@functools.partial(jax.jit, static_argnames="setup", donate_argnames="state")
def frozen_step(
    setup: Setup,
    state: TrainState,
    encoder: Any,
    maps: list[Rows] | None,
    chips: Labelled,
    indices: Any,
    seed: int | jax.Array,
    weights: jax.Array | None = None,
) -> tuple[TrainState, jax.Array]:
    """One step of the new layers alone, on the chips at `indices`: state, used up, and loss.

    Chips are as by `loop.place`. `maps` are those of all, by `loop.encode_views`; without them they
    are computed. `weights` are those of the classes, by `objective.class_weights`.
    """
    keys = augment.sample_keys(seed, state.step, len(indices))
    batch_stats = state.batch_stats
    rngs = {"drop_path": keys[0]}
    if maps is not None:
        which = _draw_views(setup, keys)
        places = np.zeros(_VIEWS, np.int32)
        places[list(setup.views)] = np.arange(len(setup.views))
        rows = indices * len(setup.views) + jnp.asarray(places)[which]
        inputs = [m[rows] for m in maps]
        targets = _learned(setup, augment.dihedral(chips.targets[indices], which))
    else:
        images, targets = _examples(setup, keys, chips, indices)
        inputs, updates = setup.model.apply(
            {"params": {"encoder": encoder}, "batch_stats": batch_stats},
            images,
            train=not setup.fixed,
            method="encode",
            mutable=["batch_stats"],
            rngs=rngs,
        )
        batch_stats = {**batch_stats, **updates.get("batch_stats", {})}

    def loss_fn(params):
        logits, updates = setup.model.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs,
            train=True,
            method="decode",
            mutable=["batch_stats"],
            rngs=rngs,
        )
        return _loss(setup, logits, targets, weights), {
            **batch_stats,
            **updates.get("batch_stats", {}),
        }

    return _update(setup.frozen_optimizer, state, loss_fn)


@functools.partial(jax.jit, static_argnames="setup", donate_argnames="state")
def full_step(
    setup: Setup,
    state: TrainState,
    chips: Labelled,
    indices: Any,
    seed: int | jax.Array,
    weights: jax.Array | None = None,
) -> tuple[TrainState, jax.Array]:
    """One step of everything, on the chips, as by `loop.place`, at `indices`."""
    # The key of a step differs from that of the frozen stage, whose steps count from 0 as well.
    keys = augment.sample_keys(seed, -1 - state.step, len(indices))
    images, targets = _examples(setup, keys, chips, indices)

    def loss_fn(params):
        logits, updates = setup.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"drop_path": keys[0]},
        )
        return _loss(setup, logits, targets, weights), updates.get("batch_stats", {})

    return _update(setup.full_optimizer, state, loss_fn)


def _update(optimizer, state, loss_fn):
    (loss, batch_stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, batch_stats, opt_state), loss


def _draw_views(setup, keys):
    return augment.draw_dihedral(keys, flip=setup.flip, transpose=setup.transpose)


def _examples(setup, keys, chips, indices):
    """The chips at `indices` as they are learned from: images float32 [B, H, W, C], and targets."""
    which = _draw_views(setup, keys)
    name = setup.target if setup.scale else ""  # of what is told, beside the inputs
    chosen = {**chips.inputs, name: chips.targets}
    chosen = {key: array[indices] for key, array in chosen.items()}
    chosen = squares.cut_chips(chosen, setup.crop_size, keys)
    chosen = {key: augment.dihedral(array, which) for key, array in chosen.items()}
    targets = _learned(setup, chosen.pop(name))
    images = sensors.join(setup.inputs, chosen)
    if setup.drop_sensor:
        images *= _kept_sensors(setup, keys)
    return sensors.standardize(setup.inputs, images), targets


def _kept_sensors(setup, keys):
    """Zeros for the bands of a sensor that is left out, at most one a chip: [B, 1, 1, C]."""
    names = dict.fromkeys(name for name in setup.bands if name != sensors.ELEVATION)
    numbers = {name: i for i, name in enumerate(names)}
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, _SENSORS)
    lost, draw = jax.vmap(lambda key: jax.random.uniform(key, (2,)), out_axes=1)(keys)
    number = jnp.where(lost < setup.drop_sensor, jnp.floor(draw * len(names)), -1)
    bands = jnp.asarray([numbers.get(name, len(names)) for name in setup.bands])
    return (bands != number[:, None])[:, None, None]


def _learned(setup, masks):
    return as_learned(masks, setup.target, setup.model.num_classes, setup.present_share)


@jax.named_scope("loss")
def _loss(setup, logits, targets, weights):
    if setup.scale:
        return objective.squared_error(logits, targets, setup.scale)
    if setup.target == "present":
        return objective.presence(logits, targets)
    return objective.loss(setup.objective, logits, targets, weights)


def _batches(chips):
    """The inputs of some chips at a time, as many each time, and the first's position.

    The last batch begins again with the first chips, so that there is one compiled program.
    """
    count = len(chips.targets)
    for start in range(0, count, _EVAL_BATCH):
        rows = np.arange(start, start + _EVAL_BATCH) % count
        yield start, {name: array[rows] for name, array in chips.inputs.items()}


def features(setup: Setup, variables: Any, chips: Labelled) -> np.ndarray:
    """What the encoder says of each chip as it is, float32 [N, C], BatchNorm in inference mode.

    `setup` is of a head that sees a chip's features.
    """
    parts = [_features(setup, variables, some) for _, some in _batches(chips)]
    return np.concatenate(parts)[: len(chips.targets)]


def statistics(setup: Setup, chips: Labelled) -> np.ndarray:
    """Mean and standard deviation of each band of each chip, as it is shown: float32 [N, 2 C]."""
    count, parts = len(chips.targets), []
    for i in range(0, count, _EVAL_BATCH):
        some = {name: array[i : i + _EVAL_BATCH] for name, array in chips.inputs.items()}
        images = sensors.shown(setup.inputs, some)
        parts.append(jnp.concatenate([f(images, axis=(1, 2)) for f in (jnp.mean, jnp.std)], -1))
    return np.concatenate(parts)


def judge(
    setup: Setup,
    variables: Any,
    chips: Labelled,
    without: str = "",
    *,
    reliability: Reliability | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Confusion matrix over all chips, int64, and the predicted classes, uint8.

    Where several classes may be present, there is a matrix [2, 2] for each class, and the
    predictions are [N, K]. BatchNorm is in inference mode; `without` names a sensor to leave out,
    and `reliability` takes in how sure the model is, where there is one class.
    """
    count, parts = len(chips.targets), []
    kept = np.array([name != without for name in setup.bands])
    for start, some in _batches(chips):
        classes, confidence = _classify(setup, variables, some, kept)
        parts.append(classes)
        if reliability is not None:
            targets = chips.targets[start : start + _EVAL_BATCH]
            fresh = slice(0, len(targets))
            reliability.add(targets, np.asarray(classes)[fresh], np.asarray(confidence)[fresh])
    classes = np.concatenate(parts)[:count]
    if setup.target == "present":
        return metrics.presence_matrices(chips.targets, classes), classes
    return metrics.confusion_matrix(chips.targets, classes, setup.model.num_classes), classes


def tell(setup: Setup, variables: Any, chips: Labelled, without: str = "") -> np.ndarray:
    """What a regression tells of chips, float32 [N, h, w] in the data's unit.

    BatchNorm is in inference mode; `without` names a sensor to leave out.
    """
    kept = np.array([name != without for name in setup.bands])
    parts = [_tell(setup, variables, some, kept) for _, some in _batches(chips)]
    return np.concatenate(parts)[: len(chips.targets)]


def judge_together(
    members: Sequence[tuple[Setup, Any]], chips: Labelled
) -> tuple[np.ndarray, np.ndarray]:
    """As `judge`, of several models of one class a chip or pixel: their probabilities are averaged.

    Args:
      members: Of each, what it was trained by and its variables.
      chips: What to judge by.
    """
    count, parts = len(chips.targets), []
    for _, some in _batches(chips):
        total = sum(np.asarray(_probabilities(*member, some)) for member in members)
        parts.append(np.argmax(total, axis=-1).astype(np.uint8))
    classes = np.concatenate(parts)[:count]
    return metrics.confusion_matrix(
        chips.targets, classes, members[0][0].model.num_classes
    ), classes


@functools.partial(jax.jit, static_argnames="setup")
def _probabilities(setup, variables, chips):
    images = sensors.shown(setup.inputs, chips)
    return jax.nn.softmax(setup.model.apply(variables, images, train=False))


@functools.partial(jax.jit, static_argnames="setup")
def _features(setup, variables, chips):
    images = sensors.shown(setup.inputs, chips)
    return setup.model.apply(variables, images, train=False, method="encode")[0]


@functools.partial(jax.jit, static_argnames="setup")
def _tell(setup, variables, chips, kept):
    mean, deviation = setup.scale
    return mean + deviation * _logits(setup, variables, chips, kept)[..., 0]


def _logits(setup, variables, chips, kept):
    """Of the bands that are `kept`."""
    images = jnp.where(kept, sensors.join(setup.inputs, chips), 0)
    images = sensors.standardize(setup.inputs, images)
    return setup.model.apply(variables, images, train=False)


@functools.partial(jax.jit, static_argnames="setup")
def _classify(setup, variables, chips, kept):
    logits = _logits(setup, variables, chips, kept)
    if setup.target == "present":
        return (logits > 0).astype(jnp.uint8), jax.nn.sigmoid(jnp.abs(logits))
    classes = jnp.argmax(logits, axis=-1).astype(jnp.uint8)
    return classes, jnp.max(jax.nn.softmax(logits.astype(jnp.float32)), axis=-1)
