"""Many runs: every method pre-trained, then fine-tuned for each label count and seed, repeatedly.

A repetition draws anew what is left to chance: each method's pre-training (for `random` the
encoder's initial weights) and, if `experiment.label_draws` says so, the labelled chips. Its
fine-tuning seeds and label draws are the same for every method, and of no other repetition, so that
methods are compared within a repetition and repetitions are independent.

A cell is one fine-tuning. Its result is a file of its own, and a cell with a file is not run
again, so that an experiment can be stopped anywhere, and widened later.
"""

import collections
import functools
import itertools
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from elev_ssl_jax import files, metrics, pictures, probes, sensors
from elev_ssl_jax.config import SEEDS_APART, class_names
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import labelled, loop, methods, step
from elev_ssl_jax.recipes import PROBES, recipe
from elev_ssl_jax.runtime import checkpoint, run_folder


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


def cells(config: Any) -> list[Cell]:
    """Every fine-tuning of an experiment: repetition by repetition, so that there are whole ones.

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


def run(
    config: Any,
    workdir: Path,
    train: labelled.Labelled,
    test: labelled.Labelled,
    pretrain: Callable[[Any, Path], None],
    *,
    validation: labelled.Labelled | None = None,
    repetitions: Sequence[int] | None = None,
    pretrained_in: Path | None = None,
    unlabelled: str | None = None,
    splits: dict[str, int] | None = None,
) -> list[str]:
    """Runs what is missing. The results, `cells/*` and what lies beside, are for `report`.

    A cell's results are NAME.json; NAME.npz, a confusion matrix for each block of test chips where
    `test.groups` says which they are; and, of one cell a method, NAME.npy, classes to picture.

    Args:
      config: The experiment's configuration, checked.
      workdir: Where everything goes.
      train: Labelled chips; n labels are the first n, or drawn from all.
      test: Chips to judge by.
      pretrain: Pre-trains by a configuration into a folder, or goes on there.
      validation: Chips that a linear probe's C is chosen on; None chooses within the labelled.
      repetitions: Those to run; None is all.
      pretrained_in: The folder that has `pretrain/`, if it isn't `workdir`.
      unlabelled: Fingerprint of the chips that methods are pre-trained on, if any is.
      splits: How many chips each split of the data has, where that is known.

    Returns:
      A line for each pre-training and cell that failed.

    Raises:
      InputError: Chips and configuration don't fit each other, or the folder holds cells of an
        earlier version.
    """
    _refuse_older(workdir)
    config = methods.with_counts(labelled.with_classes(config, train, test), len(train.targets))
    wanted, names = cells(config), class_names(config)
    _check_labels(config, train, test, wanted)
    data = labelled.fingerprints(*(_with_inputs(config, chips) for chips in (train, test)))
    if unlabelled is not None:
        data["pretrain"] = unlabelled
    run_folder.claim(workdir, config, data)
    files.write_text(workdir / "splits.json", json.dumps(splits) + "\n")
    (workdir / "cells").mkdir(parents=True, exist_ok=True)
    test = labelled.as_judged(config, test)
    _write_panel(config, workdir, test)

    todo = [cell for cell in wanted if not _result_path(workdir, cell).exists()]
    print(f"{len(wanted)} fine-tunings, {len(wanted) - len(todo)} of them done already")
    if repetitions is not None:
        todo = [cell for cell in todo if cell.repetition in repetitions]
    pictured = {(c.method, c.labels): c for c in reversed(wanted)}.values()  # the first of each
    failed: list[str] = []
    runs: dict[tuple[str, int], Path | None] = {}  # the pre-trainings, by method and repetition
    shared = _Shared(todo)

    def work(run: Callable[[Cell], Any]) -> None:
        while True:
            try:
                cell = queue.popleft()
            except IndexError:
                return
            try:
                matrix, classes = run(cell)
                result = cell._asdict() | {"data": data} | metrics.summary(matrix, names)
                _save(workdir, cell, result, test, classes, with_classes=cell in pictured)
            except Exception as error:  # the other cells go on
                failed.append(f"{cell.name}: {_reason(error)}")
            bar.update()

    # A cell is too small for two devices, but there are many cells.
    if config.finetune.head in PROBES:
        runners = [_make_probe(config, runs, train, test, validation)]
    else:
        runners = [
            _make_run(config, runs, train, test, shared, device) for device in jax.local_devices()
        ]
    for repetition, some in itertools.groupby(todo, lambda cell: cell.repetition):
        its = list(some)
        needed = (
            methods.pretraining_of(m) for cell in its for m in methods.members_of(cell.method)
        )
        for method in dict.fromkeys(needed):
            try:
                settings = methods.config_of(config, method, labelled.shapes_of(train))
                runs[method, repetition] = _pretrained(
                    settings, pretrained_in or workdir, method, repetition, pretrain
                )
            except Exception as error:  # the others go on
                failed.append(f"pre-training {method}-{repetition}: {_reason(error)}")
        queue = collections.deque(
            cell
            for cell in its
            if all(
                (methods.pretraining_of(m), repetition) in runs
                for m in methods.members_of(cell.method)
            )
        )
        with (
            tqdm(total=len(queue), unit=" cells", desc=f"fine-tuning, {repetition}") as bar,
            ThreadPoolExecutor(len(runners)) as pool,
        ):
            try:
                for worker in [pool.submit(work, run) for run in runners]:
                    worker.result()
            finally:
                queue.clear()  # interrupted: the cells under way are the last
    return failed


def _refuse_older(workdir):
    """Cells were METHOD-LABELS-SEED, and of a single pre-training."""
    for path in (workdir / "cells").glob("*.json"):
        if re.fullmatch(r"\w+-\d+-\d+", path.stem):
            raise InputError(
                f"{workdir} holds results of an earlier version ({path.name}); use another "
                "--workdir"
            )


def _check_labels(config, train, test, wanted):
    """Refuses, before anything runs, labels that can't be learned from, drawn ones included."""
    settings, least = config.experiment, min(config.experiment.labels)
    for labels in settings.labels:
        labelled.check_chips(config, train, test, labels)
    if settings.stratified:
        classes = np.unique(metrics.commonest_class(train.targets))
        if least < (count := int(np.sum(classes >= 0))):
            raise InputError(
                f"{least} of {len(train.targets)} labels are fewer than the {count} classes of "
                f"{config.data.name}, so that one would have none; ask for more"
            )
    if settings.label_draws:
        for repetition, draw in sorted({(c.repetition, c.draw) for c in wanted}):
            order = _order(config, train, repetition, draw)
            drawn = train.take(order[:least])
            labelled.check_chips(config, drawn, drawn)  # the test chips are fine


def _order(config, train, repetition, draw):
    """Positions of the labelled chips, of which n labels are the first n."""
    settings = config.experiment
    if not settings.label_draws:
        if not settings.stratified:
            return np.arange(len(train.targets))
        repetition = draw = 0
    return methods.draw_labels(
        train.targets, config.seed, repetition, draw, stratified=settings.stratified
    )


def _pretrained(config, workdir, method, repetition, pretrain) -> Path | None:
    """The folder of a method's pre-training, run now if it is not complete."""
    if not recipe(method).pretrained:
        return methods.given_encoder(config, method)
    folder = workdir / "pretrain" / f"{method}-{repetition}"
    if not (folder / "results.json").exists():
        print(f"\npre-training: {folder.name}")
        pretrain(methods.pretrain_config(config, repetition), folder)
    return folder


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


def _make_run(config, runs, train, test, shared, device) -> Callable[[Cell], Any]:
    """A function that runs a cell: its confusion matrix, and the predicted classes.

    Cells whose networks are alike share the compiled steps, those of one label draw the chips on
    the device, and those that start from one encoder its maps of the chips.
    """
    settings, shapes = config.experiment, labelled.shapes_of(train)
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
        first = _order(config, train, repetition, draw)[: max(settings.labels)]
        return loop.place(train.take(first), device)

    @functools.lru_cache(maxsize=1)
    def encoder_of(method, repetition):
        image_shape = labelled.image_shape_of(config_for(method), train)
        run = runs[methods.pretraining_of(method), repetition]
        return _encoder(setup_of(method), config.seed + repetition, image_shape, run)

    @functools.lru_cache(maxsize=1)
    def maps_of(method, repetition, draw, labels):
        inputs = chips_of(repetition, draw).inputs
        variables = encoder_of(method, repetition)
        chips = {name: inputs[name][:labels] for name in config_for(method).data.inputs}
        return loop.encode_views(setup_of(method), variables, chips, device)

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
            device=device,
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
        return loop.judge(setup, variables, test)

    return run_cell


def _encoder(setup, seed, image_shape, run):
    """A model's variables, of which the encoder is a run's.

    Without one it is random: the one that a pre-training with this seed starts from.
    """
    variables = loop.init(setup, seed, image_shape)
    return variables if run is None else checkpoint.load_encoder(run, variables)


def _make_probe(config, runs, train, test, validation) -> Callable[[Cell], Any]:
    """Likewise, for the heads that tell classes from frozen features."""
    shapes = labelled.shapes_of(train)

    @functools.lru_cache(maxsize=1)
    def features_of(method, repetition):
        its = methods.config_of(config, method, shapes)
        setup = loop.make_setup(its, shapes, len(train.targets))
        chips = train, test, validation
        if method == "statistics":
            return [c and step.statistics(setup, c) for c in chips]
        image_shape = labelled.image_shape_of(its, train)
        run = runs[methods.pretraining_of(method), repetition]
        variables = _encoder(setup, config.seed + repetition, image_shape, run)
        return [c and step.features(setup, variables, c) for c in chips]

    def run_cell(cell):
        learned, judged, validated = features_of(cell.method, cell.repetition)
        first = _order(config, train, cell.repetition, cell.draw)[: cell.labels]
        classify = probes.fit(
            config.finetune.head,
            probes.Examples(learned[first], metrics.commonest_class(train.targets[first])),
            validation and probes.Examples(validated, metrics.commonest_class(validation.targets)),
        )
        if classify is None:
            raise InputError(f"the {cell.labels} labelled chips are of one class")
        classes = classify(judged).astype(np.uint8)
        count = config.finetune.num_classes
        return metrics.confusion_matrix(test.targets, classes, count), classes

    return run_cell


def _with_inputs(config, chips):
    """Chips with the experiment's inputs alone, not those that single methods see beside them."""
    return chips._replace(inputs={name: chips.inputs[name] for name in config.data.inputs})


def _result_path(workdir, cell) -> Path:
    return workdir / "cells" / f"{cell.name}.json"


def _save(workdir, cell, result, test, classes, *, with_classes) -> None:
    """Writes a cell's results; the JSON file, which says that they are there, comes last."""
    path = _result_path(workdir, cell)
    if with_classes:
        chosen = np.load(workdir / "panel.npz")["chosen"]
        with files.new_file(path.with_suffix(".npy")) as partial:
            np.save(partial, classes[chosen])
    if test.groups is not None:
        matrices, blocks = metrics.confusion_matrices(
            test.targets,
            classes,
            len(result["confusion_matrix"]),
            test.groups,
            presence=np.ndim(result["confusion_matrix"]) == 3,
        )
        with files.new_file(path.with_suffix(".npz")) as partial:
            np.savez(partial, matrices=matrices, blocks=blocks)
    files.write_text(path, json.dumps(result) + "\n")


def _write_panel(config, workdir, test) -> None:
    """Some test chips to picture: those whose classes are mixed most, or just the first."""
    path = workdir / "panel.npz"
    flat = np.asarray(test.targets).reshape(len(test.targets), -1)
    counts = np.stack([(flat == i).sum(axis=1) for i in range(config.finetune.num_classes)])
    largest = counts.max(axis=0) / np.maximum(counts.sum(axis=0), 1)
    chosen = np.argsort(largest, kind="stable")[: loop.PICTURED]
    images = sensors.join(sensors.of(config), test.take(chosen).inputs)
    with files.new_file(path) as partial:
        np.savez(
            partial,
            chosen=chosen,
            images=pictures.displayable(np.asarray(images), sensors.colors(config)),
            targets=test.targets[chosen],
        )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
