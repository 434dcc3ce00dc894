"""Which fields of a configuration matter: to a task, beside one another, and to a run's next."""

import math
from collections.abc import Sequence
from typing import Any

import ml_collections

from elev_ssl_jax.config import default
from elev_ssl_jax.recipes import FROZEN, PROBES, REGRESSION, made_of
from elev_ssl_jax.rules import is_named_range

# What each task reads, as fields or groups of fields. Another that is not at its default is
# refused: it would change nothing.
_OF_ALL = (
    *("task", "seed", "batch_size", "epochs", "optimizer", "checkpoint"),
    *("model.encoder", "model.fusion", "model.width", "model.dtype", "augment.crop_size"),
    *("data.name", "data.dir", "data.eval_split", "data.inputs", "data.value_range"),
    *(
        "data.mean",
        "data.std",
        "data.nodata",
        "data.rgb",
        "data.near_infrared",
        "data.bands",
        "data.scaling",
    ),
    *("data.elevation_scale",),
    *("data.resident_gib", "data.synthetic"),
)
_OF_PRETRAINING = (
    *("augment.contrastive", "augment.elevation", "loss", "log"),
    *("model.projection", "model.elevation_padding", "model.batchnorm_groups"),
    *(
        "objective.temperature",
        "objective.local",
        "objective.negatives",
        "data.probe_split",
        "data.validation_split",
    ),
)
_OF_FINETUNING = ("finetune", "augment.finetune")
TASKS = {
    "pretrain": (
        *(*_OF_ALL, *_OF_PRETRAINING, "microbatch_size", "data.split", "objective"),
        *("init_from", "init_bands", "init_decoder"),
    ),
    "finetune": (
        *_OF_ALL,
        *_OF_FINETUNING,
        "data.split",
        "data.validation_split",
        "init_from",
        "init_bands",
    ),
    "experiment": (*_OF_ALL, *_OF_PRETRAINING, *_OF_FINETUNING, "experiment", "data.transfer"),
}
# What only one part of the objective reads.
_OF_VIEWS = ("augment.contrastive", "augment.elevation")
_OF_ELEVATION = (
    *("augment.elevation", "model.elevation_padding"),
    *("loss.elevation_reduction", "loss.level_weight", "loss.relief_weight", "objective.target"),
)
_OF_CONTRAST = (
    *("augment.contrastive", "objective.temperature", "objective.lam", "objective.negatives"),
    "loss.chunk_size",
)
_OF_GLOBAL = ("objective.global_features", "model.projection")
_OF_LOCAL = ("objective.local",)
_OF_ANY_PRETRAINING = (
    *(
        "experiment.pretrain",
        "data.probe_split",
        "checkpoint",
        "log",
        "model.batchnorm_groups",
    ),
)
_OF_FROZEN_STAGE = ("finetune.frozen_learning_rate", "finetune.frozen_batchnorm")

# Fields that say where things lie and how often to report; a run may go on with others.
FREE_TO_CHANGE = (
    *("data.dir", "data.resident_gib", "checkpoint", "log"),
    *("experiment.methods", "experiment.encoders", "experiment.labels", "experiment.seeds"),
    *("experiment.pretrain_seeds", "experiment.metrics", "finetune.classes"),
    *("experiment.tasks", "experiment.budget_hours", "data.transfer", "finetune.patience"),
    "finetune.devices",
)
# Fields that may be left to the data, with a value that says so.
_OF_DATA = (
    *("data.value_range", "data.mean", "data.std", "data.nodata"),
    *("finetune.num_classes", "finetune.classes", "finetune.scale"),
)


def without_effect(config: ml_collections.ConfigDict) -> list[str]:
    """For each reason why fields that were set change nothing beside the others, a line.

    They are not refused: a sweep of alpha or lam has ends, where a part of the objective is gone.
    """
    known, flat = flatten(default()), flatten(config)
    recipes = made_of(config.experiment.methods) if config.task == "experiment" else []
    trained = [recipe for recipe in recipes if recipe.pretrained]
    runs = [flat | recipe.fields for recipe in trained] if recipes else [flat]

    def any_run(*parts: str, **values: Any) -> bool:
        """Whether some pre-training has all these parts, and objectives that are not `values`."""
        return any(
            all(_has(run, part) for part in parts)
            and all(run[f"objective.{name}"] != value for name, value in values.items())
            for run in runs
        )

    frozen = config.finetune.frozen_epochs > 0 or (
        config.task == "experiment" and any(m.endswith(FROZEN) for m in config.experiment.methods)
    )
    learns = config.task != "finetune" and any_run("elevation")
    reads_elevation = learns or "elevation" in config.data.inputs
    heads = {config.finetune.head, *config.experiment.tasks}
    epochs = {"": config.epochs or config.finetune.frozen_epochs}
    epochs["experiment.pretrain."] = config.experiment.pretrain.epochs
    groups = [
        ("elevation has no weight", _OF_ELEVATION, any_run("elevation")),
        ("nothing reads elevation", ("data.elevation_scale",), reads_elevation),
        ("contrast has no weight", _OF_CONTRAST, any_run("contrast")),
        ("the views are what two sensors see", _OF_VIEWS, any_run(positives="sensors")),
        ("the global contrast has no weight", _OF_GLOBAL, any_run("global")),
        ("maps have no head", ("model.projection",), any_run("global", global_features="map")),
        ("the local contrast has no weight", _OF_LOCAL, any_run("local")),
        ("nothing is pre-trained", _OF_ANY_PRETRAINING, len(runs) > 0),
        ("nothing is probed", ("data.validation_split",), len(runs) > 0 or bool(heads & {*PROBES})),
        ("there are no synthetic chips", ("data.synthetic.size",), config.data.synthetic.chips > 0),
        ("finetune.frozen_epochs is 0", _OF_FROZEN_STAGE, frozen),
        (
            f"finetune.loss is {config.finetune.loss}",
            ("finetune.focal_gamma",),
            config.finetune.loss == "focal",
        ),
        (
            f"finetune.loss is {config.finetune.loss}",
            ("finetune.label_smoothing",),
            "cross_entropy" in config.finetune.loss,
        ),
        (
            "no epoch is chosen",
            ("finetune.patience",),
            config.task == "finetune" and bool(config.data.validation_split),
        ),
        ("each cell has a device", ("finetune.devices",), config.task == "finetune"),
        (
            "nothing is regressed",
            ("finetune.scale",),
            config.finetune.head == REGRESSION,
        ),
        (
            "no quantity is learned",
            ("finetune.quantity",),
            config.finetune.head == REGRESSION and config.finetune.target == "quantity",
        ),
        (
            "no classes are learned",
            ("finetune.classes", "finetune.num_classes"),
            config.finetune.head != REGRESSION,
        ),
        (
            "finetune.target is not present",
            ("finetune.present_share",),
            config.finetune.target == "present",
        ),
        *(
            (f"there are {count} epochs", (drop,), flat[drop] < count)
            for prefix, count in epochs.items()
            for drop in [f"{prefix}optimizer.drop_epoch"]
        ),
        *(
            ("each method has its own", (name,), False)
            for name in flat
            for some in [trained if belongs(name, _OF_PRETRAINING) else recipes]
            if some and all(name in recipe.fields for recipe in some) and name != "data.inputs"
        ),
    ]
    found: dict[str, list[str]] = {}
    for name, value in flat.items():
        reasons = [why for why, fields, used in groups if not used and belongs(name, fields)]
        if reasons and not same(value, known[name]):
            found.setdefault(reasons[0], []).append(f"config.{name}={value!r}")
    return [f"no effect, since {why}: {', '.join(fields)}" for why, fields in found.items()]


def _has(run: dict[str, Any], part: str) -> bool:
    """Whether a part of the objective has a weight."""
    alpha, lam = run["objective.alpha"], run["objective.lam"]
    return {
        "elevation": alpha > 0,
        "contrast": alpha < 1,
        "global": alpha < 1 and lam > 0,
        "local": alpha < 1 and lam < 1,
    }[part]


def differences(
    config: ml_collections.ConfigDict, saved: dict[str, Any], *, data_known: bool = True
) -> list[str]:
    """Fields in which a saved run differs so that the two can't be one run, each as a sentence.

    Unless `data_known`, those that the configuration leaves to the data are passed over.
    """
    # A field that is newer than the saved run had its default value then.
    flat = flatten(default()) | flatten(ml_collections.ConfigDict(saved))
    # A run alone may go on for longer. The cells of an experiment are compared with one another.
    free = FREE_TO_CHANGE if config.task == "experiment" else (*FREE_TO_CHANGE, "epochs")
    return [
        f"{name} was {flat.get(name)!r} and is {value!r}"
        for name, value in flatten(config).items()
        if not belongs(name, free)
        and not same(value, flat.get(name))
        and (data_known or not _left_to_data(name, value))
    ]


def _left_to_data(name: str, value: Any) -> bool:
    by_sensor = name == "data.value_range" and all(map(is_named_range, value))
    return by_sensor or (name in _OF_DATA and _comparable(value) in (0, "auto", [], ["auto"]))


def belongs(name: str, fields: Sequence[str]) -> bool:
    """Whether a dotted name is one of the fields, or in one of the groups."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def flatten(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
    """All fields of a configuration by dotted names."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            fields |= flatten(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def same(one: Any, other: Any) -> bool:
    """JSON has no tuples, and NaN is not itself."""
    return _comparable(one) == _comparable(other)


def _comparable(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_comparable(v) for v in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else value
