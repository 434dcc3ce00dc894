"""Several tasks that judge the same pre-trainings, a whole repetition of all of them at a time.

A study's folder holds `pretrain/`, and of each task a folder that is an experiment's. It can be
stopped anywhere and gone on with; between repetitions every method has as many results as any
other, in every task.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import cost, experiment, labelled
from elev_ssl_jax.recipes import ELSEWHERE, GIVEN, OF_CHIPS, goes_with


class Task(NamedTuple):
    """What encoders are judged by."""

    config: Any  # of an experiment with this head
    train: labelled.Labelled
    test: labelled.Labelled
    validation: labelled.Labelled | None
    splits: dict[str, int] | None = None  # how many chips each split of its data has


def configs_of(config: Any) -> dict[str, Any]:
    """The experiment of each of `config.experiment.tasks`, by its folder, or the only one.

    With `config.data.transfer`, each is done again on that ground, by encoders of the study's own;
    not by those that it is given, whose sensor may be another than that ground's.

    Methods that don't go with a task are left out of it. Where one task tells pixels, the data have
    masks, and tasks that tell chips learn the masks' commonest class, as they do where
    `config.finetune.target` says so.
    """
    tasks = config.experiment.tasks
    if not tasks:
        return {config.finetune.head: config}
    pixels = any(task not in OF_CHIPS for task in tasks)
    masks = pixels or config.finetune.target == "commonest"
    found = {}
    for task in tasks:
        its = config.copy_and_resolve_references()
        its.experiment.tasks = ()
        its.experiment.methods = tuple(m for m in its.experiment.methods if goes_with(m, task))
        its.finetune.head = task
        its.finetune.target = "commonest" if masks and task in OF_CHIPS else ""
        found[task] = its
    if config.data.transfer.name:
        elsewhere = {task + ELSEWHERE: _elsewhere(its) for task, its in found.items()}
        found |= {task: its for task, its in elsewhere.items() if its.experiment.methods}
    return found


def _elsewhere(config):
    """The same experiment on `config.data.transfer`."""
    config = config.copy_and_resolve_references()
    data, other = config.data, config.data.transfer
    data.name, data.dir = other.name, other.dir or data.dir
    data.inputs, data.bands = other.inputs or data.inputs, other.bands
    data.value_range, data.eval_split = other.value_range, other.eval_split
    data.mean = data.std = ("auto",) if data.std else ()
    data.nodata, data.rgb, data.near_infrared = (), (), ()
    data.validation_split, config.experiment.split = other.validation_split, other.split
    methods = config.experiment.methods
    config.experiment.methods = tuple(m for m in methods if not m.startswith(GIVEN))
    config.finetune.num_classes, config.finetune.classes = 0, ()
    return config


def run(
    config: Any,
    workdir: Path,
    tasks: dict[str, Task],
    pretrain: Callable[[Any, Path], None],
    chips: Any,
    **facts: Any,
) -> list[str]:
    """Runs what is missing, for as long as `config.experiment.budget_hours` lasts.

    Args:
      config: The study's configuration, checked.
      workdir: Where everything goes.
      tasks: By name.
      pretrain: Pre-trains by a configuration into a folder, or goes on there.
      chips: To pre-train on, which the time of a step is measured with; None if nothing is.
      **facts: For `experiment.run`.

    Returns:
      A line for each pre-training and cell that failed.

    Raises:
      InputError: The budget is less than one repetition takes, or as `experiment.run` says.
    """
    count, begun = config.experiment.pretrain_seeds, time.monotonic()
    budget = config.experiment.budget_hours * 3600
    left = _left(config, workdir, tasks, chips) if budget else [0.0] * count
    failures: dict[Path, Exception] = {}

    def once(settings, folder):  # not again for each of the tasks
        if folder not in failures:
            try:
                return pretrain(settings, folder)
            except Exception as error:
                failures[folder] = error
        raise failures[folder]

    def never(settings, folder):
        raise InputError(f"{folder.name} is not pre-trained")

    failed: list[str] = []
    for repetition in range(count):
        spent, thought = time.monotonic() - begun, sum(left[:repetition])
        slower = max(1.0, spent / thought) if thought else 1.0
        if thought and spent + slower * left[repetition] > budget:
            print(f"{repetition} of {count} repetitions fill the budget; the same command goes on")
            break
        for name, task in tasks.items():
            lines = experiment.run(
                task.config,
                workdir / name,
                task.train,
                task.test,
                never if name.endswith(ELSEWHERE) else once,
                validation=task.validation,
                splits=task.splits,
                repetitions=(repetition,),
                pretrained_in=workdir,
                **facts,
            )
            failed += [f"{name}: {line}" for line in lines]
    return failed


def _left(config, workdir, tasks, chips) -> list[float]:
    """Seconds that each repetition takes for what is not done yet, by measured steps.

    Raises:
      InputError: The first of them is beyond the budget.
    """
    print("measuring steps ...")
    pretrainings = cost.of_pretrainings(config, tasks, chips)
    fine_tunings = {n: cost.of_cells(its.config, its.train, its.test) for n, its in tasks.items()}

    def parts(repetition):
        found = {"pre-training": 0.0}
        for method, seconds in pretrainings.items():
            if not experiment.pretraining_path(workdir, method, repetition).exists():
                found["pre-training"] += seconds
        for name, its in fine_tunings.items():
            found[name] = sum(
                seconds
                for cell, seconds in its.items()
                if cell.repetition == repetition
                and not experiment.result_path(workdir / name, cell).exists()
            )
        return found

    hours = config.experiment.budget_hours
    every = [parts(repetition) for repetition in range(config.experiment.pretrain_seeds)]
    left = [sum(found.values()) for found in every]
    first = next((i for i, seconds in enumerate(left) if seconds), None)
    if first is None:
        return left
    each = ", ".join(f"{n} {seconds / 3600:.2f}" for n, seconds in every[first].items() if seconds)
    print(
        f"the next repetition takes about {left[first] / 3600:.2f} h by measured steps ({each}), "
        f"all that are left {sum(left) / 3600:.2f} h; experiment.budget_hours is {hours:g}"
    )
    if left[first] > 3600 * hours:
        raise InputError(
            f"config.experiment.budget_hours is {hours:g}, but one repetition of all methods takes "
            f"about {left[first] / 3600:.2f} h; raise it, or take fewer methods, tasks or epochs"
        )
    return left
