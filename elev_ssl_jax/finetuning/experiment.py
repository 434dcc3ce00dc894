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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from elev_ssl_jax import checks, files, metrics, pictures, sensors, storage
from elev_ssl_jax.config import class_names
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import cells, labelled, loop, methods, single
from elev_ssl_jax.recipes import recipe
from elev_ssl_jax.runtime import checkpoint, run_folder, starting


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
    config = check(config, train, test, validation)
    wanted, names = cells.every(config), class_names(config)
    data = labelled.fingerprints(*(_with_inputs(config, chips) for chips in (train, test)))
    if unlabelled is not None:
        data["pretrain"] = unlabelled
    if config.experiment.pretrain.init_from:
        data["start"] = starting.descent_of(storage.run_path(config.experiment.pretrain.init_from))
    for method in config.experiment.methods:
        if (folder := methods.given_encoder(config, method)) is not None:
            data[methods.pretraining_of(method)] = checkpoint.fingerprint(folder)
    run_folder.claim(workdir, config, data)
    files.write_text(workdir / "splits.json", json.dumps(splits) + "\n")
    (workdir / "cells").mkdir(parents=True, exist_ok=True)
    test = labelled.as_judged(config, test)
    _write_panel(config, workdir, test)

    todo = [cell for cell in wanted if not result_path(workdir, cell).exists()]
    print(f"{len(wanted)} fine-tunings, {len(wanted) - len(todo)} of them done already")
    if repetitions is not None:
        todo = [cell for cell in todo if cell.repetition in repetitions]
    pictured = {(c.method, c.labels): c for c in reversed(wanted)}.values()  # the first of each
    failed: list[str] = []
    runs: dict[tuple[str, int], Path | None] = {}  # the pre-trainings, by method and repetition

    def work(run: cells.Run) -> None:
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

    runners = cells.make_runs(config, runs, train, test, validation, todo)
    for repetition, some in itertools.groupby(todo, lambda cell: cell.repetition):
        its = list(some)
        needed = (
            methods.pretraining_of(m) for cell in its for m in methods.members_of(cell.method)
        )
        for method in dict.fromkeys(needed):
            try:
                settings = methods.config_of(config, method, labelled.shapes_of(config, train))
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


def check(
    config: Any,
    train: labelled.Labelled,
    test: labelled.Labelled,
    validation: labelled.Labelled | None = None,
    bands: Mapping[str, int] | None = None,
) -> Any:
    """The configuration with what it leaves to the data, refused if that won't do.

    Args:
      config: Of an experiment.
      train: As of `run`, and so on.
      test: Likewise.
      validation: Likewise.
      bands: Of the images that methods are pre-trained on, where that is known.

    Raises:
      InputError: Labels can't be learned from, or an encoder doesn't fit the chips.
    """
    config = methods.with_counts(labelled.with_classes(config, train, test), len(train.targets))
    _check_labels(config, train, test)
    if validation is not None and (metrics.commonest_class(validation.targets) < 0).all():
        raise InputError(
            f"config.data.validation_split={config.data.validation_split!r} of {config.data.name} "
            "has no chip with a class; name another"
        )
    shapes = labelled.shapes_of(config, train)
    for method in dict.fromkeys(
        m for name in config.experiment.methods for m in methods.members_of(name)
    ):
        settings = methods.config_of(config, method, shapes)
        checks.check(methods.finetune_config(settings), of_experiment=True)
        image_shape = labelled.image_shape_of(settings, train)
        seen = (bands or {}).get(method, image_shape[-1])
        if seen != image_shape[-1]:
            raise InputError(
                f"{method} is pre-trained on {seen} bands, but of {config.data.name} it would see "
                f"{image_shape[-1]}; choose as many by config.data.transfer.bands"
            )
        if (folder := methods.given_encoder(config, method)) is not None:
            setup = loop.make_setup(settings, shapes, len(train.targets))
            made = functools.partial(loop.init, setup, 0, image_shape)
            starting.from_run(folder, jax.eval_shape(made))
    return config


def _check_labels(config, train, test):
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
        drawn_in = {(cell.repetition, cell.draw) for cell in cells.every(config)}
        for repetition, draw in sorted(drawn_in):
            order = cells.order_of(config, train, repetition, draw)
            drawn = train.take(order[:least])
            labelled.check_chips(config, drawn, drawn)  # the test chips are fine


def _pretrained(config, workdir, method, repetition, pretrain) -> Path | None:
    """The folder of a method's pre-training, run now if it is not complete."""
    if not recipe(method).pretrained:
        return methods.given_encoder(config, method)
    done = pretraining_path(workdir, method, repetition)
    folder = done.parent
    if not done.exists():
        print(f"\npre-training: {folder.name}")
        pretrain(methods.pretrain_config(config, repetition), folder)
    return folder


def _with_inputs(config, chips):
    """Chips with the experiment's inputs alone, not those that single methods see beside them."""
    return chips._replace(inputs={name: chips.inputs[name] for name in config.data.inputs})


def pretraining_path(workdir: Path, method: str, repetition: int) -> Path:
    """The file that is there when a pre-training is done."""
    return workdir / "pretrain" / f"{method}-{repetition}" / "results.json"


def result_path(workdir: Path, cell: cells.Cell) -> Path:
    """The file that is there when a fine-tuning is done."""
    return workdir / "cells" / f"{cell.name}.json"


def _save(workdir, cell, result, test, classes, *, with_classes) -> None:
    """Writes a cell's results; the JSON file, which says that they are there, comes last."""
    path = result_path(workdir, cell)
    if with_classes:
        again = "delete it, and give the same command again"
        (chosen,) = files.read_arrays(workdir / "panel.npz", again, "chosen")
        with files.new_file(path.with_suffix(".npy")) as partial:
            np.save(partial, classes[chosen])
    single.save_by_block(path.with_suffix(".npz"), result["confusion_matrix"], test, classes)
    files.write_text(path, json.dumps(result) + "\n")


def _write_panel(config, workdir, test) -> None:
    """Some test chips to picture: those whose classes are mixed most, or just the first."""
    path = workdir / "panel.npz"
    flat = np.asarray(test.targets).reshape(len(test.targets), -1)
    counts = np.stack([(flat == i).sum(axis=1) for i in range(config.finetune.num_classes)])
    largest = counts.max(axis=0) / np.maximum(counts.sum(axis=0), 1)
    chosen = np.argsort(largest, kind="stable")[: single.PICTURED]
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
