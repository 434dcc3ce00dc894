"""The programs of a run, lowered for devices that needn't be there."""

import functools
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from elev_ssl_jax import sensor_scale, sensors
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import labelled, methods, step, study
from elev_ssl_jax.finetuning import loop as finetuning
from elev_ssl_jax.pretraining import loop as pretraining
from elev_ssl_jax.pretraining import progress
from elev_ssl_jax.pretraining.methods import make as make_method
from elev_ssl_jax.pretraining.step import make_train_step
from elev_ssl_jax.recipes import ELSEWHERE, PROBES, REGRESSION, goes_with, recipe
from elev_ssl_jax.runtime import batches, flops, sharding
from elev_ssl_jax.runtime.optimizer import make_optimizer
from elev_ssl_jax.runtime.train_state import TrainState

Chip = Mapping[str, jax.ShapeDtypeStruct]  # the features of one


class Stage(NamedTuple):
    """A part of a run that takes the same step over and over."""

    name: str
    step: Any  # jax.stages.Lowered
    gather: Any  # likewise, of the step's batch from the chips; None where that is in the step
    steps: int  # in the whole run, of each device
    devices: int  # that take part in a step
    batch_size: int
    params: int
    flop: int  # of the model's products, of one chip in one step
    resident: int  # bytes on each device that the step doesn't count: the chips of the gather
    # Of one device, or 0: similarities of the loss, which chunk_size divides.
    similarities: int = 0


def of_run(config: Any, chip: Chip, count: int, labels: int, mesh: Mesh) -> list[Stage]:
    """The stages of a run.

    Args:
      config: The run's configuration, checked.
      chip: Features of a chip.
      count: Chips to learn from; those of the pre-trainings, if it is an experiment.
      labels: Labelled chips that an experiment's shares are of.
      mesh: Devices to run on, of which there need be none.

    Raises:
      InputError: Configuration, chips and devices don't fit each other.
    """
    config = _closed(config, chip)
    hosts = len({device.process_index for device in mesh.devices.flat})
    if config.task != "pretrain" and hosts > 1:
        raise InputError(
            f"config.task is {config.task!r}, which runs in one process, on all its devices, but "
            f"this topology has {hosts} hosts; take a smaller one"
        )
    if config.task == "pretrain":
        return [of_pretraining(config, chip, count, mesh)]
    if config.task == "finetune":
        return of_finetuning(config, chip, count, mesh)
    return _of_experiment(config, chip, count, labels, mesh)


def of_pretraining(config: Any, chip: Chip, count: int, mesh: Mesh, times: int = 1) -> Stage:
    """Pre-training, `times` over; see `of_run`."""
    pretraining.check_batches(config, count, devices=mesh.size)
    some = _some(chip)
    method = make_method(config, some, mesh)
    steps_per_epoch = count // config.batch_size
    optimizer, schedule = make_optimizer(
        config.optimizer,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=config.batch_size,
    )
    read = {name: chip[name] for name in method.reads}
    state = jax.eval_shape(lambda: pretraining.first_state(method, optimizer, some, 0))
    train_step = make_train_step(config, method, optimizer, schedule, mesh)
    batch = _placed(_arrays(read, config.batch_size), sharding.split(mesh))
    gather, resident = None, 0
    if count * _nbytes(read) / 2**30 <= config.data.resident_gib:
        rows = _rows(_arrays(read, count))
        resident = _nbytes(rows)
        plan = jax.ShapeDtypeStruct((steps_per_epoch, config.batch_size), jnp.int32)
        gather = batches.make_gather(mesh).lower(
            _placed(rows, sharding.replicated(mesh)),
            _placed(plan, sharding.split(mesh, axis=1)),
            jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh)),
        )
    of_two = [math.prod(z.shape[:-1]) for z in progress.embeddings(config, method, some)]
    most = config.batch_size * max(of_two, default=0) // 2
    return Stage(
        name="pre-training",
        step=train_step.lower(_placed(state, sharding.replicated(mesh)), batch, 0),
        gather=gather,
        steps=times * config.epochs * steps_per_epoch,
        devices=mesh.size,
        batch_size=config.batch_size,
        params=_size(state.params),
        flop=progress.flop_of_chip(config, method, some),
        resident=resident,
        similarities=4 * most * min(config.loss.chunk_size or most, most) // mesh.size,
    )


def of_finetuning(config: Any, chip: Chip, count: int, mesh: Mesh, times: float = 1) -> list[Stage]:
    """Fine-tuning on `finetune.devices`, `times` over: a frozen encoder, and all; see `of_run`."""
    devices = finetuning.shared_by(config, [*mesh.devices.flat])
    mesh = Mesh(np.array(devices), mesh.axis_names)
    everywhere = sharding.replicated(mesh)
    shapes = {name: chip[name].shape for name in config.data.inputs}
    config = config.copy_and_resolve_references()
    if config.finetune.head == REGRESSION:
        learned = labelled.target_of(config)
        if learned not in chip:
            raise InputError(f"config.finetune learns {learned}, and {config.data.name} has none")
        shapes[learned] = chip[learned].shape
        config.finetune.scale = config.finetune.scale or (0.0, 1.0)
    elif not config.finetune.num_classes:
        config.finetune.num_classes = len(config.finetune.classes) or 2
    setup = finetuning.make_setup(config, shapes, count, sharding.platform(mesh))
    inputs = {name: chip[name] for name in config.data.inputs}
    target = () if setup.target == "label" else sensors.image_size(setup.inputs, shapes)
    kind: Any = np.uint8
    if setup.scale:
        target, kind = shapes[setup.target], np.float32
    some = labelled.Labelled(
        {name: np.zeros((2, *array.shape), array.dtype) for name, array in inputs.items()},
        np.zeros((2, *target), kind),
    )
    image_shape = labelled.image_shape_of(config, some)
    variables = jax.eval_shape(lambda: finetuning.init(setup, 0, image_shape))
    chips = labelled.Labelled(
        *_rows((_arrays(inputs, count), jax.ShapeDtypeStruct((count, *target), kind))),
    )
    maps = finetuning.cached_maps(setup, variables, _arrays(inputs, count))
    indices = jax.ShapeDtypeStruct((min(config.batch_size, count),), jnp.int32)
    divided = len(indices) % mesh.size == 0
    shared = _placed(indices, sharding.split(mesh) if divided else everywhere)
    encoder = variables["params"]["encoder"]
    new = {name: p for name, p in variables["params"].items() if name != "encoder"}

    def state(params, optimizer):
        return jax.eval_shape(
            lambda v: TrainState.create(v, optimizer), {**variables, "params": params}
        )

    def products(method, inputs):
        apply = functools.partial(setup.model.apply, train=False, method=method)
        return flops.count(apply, variables, inputs) // 2

    images = jax.ShapeDtypeStruct((2, *image_shape), np.float32)
    encode = functools.partial(setup.model.apply, train=False, method="encode")
    seen = products("encode", images)
    told = products("decode", jax.eval_shape(encode, variables, images))

    def stage(name, program, arrays, epochs, flop):
        return Stage(
            name=name,
            step=program.lower(setup, *_placed(arrays, everywhere), shared, 0),
            gather=None,
            steps=math.ceil(times * epochs * finetuning.steps_per_epoch(count, config.batch_size)),
            devices=mesh.size,
            batch_size=min(config.batch_size, count),
            params=_size(variables["params"]),
            flop=flop,
            resident=0,
        )

    stages: list[Stage] = []
    arrays: Any
    if setup.frozen_epochs:
        flop = 3 * told + (seen if maps is None else 0)
        arrays = (state(new, setup.frozen_optimizer), encoder, maps, chips)
        name = "fine-tuning, frozen encoder"
        stages.append(stage(name, step.frozen_step, arrays, setup.frozen_epochs, flop))
    if setup.full_epochs:
        arrays = state(variables["params"], setup.full_optimizer), chips
        flop = 3 * (told + seen)
        stages.append(stage("fine-tuning", step.full_step, arrays, setup.full_epochs, flop))
    return stages


def _of_experiment(config, chip, count, labels, mesh):
    """Its pre-trainings, and its fine-tunings, which are spread over the devices."""
    config = methods.with_counts(config, labels)
    settings, stages = config.experiment, []
    shapes = {name: array.shape for name, array in chip.items()}
    cells = settings.pretrain_seeds * max(settings.label_draws, 1) * settings.seeds / mesh.size
    members = dict.fromkeys(m for name in settings.methods for m in methods.members_of(name))
    names = dict.fromkeys(methods.pretraining_of(name) for name in members)
    for name in names:
        if recipe(name).pretrained:
            its = methods.pretrain_config(methods.config_of(config, name, shapes))
            stage = of_pretraining(its, chip, count, mesh, times=settings.pretrain_seeds)
            stages.append(stage._replace(name=f"{name}: {stage.name}"))
    # Methods that differ in their pre-training alone are fine-tuned by one program, and probes are
    # not trained.
    alike: dict[str, list[str]] = {}
    tasks = study.configs_of(config)
    for key in tasks:
        task = tasks[key.removesuffix(ELSEWHERE)]  # on other ground: the same programs once more
        trained = task.finetune.head not in PROBES
        for name in members if trained else ():
            if goes_with(name, task.finetune.head):
                its = methods.finetune_config(methods.config_of(task, name, shapes))
                alike.setdefault(json.dumps(its.to_dict()), []).append(name)
    # A step is that of the largest number of labels; of fewer there are as many fewer.
    most, batch_size = max(settings.labels), config.batch_size
    steps = sum(finetuning.steps_per_epoch(n, batch_size) for n in settings.labels)
    cells *= steps / finetuning.steps_per_epoch(most, batch_size)
    for fields, some in alike.items():
        its = ml_collections.ConfigDict(json.loads(fields))
        for stage in of_finetuning(its, chip, most, mesh, len(some) * cells):
            title = ", ".join(dict.fromkeys(some))
            stages.append(stage._replace(name=f"{title}: {stage.name}"))
    if not stages:
        raise InputError("nothing is trained in this experiment: there is nothing to plan")
    return stages


def _closed(config, chip):
    """The configuration with numbers where it leaves the sensors' scale to the data."""
    if not sensor_scale.is_open(config):
        return config
    config = config.copy_and_resolve_references()
    config.data.update(sensor_scale.measure(config, _some(chip)))
    return config


def _some(chip):
    """Two chips with values that differ: what they are changes no program."""
    return {
        name: np.arange(2 * math.prod(a.shape)).reshape(2, *a.shape).astype(a.dtype)
        for name, a in chip.items()
    }


def _nbytes(tree):
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def _size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _arrays(chip, count):
    return {n: jax.ShapeDtypeStruct((count, *a.shape), a.dtype) for n, a in chip.items()}


def _rows(tree):
    return jax.tree.map(lambda array: jax.eval_shape(batches.Rows.of, array), tree)


def _placed(tree, where):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree
    )
