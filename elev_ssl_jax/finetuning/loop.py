"""Fine-tuning: first with a frozen encoder, then all of it (sections 5.1.2 and 5.2.2).

A fine-tuning is small, a few hundred chips in batches of eight, so that it runs on one device,
unless several are asked for; `single` does one by itself, and `experiment` spreads many over them.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from elev_ssl_jax import sensors, squares
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import labelled, objective
from elev_ssl_jax.finetuning.step import (
    Labelled,
    Setup,
    encode_batch,
    frozen_step,
    full_step,
)
from elev_ssl_jax.models.classifier import Classifier
from elev_ssl_jax.models.encoders import compute_dtype, encoder_type
from elev_ssl_jax.models.plain_unet import PlainUNet
from elev_ssl_jax.models.swin_unet import SwinUNet
from elev_ssl_jax.models.unet import UNet
from elev_ssl_jax.recipes import OF_CHIPS, REGRESSION
from elev_ssl_jax.runtime import batches, sharding
from elev_ssl_jax.runtime.optimizer import make_optimizer
from elev_ssl_jax.runtime.train_state import TrainState


class Epoch(NamedTuple):
    """How far a fine-tuning has come."""

    stage: str  # "frozen" or "full"
    number: int  # of the epoch in its stage, from 1
    state: TrainState  # in the frozen stage, of the new layers alone
    loss: jax.Array  # of the last batch


def make_model(
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    platform: str,
    size: tuple[int, int] | None = None,
) -> UNet | Classifier:
    """The model that `config.model` and `config.finetune` describe.

    Args:
      config: The run's configuration.
      shapes: Of each input of a chip, as the network sees it; and of what a regression tells.
      platform: Of the devices that are to compute.
      size: Of the images in pixels, if it isn't that of a chip.
    """
    encoder, classes = encoder_type(config, shapes), config.finetune.num_classes
    size = size or sensors.image_size(sensors.of(config), shapes)
    common = {"width": config.model.width, "dtype": compute_dtype(config, platform)}
    if config.finetune.head in OF_CHIPS:
        return Classifier(classes, encoder, **common)
    if config.finetune.head == REGRESSION:
        height, width = shapes[labelled.target_of(config)]
        return UNet(1, (height, width), encoder, **common)
    if config.finetune.head == "swin_unet":
        branches = len(config.data.inputs) if config.model.fusion == "late" else 1
        return SwinUNet(classes, size, encoder, branches=branches, **common)
    unet = {"unet": UNet, "plain_unet": PlainUNet}[config.finetune.head]
    return unet(classes, size, encoder, **common)


def make_setup(
    config: Any, shapes: Mapping[str, tuple[int, ...]], count: int, platform: str | None = None
) -> Setup:
    """The fine-tuning that `config` describes.

    Args:
      config: The run's configuration.
      shapes: Of each input of a chip, as it is stored.
      count: Chips in an epoch, those that come more than once included.
      platform: Of the devices that are to compute; None is those at hand.
    """
    shapes = squares.cut_shapes(shapes, config.augment.crop_size)
    make = functools.partial(
        make_optimizer,
        steps_per_epoch=steps_per_epoch(count, config.batch_size),
        batch_size=config.batch_size,
    )
    # Its rate is what it says; scaling, warm-up and decay are the full stage's, and so is the drop,
    # unless there is none.
    frozen = config.optimizer.copy_and_resolve_references()
    frozen.learning_rate = config.finetune.frozen_learning_rate
    frozen.scaling, frozen.warmup_epochs, frozen.schedule = "none", 0.0, "constant"
    frozen.drop_epoch *= config.epochs == 0
    return Setup(
        model=make_model(config, shapes, platform or jax.devices()[0].platform),
        frozen_optimizer=make(frozen, epochs=config.finetune.frozen_epochs)[0],
        full_optimizer=make(config.optimizer, epochs=config.epochs)[0],
        frozen_epochs=config.finetune.frozen_epochs,
        full_epochs=config.epochs,
        batch_size=config.batch_size,
        fixed=config.finetune.frozen_batchnorm == "inference",
        inputs=sensors.of(config),
        bands=sensors.band_inputs(sensors.of(config), shapes),
        target=labelled.target_of(config),
        present_share=config.finetune.present_share,
        scale=tuple(config.finetune.scale),
        objective=objective.of(config),
        class_weights=tuple(config.finetune.class_weights),
        oversample=config.finetune.oversample,
        crop_size=config.augment.crop_size,
        drop_sensor=config.finetune.drop_sensor,
        flip=config.augment.finetune.flip,
        transpose=config.augment.finetune.transpose,
        cache_bytes=config.data.resident_gib * 2**30,
    )


def _cuts(count, batch_size):
    """Where an epoch's batches end and others begin; the last has what is left.

    Unless that is a single chip, which BatchNorm would compare with itself: it joins the batch
    before.
    """
    return range(batch_size, count - (batch_size > 1), batch_size)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Of so many chips, those that come more than once included."""
    return 1 + len(_cuts(count, batch_size))


def _batches(seed, epoch, rows, batch_size):
    """Chip indices of an epoch's batches, of which `rows` are to come."""
    order = rows[batches.epoch_order(seed, epoch, len(rows))]
    return np.split(order, _cuts(len(rows), batch_size))


@functools.partial(jax.jit, static_argnames=("setup", "image_shape"))
def init(setup: Setup, seed: int | jax.Array, image_shape: tuple[int, ...]) -> Any:
    """The model's variables before any training; the encoder's weights are those of `pretrain`."""
    return setup.model.init(jax.random.key(seed), jnp.zeros((2, *image_shape)), train=True)


def fit(
    setup: Setup,
    variables: Any,
    chips: Labelled,
    seed: int,
    *,
    count: int | None = None,
    maps: list[batches.Rows] | None = None,
    start: TrainState | None = None,
    mesh: Mesh | None = None,
) -> Iterator[Epoch]:
    """Trains, an epoch at a time. Only the loop runs on the host, and it waits for nothing.

    Args:
      setup: From `make_setup`.
      variables: Initial weights and statistics.
      chips: What to learn from.
      seed: Of the batches' order and their augmentation.
      count: Learn from the first so many chips alone; None is all. What is compiled for the chips
        serves every count.
      maps: `encode_views` of these variables and chips; None does without.
      start: A state of the full stage to go on from.
      mesh: The devices, which share each batch that they divide; None is the first alone.

    Yields:
      After each epoch, the state; the next epoch uses it up. If there is no full stage, a last one,
      number 0 of it, has the state that it would begin with.
    """
    mesh = mesh or sharding.make_mesh(jax.local_devices()[:1])
    everywhere = sharding.replicated(mesh)
    targets = np.asarray(chips.targets)[:count]
    rows = labelled.epoch_rows(targets, oversample=setup.oversample)
    weights = None
    if setup.class_weights:
        weights = objective.class_weights(
            setup.class_weights, targets[rows], setup.target, setup.model.num_classes
        )
        weights = jax.device_put(weights, everywhere)
    chips = place(chips, mesh)

    def put(tree):
        # All there in the same way, or the steps would be compiled again. The steps use their state
        # up, so that it is a copy: the caller's variables outlive it. (`device_put` may take one
        # device's part as it is, whatever `may_alias` says.)
        return jax.device_put(jax.tree.map(jnp.copy, tree), everywhere)

    if start is None:
        encoder = put(variables["params"]["encoder"])
        params = {name: p for name, p in variables["params"].items() if name != "encoder"}
        state = put(TrainState.create({**variables, "params": params}, setup.frozen_optimizer))
        for epoch in range(setup.frozen_epochs):
            for indices in _batches(seed, epoch, rows, setup.batch_size):
                shared = _shared(indices, mesh)
                state, loss = frozen_step(setup, state, encoder, maps, chips, shared, seed, weights)
            yield Epoch("frozen", epoch + 1, state, loss)
        variables = {
            "params": {"encoder": encoder, **state.params},
            "batch_stats": state.batch_stats,
        }
        start = TrainState.create(variables, setup.full_optimizer)
        if not setup.full_epochs:
            yield Epoch("full", 0, start, loss)
    state = put(start)
    done = int(start.step) // steps_per_epoch(len(rows), setup.batch_size)
    for epoch in range(done, setup.full_epochs):
        order = setup.frozen_epochs + epoch
        for indices in _batches(seed, order, rows, setup.batch_size):
            state, loss = full_step(setup, state, chips, _shared(indices, mesh), seed, weights)
        yield Epoch("full", epoch + 1, state, loss)


def shared_by(config: Any, there: Sequence[jax.Device]) -> list[jax.Device]:
    """The devices that share the batches of a fine-tuning by itself, of those that are there.

    Raises:
      InputError: There are fewer, or they don't divide a batch.
    """
    asked = config.finetune.devices
    if asked > len(there):
        raise InputError(f"config.finetune.devices is {asked}; there are {len(there)}")
    found = [*there[: asked or len(there)]]
    if config.batch_size % len(found):
        raise InputError(
            f"config.batch_size is {config.batch_size}; it must be a multiple of the {len(found)} "
            "devices of config.finetune.devices"
        )
    return found


def _shared(indices, mesh):
    """A batch's chips, of which each device takes its part, and with them all that is made of them.

    A batch that they don't divide, the last of an epoch perhaps, is each one's.
    """
    if mesh.size == 1 or len(indices) % mesh.size:
        return indices
    return jax.device_put(indices, sharding.split(mesh))


def place(chips: Labelled, mesh: Mesh) -> Labelled:
    """Labelled chips on all devices, where steps can gather from them; those that are there stay.

    Args:
      chips: On the host, or there.
      mesh: The devices.
    """

    def rows(arrays):
        return arrays if isinstance(arrays, batches.Rows) else batches.Rows.of(arrays)

    inputs = {name: rows(arrays) for name, arrays in chips.inputs.items()}
    return jax.device_put(Labelled(inputs, rows(chips.targets)), sharding.replicated(mesh))


def encode_views(
    setup: Setup, variables: Any, chips: Any, mesh: Mesh | None = None
) -> list[batches.Rows] | None:
    """What the frozen encoder says of every view of chips' inputs: arrays [N * V, ...].

    A chip has eight views at most, an encoder that stands still sees each the same way in every
    epoch, and so do fine-tunings that start from the same encoder. None if the encoder is not one
    fixed function, if chips have other views (random squares, or sensors left out), or if that
    would take more than `setup.cache_bytes`.
    """
    if cached_maps(setup, variables, chips) is None:
        return None
    mesh = mesh or sharding.make_mesh(jax.local_devices()[:1])
    variables, chips = jax.device_put((variables, chips), sharding.replicated(mesh))
    parts = []
    for i in range(0, batches.length(chips), setup.batch_size):
        some = {name: array[i : i + setup.batch_size] for name, array in chips.items()}
        parts.append([*map(batches.Rows.of, encode_batch(setup, variables, some))])
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)


def cached_maps(setup: Setup, variables: Any, chips: Any) -> list[batches.Rows] | None:
    """The shapes of what `encode_views` gives of chips, of which the shapes are enough too."""
    if not setup.fixed or setup.crop_size or setup.drop_sensor:
        return None
    maps = jax.eval_shape(functools.partial(encode_batch, setup), variables, chips)
    if sum(m.size * m.dtype.itemsize for m in maps) > setup.cache_bytes:
        return None
    return [jax.eval_shape(batches.Rows.of, m) for m in maps]
