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
from elev_ssl_jax.recipes import ELSEWHERE, OF_CHIPS, goes_with


class Task(NamedTuple):
    """What encoders are judged by."""

    config: Any  # of an experiment with this head
    train: labelled.Labelled
    test: labelled.Labelled
    validation: labelled.Labelled | None


def configs_of(config: Any) -> dict[str, Any]:
    """The experiment of each of `config.experiment.tasks`, by its folder, or the only one.

    With `config.data.transfer`, each is done again on that ground, by encoders of the study's own.

    Methods that don't go with a task are left out of it. Where one task tells pixels, the data have
    masks, and tasks that tell chips learn the masks' commonest class.
    """
    tasks = config.experiment.tasks
    if not tasks:
        return {config.finetune.head: config}
    masks = any(task not in OF_CHIPS for task in tasks)
    found = {}
    for task in tasks:
        its = config.copy_and_resolve_references()
        its.experiment.tasks = ()
        its.experiment.methods = tuple(m for m in its.experiment.methods if goes_with(m, task))
        its.finetune.head = task
        its.finetune.target = "commonest" if masks and task in OF_CHIPS else ""
        found[task] = its
    if config.data.transfer.name:
        found |= {task + ELSEWHERE: _elsewhere(its) for task, its in found.items()}
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
    data.validation_split = ""
    config.experiment.split = other.split
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
    estimate = 0.0
    if budget:
        print("measuring steps ...")
        estimate = sum(
            cost.of_cells(task.config, task.train, task.test) for task in tasks.values()
        ) + cost.of_pretrainings(config, tasks, chips)
        print(
            f"a repetition takes about {estimate / 3600:.2f} h by measured steps, all {count} of "
            f"them {count * estimate / 3600:.2f} h; experiment.budget_hours is "
            f"{config.experiment.budget_hours:g}"
        )
        if estimate > budget:
            raise InputError(
                f"config.experiment.budget_hours is {config.experiment.budget_hours:g}, but one "
                f"repetition of all methods takes about {estimate / 3600:.2f} h; raise it, or take "
                "fewer methods, tasks or epochs"
            )

    def never(settings, folder):
        raise InputError(f"{folder.name} is not pre-trained")

    failed: list[str] = []
    for repetition in range(count):
        spent = time.monotonic() - begun
        if budget and repetition and spent + max(estimate, spent / repetition) > budget:
            print(f"{repetition} of {count} repetitions fill the budget; the same command goes on")
            break
        for name, task in tasks.items():
            lines = experiment.run(
                task.config,
                workdir / name,
                task.train,
                task.test,
                never if name.endswith(ELSEWHERE) else pretrain,
                validation=task.validation,
                repetitions=(repetition,),
                pretrained_in=workdir,
                **facts,
            )
            failed += [f"{name}: {line}" for line in lines]
    return failed
