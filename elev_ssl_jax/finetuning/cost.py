"""What an experiment will cost, by the time of some of its own steps."""

import collections
import itertools
import time
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from elev_ssl_jax.finetuning import cells, labelled, loop, methods
from elev_ssl_jax.pretraining import loop as pretraining
from elev_ssl_jax.pretraining.methods import make as make_method
from elev_ssl_jax.pretraining.step import make_train_step
from elev_ssl_jax.recipes import PROBES, recipe
from elev_ssl_jax.runtime import batches, sharding
from elev_ssl_jax.runtime.optimizer import make_optimizer
from elev_ssl_jax.runtime.train_state import TrainState

_STEPS = 5  # that are timed, after the first


def of_pretrainings(config: Any, tasks: Mapping[str, Any], chips: Any) -> dict[str, float]:
    """Seconds of each pre-training of an experiment, by method.

    Args:
      config: The experiment's.
      tasks: Of the study, of which any says what shapes its chips have.
      chips: To pre-train on.
    """
    shapes = labelled.shapes_of(config, next(iter(tasks.values())).train)
    names = dict.fromkeys(
        methods.pretraining_of(m)
        for name in config.experiment.methods
        for m in methods.members_of(name)
    )
    settings = {
        name: methods.pretrain_config(methods.config_of(config, name, shapes))
        for name in names
        if recipe(name).pretrained
    }
    return {name: _of_pretraining(its, chips) for name, its in settings.items()}


def _of_pretraining(config, chips) -> float:
    mesh = sharding.make_mesh()
    sample = pretraining.sample_of(chips)
    method = make_method(config, sample, mesh)
    steps = batches.length(chips) // config.batch_size
    optimizer, schedule = make_optimizer(
        config.optimizer, epochs=config.epochs, steps_per_epoch=steps, batch_size=config.batch_size
    )
    state = pretraining.make_init(method, optimizer, sample, mesh)(config.seed)
    step = make_train_step(config, method, optimizer, schedule, mesh)
    stream, _ = batches.make_batches(
        chips,
        method.reads,
        mesh,
        seed=config.seed,
        batch_size=config.batch_size,
        resident_gib=config.data.resident_gib,
    )
    first = time.monotonic()
    state, _ = jax.block_until_ready(step(state, next(stream), config.seed))
    begun = time.monotonic()
    for _ in range(_STEPS):
        state, _ = step(state, next(stream), config.seed)
    jax.block_until_ready(state)
    return (begun - first) + (time.monotonic() - begun) / _STEPS * config.epochs * steps


def of_cells(
    config: Any, train: labelled.Labelled, test: labelled.Labelled
) -> dict[cells.Cell, float]:
    """Seconds of each fine-tuning of an experiment, beside others on all devices.

    Probes are not trained, and take next to nothing beside the pre-trainings.
    """
    if config.finetune.head in PROBES:
        return {}
    config = methods.with_counts(labelled.with_classes(config, train, test), len(train.targets))
    shapes, settings = labelled.shapes_of(config, train), config.experiment
    seconds: dict[cells.Cell, float] = collections.defaultdict(float)
    known: dict[str, tuple[float, float]] = {}
    every = cells.every(config)
    for cell, method in ((c, m) for c in every for m in methods.members_of(c.method)):
        its = methods.finetune_config(methods.config_of(config, method, shapes))
        key = its.to_json()
        if key not in known:
            known[key] = _of_epochs(its, train, max(settings.labels))
        steps = loop.steps_per_epoch(cell.labels, its.batch_size)
        frozen, full = known[key]
        taken = steps * (its.finetune.frozen_epochs * frozen + its.epochs * full)
        seconds[cell] += taken / len(jax.local_devices())
    return seconds


def _of_epochs(config: ml_collections.ConfigDict, train, count) -> tuple[float, float]:
    """Seconds of a step of the frozen stage, and of one of the full stage."""
    chips, steps = train.take(slice(count)), loop.steps_per_epoch(count, config.batch_size)
    setup = loop.make_setup(config, labelled.shapes_of(config, train), count)
    variables = loop.init(setup, 0, labelled.image_shape_of(config, train))
    maps = loop.encode_views(setup, variables, chips.inputs)
    start = TrainState.create(variables, setup.full_optimizer)
    found = []
    for epochs, more in (
        (setup.frozen_epochs, {"maps": maps}),
        (setup.full_epochs, {"start": start}),
    ):
        fitting = loop.fit(setup, variables, chips, 0, count=count, **more)
        begun = last = time.monotonic()
        for epoch in itertools.islice(fitting, min(epochs, 2)):
            jax.block_until_ready(epoch.loss)
            begun, last = last, time.monotonic()  # the first epoch is compiled for
        found.append((last - begun) / steps)
    return found[0], found[1]
