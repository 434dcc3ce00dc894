"""The methods of an experiment: what each is configured by, and which labels it is given."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from elev_ssl_jax import files, metrics, sensors, storage
from elev_ssl_jax.config import default
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.recipes import FROZEN, GIVEN, recipe


def draw_labels(
    targets: np.ndarray, seed: int, repetition: int, draw: int, *, stratified: bool = False
) -> np.ndarray:
    """Positions of the labelled chips [N] in an order drawn from the three numbers alone.

    n labels are its first n. Where each chip has one class, chips change places within their class,
    so that the classes of the first n are those of the split's first n: as balanced as they are.
    In a `stratified` order one of each class comes first, and then the first n have all classes in
    the shares that they have in the whole; a chip's class is its label or its mask's commonest.

    Args:
      targets: Of all labelled chips, a class for each [N] or each pixel [N, H, W].
      seed: Of the experiment.
      repetition: Of the experiment.
      draw: Of the repetition.
      stratified: As `experiment.stratified`.
    """
    rng = np.random.default_rng([seed, repetition, draw])
    if stratified:
        commonest = metrics.commonest_class(targets)
        places = np.empty(len(commonest))
        for value in np.unique(commonest):
            mine = rng.permutation(np.flatnonzero(commonest == value))
            places[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
            if value >= 0:
                places[mine[0]] = 0
        return np.argsort(places, kind="stable")
    classes = targets if targets.ndim == 1 else np.zeros(len(targets))
    order = np.empty(len(targets), np.int64)
    for value in np.unique(classes):
        mine = np.flatnonzero(classes == value)
        order[mine] = rng.permutation(mine)
    return order


def pretraining_of(method: str) -> str:
    """The name of the pre-training that a method starts from: with others, it may share it."""
    return method.removesuffix(FROZEN)


def members_of(method: str) -> tuple[str, ...]:
    """The methods that an ensemble is made of; of any other the method itself."""
    return recipe(method).members or (method,)


def config_of(config: Any, method: str, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """An experiment's configuration as it is for one method.

    Args:
      config: The experiment's, of which nothing is left to the data.
      method: Of `experiment.methods`.
      shapes: Of the features of a chip.
    """
    result = config.copy_and_resolve_references()
    result.data.synthetic.chips = 0  # the experiment has made them
    fields = recipe(method).fields
    inputs = fields.get("data.inputs", tuple(config.data.inputs))
    result.data.update(sensors.of_inputs(config, inputs, shapes))
    result.update_from_flattened_dict(fields)
    result.data.inputs = (*inputs, *(n for n in recipe(method).also_sees if n not in inputs))
    if (folder := given_encoder(config, method)) is not None:
        result.update_from_flattened_dict(_as_it_was(folder))
    if method.endswith(FROZEN):
        if result.optimizer.drop_epoch:
            result.optimizer.drop_epoch += result.finetune.frozen_epochs
        result.finetune.frozen_epochs += result.epochs
        result.epochs = 0
    return result


def given_encoder(config: Any, method: str) -> Path | None:
    """The folder of the run that `experiment.encoders` has for a method, if it is one of those.

    Raises:
      InputError: It has none of that name.
    """
    name = pretraining_of(method)
    if not name.startswith(GIVEN):
        return None
    folders = dict(entry.split("=", 1) for entry in config.experiment.encoders)
    try:
        return storage.run_path(folders[name.removeprefix(GIVEN)])
    except KeyError:
        raise InputError(
            f"config.experiment.methods has {method}, but config.experiment.encoders names "
            f"{', '.join(folders) or 'nothing'}; give it {name.removeprefix(GIVEN)}=FOLDER, a run "
            "or what convert --to run makes"
        ) from None


def _as_it_was(folder):
    """The fields that an encoder needs to see what it was trained to see."""
    try:
        saved = files.read_json(folder / "config.json", "name a run's folder")
        # A run of an earlier version hasn't every field, and was as the defaults are.
        theirs = {**default().data, **saved["data"]}
        data = {f"data.{n}": theirs[n] for n in ("value_range", "mean", "std", "scaling")}
        model = {f"model.{n}": saved["model"][n] for n in ("encoder", "width")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"config.experiment.encoders names {folder}, which is not a run's folder ({error})"
        ) from error
    return {n: tuple(v) if isinstance(v, list) else v for n, v in {**data, **model}.items()}


def finetune_config(config: Any) -> Any:
    """The configuration of a fine-tuning, of one that `config_of` gives for its method."""
    result = default()
    result.task, result.batch_size, result.epochs = "finetune", config.batch_size, config.epochs
    for name in ("data", "finetune", "optimizer", "checkpoint"):
        result[name].update(config[name])
    for name in ("probe_split", "validation_split", "transfer"):
        result.data[name] = default().data[name]
    result.data.split = config.experiment.split
    for name in ("encoder", "fusion", "width", "dtype"):
        result.model[name] = config.model[name]
    result.augment.finetune.update(config.augment.finetune)
    result.augment.crop_size = config.augment.crop_size
    return result


def pretrain_config(config: Any, repetition: int = 0) -> Any:
    """The configuration of a pre-training, of one that `config_of` gives for its method."""
    settings = config.experiment.pretrain
    result = default()
    for name in ("data", "augment", "model", "objective", "loss", "checkpoint", "log"):
        result[name].update(config[name])
    result.data.transfer = default().data.transfer
    result.augment.finetune.update(default().augment.finetune)
    result.data.name, result.data.split = settings.name or config.data.name, settings.split
    result.data.eval_split = settings.eval_split or config.data.eval_split
    result.seed = config.seed + repetition
    result.batch_size, result.epochs = settings.batch_size, settings.epochs
    result.init_from, result.init_bands = settings.init_from, settings.init_bands
    result.optimizer.update(settings.optimizer)
    return result


def with_counts(config: Any, chips: int) -> Any:
    """The configuration with numbers in place of shares in `experiment.labels`, of so many chips.

    Raises:
      InputError: Two are the same number.
    """
    labels = tuple(
        max(1, round(part * chips)) if isinstance(part, float) else part
        for part in config.experiment.labels
    )
    if len(set(labels)) < len(labels):
        raise InputError(
            f"config.experiment.labels is {config.experiment.labels}: of {chips} labelled chips "
            f"that is {labels}; leave one out"
        )
    config = config.copy_and_resolve_references()
    config.experiment.labels = labels
    return config
