"""The chips that a run reads, and what its configuration leaves to them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elev_ssl_jax import sensor_scale, storage
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import labelled
from elev_ssl_jax.recipes import REGRESSION, made_of
from elev_ssl_jax.runtime import sharding


def make_synthetic(config: Any, workdir: Path) -> None:
    """Makes the chips of `config.data.synthetic` in a run's folder, unless they are there."""
    from elev_ssl_jax.data import synthetic

    check_synthetic(config)
    if storage.in_bucket(workdir) and not sharding.alone():
        raise InputError(
            f"--workdir={workdir} can't hold the data of config.data.synthetic, and the processes "
            "share no other folder; name prepared data with --config.data.dir"
        )
    with sharding.together():
        if sharding.is_first():
            synthetic.prepare(config.data, workdir)


def check_synthetic(config: Any) -> None:
    """Refuses chips of a size that the encoders can't do with, before they are made."""
    from elev_ssl_jax.models import encoders
    from elev_ssl_jax.pretraining import elevation

    size = config.data.synthetic.size
    side = config.augment.crop_size or size
    if side > size:
        raise InputError(
            f"config.augment.crop_size is {side}; it must be at most {size}, as "
            "config.data.synthetic.size is"
        )
    runs: list[tuple[bool, dict]] = [(config.task == "pretrain", {})]
    if config.task == "experiment":
        runs = [(its.pretrained, its.fields) for its in made_of(config.experiment.methods)]
    for pretrained, its in runs:
        settings = config.copy_and_resolve_references()
        settings.update_from_flattened_dict(its)
        check = elevation.check_image_size if pretrained else encoders.check_size
        check(settings, side, side)


def find(config: Any, workdir: Path) -> None:
    """Sets `config.data` to the data that there are, or that will be made."""
    if config.data.synthetic.chips:
        from elev_ssl_jax.data import synthetic

        synthetic.point_to(config.data, workdir)
        return
    from elev_ssl_jax.data import source

    with sharding.together():
        name = source.find_name(config.data)
    if name != config.data.name:
        where = config.data.dir or "the default data.dir"
        print(f"note: {where} has no {config.data.name}, but {name}, which is taken")
        config.data.name = name


def check_apart(config: Any, field: str, split: str, counts: dict[str, int]) -> None:
    """Refuses to learn from chips that are validated on, or judged by.

    Args:
      config: The run's configuration.
      field: The field that names what is learned from.
      split: What it names.
      counts: How many chips each split of the data has.

    Raises:
      InputError: Two of them have chips in common.
    """
    from elev_ssl_jax.data import source

    known = {field: split}
    for name in ("validation_split", "eval_split"):
        if its := config.data[name]:
            for other, theirs in known.items():
                if count := source.shared(theirs, its, counts):
                    raise InputError(
                        f"config.{other}={theirs!r} and config.data.{name}={its!r} have {count} "
                        f"chips of {config.data.name} in common; choose them apart"
                    )
            known[f"data.{name}"] = its


def measure(config: Any, split: Any) -> None:
    """Sets what `config.data` leaves to the data, so that the run's own record has it."""
    from elev_ssl_jax.pretraining import loop

    if not config.data.nodata:
        config.data.nodata = split.nodata(config.data.inputs)
    if sensor_scale.is_open(config):
        config.data.update(sensor_scale.measure(config, loop.sample_of(split)))


def read_labelled(
    config: Any,
    split: str,
    more: Sequence[str] = (),
    kept: dict[Any, dict[str, Any]] | None = None,
) -> labelled.Labelled:
    """Chips of a split with their classes, and what `config` leaves to them.

    Args:
      config: The run's configuration, of which the fields that are left open are set.
      split: As `config.data.split`.
      more: Features beside the inputs.
      kept: Takes in what is read, from where it comes another time.

    Raises:
      InputError: The data don't have what is learned or seen, or contradict the configuration.
    """
    from elev_ssl_jax import sensors
    from elev_ssl_jax.data import source

    opened = source.open_split(config.data, split, exact=True)
    regressed = config.finetune.head == REGRESSION
    target = labelled.target_of(config)
    target = target if regressed or target == "label" else "mask"
    if regressed and target not in opened.features:
        other = sensors.QUANTITY in opened.features
        raise InputError(
            f"config.finetune learns {target}, but {config.data.name} has none"
            + f"; its {opened.quantity[0]} is learned by --config.finetune.target=quantity" * other
        )
    if target not in opened.features:
        if sensors.QUANTITY in opened.features:
            raise InputError(
                f"config.finetune learns a {target}, but {config.data.name} has no classes; cut "
                f"the chips with --labels, or learn their {opened.quantity[0]} by "
                "configs/finetune_elevation.py with --config.finetune.target=quantity"
            )
        raise InputError(
            f"config.finetune learns a {target}, but {config.data.name} has no "
            f"{target}; prepare the chips with --config classification for a class a chip, with "
            "--config segmentation for a class a pixel (a chip's commonest is learned by "
            "--config.finetune.target=commonest)"
        )
    sensors.check_names(config, opened.shapes)
    for name in more:
        if name not in opened.shapes:
            raise InputError(
                f"{split} of {config.data.name} has no {name}, which a method of "
                "config.experiment.methods sees"
            )
    if not regressed:
        name_classes(config, opened.classes)
    elif target == sensors.QUANTITY:
        config.finetune.quantity = config.finetune.quantity or opened.quantity
    measure_alike(config, config)
    measure(config, opened)
    # Older data don't say in which block of ground a chip lies.
    ground = [name for name in ("block", "tile") if name in opened.features][:1]
    names = dict.fromkeys((*config.data.inputs, *more))
    features = *names, target, *ground
    key = config.data.name, config.data.dir, split, features
    kept = {} if kept is None else kept
    arrays = kept[key] = kept.get(key) or opened.arrays(*features)
    return labelled.Labelled(
        {name: arrays[name] for name in names},
        arrays[target] if regressed else labelled.as_targets(arrays[target]),
        *(arrays[name] for name in ground),
    )


def name_classes(config: Any, names: tuple[str, ...]) -> None:
    """Sets the number and the names of the classes that `config.finetune` leaves to the data.

    Raises:
      InputError: They contradict the data.
    """
    settings = config.finetune
    there = f"{config.data.name} has {len(names)}: {', '.join(names)}"
    if names and settings.num_classes not in (0, len(names)):
        raise InputError(
            f"config.finetune.num_classes is {settings.num_classes}, but {there}; leave it at 0"
        )
    if names and tuple(settings.classes) not in ((), names):
        raise InputError(
            f"config.finetune.classes is {', '.join(settings.classes)}, but {there}; leave it at ()"
        )
    settings.classes = tuple(settings.classes) or names
    # Data that have no names for their classes are from when there were always two.
    settings.num_classes = settings.num_classes or len(settings.classes) or 2


def measure_alike(config: Any, settings: Any, workdir: Path | None = None) -> None:
    """What `config.data` asks to be measured is what the run has that is started from.

    Images of other bands have a scale of their own, which is left to `measure`.

    Args:
      config: The run's configuration, which is changed.
      settings: Has the fields `init_from`, the run that is started from, and `init_bands`.
      workdir: Of this run; if it has begun, it can do without the other.
    """
    from elev_ssl_jax.runtime import checkpoint

    if not settings.init_from or settings.init_bands:
        return
    auto = [n for n in ("value_range", "mean", "std") if sensor_scale.is_auto(config.data[n])]
    if auto:
        begun = workdir is not None and checkpoint.steps(workdir)
        _, about = checkpoint.about(
            workdir if workdir and begun else storage.run_path(settings.init_from)
        )
        theirs = about["config"]["data"]
        config.data.update({name: tuple(theirs.get(name, ())) for name in auto})
