from fnmatch import fnmatch

import numpy as np
import pytest

from elev_ssl_jax import checks, metrics
from elev_ssl_jax.config import (
    comparison,
    default,
    fine_tuning,
    fusion,
    two_sensors,
    with_variant,
)
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.fields import flatten, without_effect
from elev_ssl_jax.recipes import METRICS_OF_CLASSES, METRICS_OF_PRESENCE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("epochs", 0),
        ("task", "dance"),
        ("objective.alpha", 1.5),
        ("objective.alpha", float("nan")),
        ("objective.temperature", 0.0),
        ("data.dir", "gs://bucket/data"),
        ("data.transfer.dir", "s3://bucket/data"),
        ("init_from", "s3://bucket/run"),
        ("init_from", "gs://bucket"),
        ("experiment.encoders", ("a=s3://bucket/run",)),
        ("experiment.pretrain.init_from", "https://x.org/run"),
        ("loss.relief_weight", -1.0),
        ("model.elevation_padding", "wrap"),
        ("objective.lam", 1.5),
        ("objective.lam", -0.1),
        ("objective.global_features", "median"),
        ("objective.local.patches", 0),
        ("objective.local.patch_size", 0),
        ("objective.local.projection", (8,)),
        ("optimizer.name", "sgd"),
        ("optimizer.scaling", "cubic"),
        ("optimizer.warmup_epochs", 2.0),
        ("microbatch_size", 3),
        ("model.batchnorm_groups", 3),
        ("experiment.pretrain.optimizer.warmup_epochs", -1.0),
        ("experiment.pretrain_seeds", 0),
        ("experiment.label_draws", -1),
        ("experiment.seeds", 1001),
        ("data.value_range", (10.0, 10.0)),
        ("data.elevation_scale", 0.0),
        ("data.rgb", (0, 1)),
        ("augment.contrastive.crop_scale", (0.0, 1.0)),
        ("augment.contrastive.crop_ratio", (0.5, float("inf"))),
        ("augment.contrastive.crop_ratio", (1.0,)),
        ("augment.elevation.hue", 0.7),
        ("augment.elevation.flip", 1.2),
        ("model.encoder", "resnet1"),
        ("model.dtype", "float16"),
        ("model.width", -1.0),
        ("loss.elevation_reduction", "median"),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.weight_decay", float("inf")),
        ("augment.elevation.saturation", float("inf")),
        ("loss.relief_weight", float("inf")),
        ("data.resident_gib", float("nan")),
        ("data.resident_gib", -1.0),
        ("data.value_range", ("a", "b")),
        ("data.value_range", (1.0, 2.0, 3.0)),
        ("data.rgb", (0, 0, 1)),
        ("data.rgb", None),
        ("data.rgb", (0, -1, 1)),
        ("data.rgb", (0, 1.5, 2)),
        ("model.projection", (8.5, 8)),
        ("augment.contrastive.crop_scale", ("0.7", "1.0")),
        ("seed", 2**31),
        ("checkpoint.keep", 0),
    ],
)
def test_impossible_values_are_named(tiny, field, value):
    tiny.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=f"config.{field} is"):
        checks.check(tiny)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"finetune.loss": "hinge"}, "finetune.loss"),
        ({"finetune.label_smoothing": 1.5}, "finetune.label_smoothing"),
        ({"finetune.class_weights": (1.0, 0.0)}, "finetune.class_weights"),
        ({"finetune.class_weights": ("balanced", 1.0)}, "finetune.class_weights"),
        ({"finetune.class_weights": (1.0,), "finetune.target": "present"}, None),
        ({"finetune.loss": "focal", "finetune.target": "present"}, "finetune.loss"),
        ({"optimizer.encoder_scale": -1.0}, "optimizer.encoder_scale"),
        ({"finetune.head": "regression", "finetune.target": "mask"}, "finetune.target"),
        ({"finetune.target": "elevation"}, "finetune.target"),
        ({"finetune.head": "regression", "finetune.loss": "dice"}, "finetune.loss"),
        ({"finetune.head": "regression", "finetune.oversample": True}, "finetune.oversample"),
        ({"finetune.head": "regression", "finetune.num_classes": 4}, "finetune.num_classes"),
        ({"finetune.head": "regression", "finetune.scale": (10.0,)}, "finetune.scale"),
        ({"finetune.head": "regression", "finetune.scale": (1.0, 0.0)}, "finetune.scale"),
        (
            {"finetune.head": "regression", "data.inputs": ("image", "elevation")},
            "data.inputs",
        ),
        ({"init_bands": (0, 1)}, "init_bands"),
        ({"init_bands": (0, -1), "init_from": "runs/a"}, "init_bands"),
    ],
)
def test_impossible_fine_tunings_are_named(fields, named):
    config = fine_tuning("linear")
    checks.check(config)
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError, match=f"config.{named or 'finetune.class_weights'} is"):
        checks.check(config)


def test_a_decoder_to_start_from_belongs_to_elevation(tiny):
    tiny.init_decoder = True
    with pytest.raises(InputError, match=r"config.init_decoder is True; it must be False without"):
        checks.check(tiny)
    tiny.init_from = "runs/a"
    checks.check(tiny)
    tiny.objective.alpha = 0.0
    with pytest.raises(InputError, match=r"config.init_decoder is True"):
        checks.check(tiny)


def test_unknown_fields_are_refused(tiny):
    with pytest.raises(AttributeError, match="alpha"):
        tiny.objective.alhpa = 0.5
    with tiny.unlocked():
        tiny.objective.alhpa = 0.5
    with pytest.raises(InputError, match=r"config.objective.alhpa is unknown"):
        checks.check(tiny)


@pytest.mark.parametrize(
    ("task", "field", "value"),
    [
        ("experiment", "init_bands", (0,)),
        ("pretrain", "finetune.num_classes", 3),
        ("pretrain", "augment.finetune.flip", 0.0),
        ("pretrain", "experiment.seeds", 2),
        ("finetune", "objective.alpha", 0.3),
        ("finetune", "augment.contrastive.hue", 0.0),
        ("finetune", "loss.chunk_size", 8),
        ("finetune", "log.every_steps", 7),
        ("finetune", "data.probe_split", ""),
        ("finetune", "microbatch_size", 4),
        ("experiment", "objective.alpha", 0.3),
        ("experiment", "objective.lam", 0.3),
        ("experiment", "objective.global_features", "style"),
        ("experiment", "data.split", "unlabeled"),
        ("experiment", "init_from", "runs/a"),
        ("experiment", "microbatch_size", 4),
    ],
)
def test_a_field_that_the_task_does_not_use_is_refused(task, field, value):
    config = default()
    config.task = task
    checks.check(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=f"config.{field} is .*the task {task} doesn't use"):
        checks.check(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("experiment.methods", ("simclr", "simclr")),
        ("experiment.methods", ("moco",)),
        ("experiment.labels", (80, 80)),
        ("experiment.labels", ()),
        ("experiment.labels", (80.5,)),
        ("experiment.metrics", ("beauty",)),
        ("experiment.metrics", ("micro_f1",)),
        ("experiment.labels", (0.1, 1.5)),
        ("seed", 2**31 - 1000),
    ],
)
def test_impossible_experiments_are_named(field, value):
    config = comparison("linear")
    checks.check(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=f"config.{field} is"):
        checks.check(config)


def test_every_field_has_a_rule_or_names_data_or_folders():
    patterns = (*checks._RULES, "model.encoder", "data*.dir", "*split")
    patterns = (*patterns, "data*.name", "experiment.pretrain.name", "*init_from")
    for field in flatten(default()):
        assert any(fnmatch(field, pattern) for pattern in patterns), field


def test_a_configuration_without_a_field_is_refused(tiny):
    with tiny.unlocked():
        del tiny.objective.alpha
    with pytest.raises(InputError, match=r"config.objective.alpha is missing"):
        checks.check(tiny)


@pytest.mark.parametrize("bounds", [(float("nan"), 1.0), (0.0, float("nan")), (0.0, float("inf"))])
def test_ranges_are_finite(tiny, bounds):
    tiny.data.value_range = bounds
    with pytest.raises(InputError, match=r"config.data.value_range is"):
        checks.check(tiny)


def test_synthetic_chips_and_ones_own_exclude_each_other(tiny):
    tiny.data.synthetic.size = 32
    checks.check(tiny)
    (line,) = without_effect(tiny)
    assert line == "no effect, since there are no synthetic chips: config.data.synthetic.size=32"
    tiny.data.synthetic.chips = 100
    checks.check(tiny)
    assert without_effect(tiny) == []
    tiny.data.dir = "prepared"
    with pytest.raises(InputError, match=r"config.data.dir is 'prepared'.*synthetic.chips=0"):
        checks.check(tiny)


def test_crops_of_one_size_are_allowed(tiny):
    tiny.augment.contrastive.crop_scale = (1.0, 1.0)
    checks.check(tiny)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.inputs", ()),
        ("data.inputs", ("elevation",)),
        ("data.inputs", ("elevation", "image")),
        ("data.inputs", ("s2", "s2")),
        ("data.value_range", ()),
        ("data.value_range", ((0.0, 1.0), (2.0, 1.0))),
        ("data.value_range", ("measure",)),
        ("data.std", (0.0,)),
        ("data.std", ("x",)),
        ("data.mean", (1.0,)),  # without data.std
        ("finetune.num_classes", 1),
    ],
)
def test_impossible_inputs_are_named(tiny, field, value):
    if field.startswith("finetune"):
        tiny = fine_tuning("unet")
    tiny.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=f"config.{field} is"):
        checks.check(tiny)


def test_inputs_that_are_possible(tiny):
    tiny.data.inputs = ("s2", "s1", "elevation")
    tiny.data.value_range = ((0.0, 1.0), (-25.0, 0.0))
    tiny.data.mean, tiny.data.std = ("auto",), (1.0, 2.0)
    checks.check(tiny)
    tiny.data.value_range = ("auto",)
    checks.check(tiny)


def test_what_does_not_go_together_is_named():
    for fields, said in (
        ({"finetune.head": "unet", "finetune.target": "present"}, "finetune.target is 'present'"),
        ({"finetune.head": "swin_unet"}, "model.encoder is 'resnet18'; it must be swin_t"),
        ({"finetune.drop_sensor": 0.5}, "finetune.drop_sensor is 0.5; it must be 0 with a single"),
        ({"optimizer.schedule": "cosine", "optimizer.drop_epoch": 5}, "optimizer.drop_epoch is 5"),
        ({"epochs": 0, "finetune.frozen_epochs": 0}, "epochs is 0; it must be 1 or more"),
        ({"data.bands": (0, 1), "data.rgb": (0, 1, 2)}, "data.rgb is .* among data.bands"),
    ):
        config = fine_tuning("linear")
        checks.check(config)
        config.update_from_flattened_dict(fields)
        with pytest.raises(InputError, match=said):
            checks.check(config)
    config = comparison("linear")
    config.experiment.methods, config.finetune.target = ("ensemble",), "present"
    with pytest.raises(InputError, match="one class a chip or pixel with ensemble"):
        checks.check(config)


def test_an_experiment_compares_classes():
    config = comparison("unet")
    checks.check(config)
    config.finetune.head = "regression"
    with pytest.raises(InputError, match=r"finetune.head is 'regression'; .* compares classes"):
        checks.check(config)


def test_metrics_suit_what_an_experiment_learns():
    config = fusion("present", ("late_fusion",))
    for target, wrong in (("present", "mean_recall"), ("commonest", "micro_f1")):
        config.finetune.target, config.experiment.metrics = target, ("macro_f1", "accuracy")
        checks.check(config)
        config.experiment.metrics = ("accuracy", wrong)
        with pytest.raises(InputError, match=f"config.experiment.metrics is .*target={target}"):
            checks.check(config)
    counts = np.array([[3, 1], [0, 2]])
    assert set(metrics.scores(counts)) == set(METRICS_OF_CLASSES)
    assert set(metrics.presence_scores([counts])) == set(METRICS_OF_PRESENCE)


def test_methods_have_the_sensors_that_they_see():
    config = fusion("commonest", ("simclr_rgb", "ensemble"))
    checks.check(config)
    config.data.inputs, config.data.value_range = ("s2",), (0.0, 1e4)
    with pytest.raises(InputError, match=r"data.inputs is \('s2',\).* s1, s2, which UNet sees"):
        checks.check(config)
    config.experiment.methods = ("simclr_rgb",)
    checks.check(config)
    config = comparison("linear")
    config.experiment.methods = ("random", "only_s1")
    with pytest.raises(InputError, match=r"data.inputs is .* with s1, which OnlySen-1 sees"):
        checks.check(config)


@pytest.mark.parametrize("inputs", [("sar", "msi"), ("image", "s2")])
def test_made_up_scenes_have_sensors_of_their_own(inputs):
    config = with_variant(two_sensors(), "demo")
    checks.check(config)
    config.data.inputs, config.data.value_range = inputs, ("auto",)
    with pytest.raises(InputError, match=r"data.inputs is .* s1 and s2, of synthetic chips"):
        checks.check(config)
