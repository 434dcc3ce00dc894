"""The fine-tunings of an experiment: which there are, and how one is run.

Those that share most lie side by side, so that what they share, compiled steps, chips on a device,
what a frozen encoder says of them, is made once.
"""

import collections
import functools
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from elev_ssl_jax import metrics, probes
from elev_ssl_jax.config import SEEDS_APART
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import labelled, loop, methods, step
from elev_ssl_jax.recipes import PROBES, recipe
from elev_ssl_jax.runtime import sharding, starting

# Of a cell: its confusion matrix, and the predicted classes.
Run = Callable[["Cell"], tuple[np.ndarray, np.ndarray]]
# The folders of the pre-trainings, by method and repetition; None where the encoder is random.
Starts = Mapping[tuple[str, int], Path | None]


class Cell(NamedTuple):
    """One fine-tuning."""

    method: str
    labels: int
    repetition: int
    draw: int  # of the labels, within the repetition; 0 where they are the first
    seed: int  # what `config.seed` would be to a fine-tuning by itself

    @property
    def name(self) -> str:
        """Of its files."""
        return "-".join(map(str, self))


def every(config: Any) -> list[Cell]:
    """The fine-tunings of an experiment: repetition by repetition, so that there are whole ones.

    Within one, those that share most with each other are side by side.
    """
    settings = config.experiment
    repetitions, draws = range(settings.pretrain_seeds), range(max(1, settings.label_draws))
    found = []
    for r, method, draw, labels in itertools.product(
        repetitions, settings.methods, draws, settings.labels
    ):
        first = config.seed + r * SEEDS_APART
        # Nothing of a probe is left to chance.
        seeds = 1 if config.finetune.head in PROBES else settings.seeds
        found += [Cell(method, labels, r, draw, first + s) for s in range(seeds)]
    return found


def order_of(config, train, repetition, draw):
    """Positions of the labelled chips, of which n labels are the first n."""
    settings = config.experiment
    if not settings.label_draws:
        if not settings.stratified:
            return np.arange(len(train.targets))
        repetition = draw = 0
    return methods.draw_labels(
        train.targets, config.seed, repetition, draw, stratified=settings.stratified
    )


def make_runs(
    config: Any,
    starts: Starts,
    train: labelled.Labelled,
    test: labelled.Labelled,
    validation: labelled.Labelled | None,
    todo: list[Cell],
) -> list[Run]:
    """Functions that run a cell, one for each device that is of use.

    Args:
      config: The experiment's.
      starts: Is looked at when a cell is run.
      train: Labelled chips.
      test: Chips to judge by.
      validation: As of `experiment.run`.
      todo: The cells that will be run.
    """
    if config.finetune.head in PROBES:
        return [_make_probe(config, starts, train, test, validation)]
    # A cell is too small for two devices, but there are many cells.
    shared = _Shared(todo)
    return [
        _make_run(config, starts, train, test, shared, sharding.make_mesh([device]))
        for device in jax.local_devices()
    ]


class _Shared:
    """Fine-tunings that several cells need: a method's, which is a member of an ensemble, too."""

    def __init__(self, todo: list[Cell]):
        self._wanted = collections.Counter(part for cell in todo for part in _parts(cell))
        self._kept: dict[Cell, Any] = {}

    def get(self, cell: Cell, fit: Callable[[Cell], Any]) -> Any:
        """`fit(cell)`, which is kept on the host for as long as another cell will need it."""
        self._wanted[cell] -= 1
        found = self._kept.pop(cell, None) or fit(cell)
        if self._wanted[cell] > 0:
            self._kept[cell] = jax.device_get(found)
        return found


def _parts(cell):
    """The fine-tunings that a cell is made of: its own, or those of an ensemble's members."""
    return [cell._replace(method=method) for method in methods.members_of(cell.method)]


def _make_run(config, starts, train, test, shared, mesh) -> Run:
    """A function that fine-tunes for a cell, and judges.

    Cells whose networks are alike share the compiled steps, those of one label draw the chips on
    the device, and those that start from one encoder its maps of the chips.
    """
    settings, shapes = config.experiment, labelled.shapes_of(config, train)
    optimizer = config.optimizer
    # Only a learning rate that changes depends on how many steps there are.
    changes = optimizer.schedule == "cosine" or optimizer.warmup_epochs > 0 or optimizer.drop_epoch

    @functools.cache
    def config_for(method):
        return methods.config_of(config, method, shapes)

    @functools.cache
    def make_setup(fields, count):
        return loop.make_setup(ml_collections.ConfigDict(json.loads(fields)), shapes, count)

    def setup_of(method, count=settings.labels[0]):
        # Methods that differ in their pre-training alone have one.
        return make_setup(json.dumps(methods.finetune_config(config_for(method)).to_dict()), count)

    # As many for every label count, so that one program serves them all.
    @functools.lru_cache(maxsize=1)
    def chips_of(repetition, draw):
        first = order_of(config, train, repetition, draw)[: max(settings.labels)]
        return loop.place(train.take(first), mesh)

    @functools.lru_cache(maxsize=1)
    def encoder_of(method, repetition):
        image_shape = labelled.image_shape_of(config_for(method), train)
        run = starts[methods.pretraining_of(method), repetition]
        return _encoder(setup_of(method), config.seed + repetition, image_shape, run)

    @functools.lru_cache(maxsize=1)
    def maps_of(method, repetition, draw, labels):
        inputs = chips_of(repetition, draw).inputs
        variables = encoder_of(method, repetition)
        chips = {name: inputs[name][:labels] for name in config_for(method).data.inputs}
        return loop.encode_views(setup_of(method), variables, chips, mesh)

    def fitted(cell):
        count = settings.labels[0]
        if changes:
            targets = np.asarray(chips_of(cell.repetition, cell.draw).targets)[: cell.labels]
            count = len(labelled.epoch_rows(targets, oversample=config.finetune.oversample))
        setup = setup_of(cell.method, count)
        encoder = encoder_of(cell.method, cell.repetition)
        image_shape = labelled.image_shape_of(config_for(cell.method), train)
        variables = loop.init(setup, cell.seed, image_shape)
        variables = {
            part: {**leaves, "encoder": encoder[part]["encoder"]} if "encoder" in leaves else leaves
            for part, leaves in variables.items()
        }
        epochs = loop.fit(
            setup,
            variables,
            chips_of(cell.repetition, cell.draw),
            cell.seed,
            count=cell.labels,
            maps=maps_of(cell.method, cell.repetition, cell.draw, cell.labels),
            mesh=mesh,
        )
        epoch = collections.deque(epochs, maxlen=1).pop()  # the last
        if not np.isfinite(float(epoch.loss)):
            raise FloatingPointError(f"the loss is {float(epoch.loss)}")
        return setup, epoch.state.variables

    def run_cell(cell):
        found = [shared.get(part, fitted) for part in _parts(cell)]
        if recipe(cell.method).members:
            return step.judge_together(found, test)
        ((setup, variables),) = found
        return step.judge(setup, variables, test)

    return run_cell


def _encoder(setup, seed, image_shape, run):
    """A model's variables, of which the encoder is a run's.

    Without one it is random: the one that a pre-training with this seed starts from.
    """
    variables = loop.init(setup, seed, image_shape)
    return variables if run is None else starting.from_run(run, variables).variables


def _make_probe(config, starts, train, test, validation) -> Run:
    """A function that tells a cell's classes from frozen features, and judges."""
    shapes = labelled.shapes_of(config, train)
    # As the test is: squares of chips, of which the classes are those of the squares.
    learned, validated = (
        chips and labelled.as_squares(config, chips) for chips in (train, validation)
    )
    each = np.arange(len(learned.targets) // len(train.targets))  # the squares of a chip

    @functools.lru_cache(maxsize=1)
    def features_of(method, repetition):
        its = methods.config_of(config, method, shapes)
        setup = loop.make_setup(its, shapes, len(train.targets))
        chips = learned, test, validated
        if method == "statistics":
            return [c and step.statistics(setup, c) for c in chips]
        image_shape = labelled.image_shape_of(its, train)
        run = starts[methods.pretraining_of(method), repetition]
        variables = _encoder(setup, config.seed + repetition, image_shape, run)
        return [c and step.features(setup, variables, c) for c in chips]

    def run_cell(cell):
        of_learned, of_test, of_validated = features_of(cell.method, cell.repetition)
        first = order_of(config, train, cell.repetition, cell.draw)[: cell.labels]
        rows = (first[:, None] * len(each) + each).ravel()
        classify = probes.fit(
            config.finetune.head,
            probes.Examples(of_learned[rows], metrics.commonest_class(learned.targets[rows])),
            validated and probes.Examples(of_validated, metrics.commonest_class(validated.targets)),
        )
        if classify is None:
            raise InputError(f"the {cell.labels} labelled chips are of one class")
        classes = classify(of_test).astype(np.uint8)
        count = config.finetune.num_classes
        return metrics.confusion_matrix(test.targets, classes, count), classes

    return run_cell
