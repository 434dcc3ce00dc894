import json
from fnmatch import fnmatch

import pytest

from elev_ssl_jax import checks
from elev_ssl_jax.config import comparison, default, fine_tuning
from elev_ssl_jax.errors import InputError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("epochs", 0),
        ("task", "dance"),
        ("objective.alpha", 1.5),
        ("objective.alpha", float("nan")),
        ("objective.temperature", 0.0),
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
        ("pretrain", "init_from", "/nowhere"),
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
    patterns = (*checks._RULES, "model.encoder", "init_from", "data.dir", "*split")
    patterns = (*patterns, "data.name", "experiment.pretrain.name")
    for field in checks._flat(default()):
        assert any(fnmatch(field, pattern) for pattern in patterns), field


def test_a_configuration_without_a_field_is_refused(tiny):
    with tiny.unlocked():
        del tiny.objective.alpha
    with pytest.raises(InputError, match=r"config.objective.alpha is missing"):
        checks.check(tiny)


LOCAL = "objective.local.patches"


@pytest.mark.parametrize(
    ("alpha", "lam", "ignored"),
    [
        (0.0, 1.0, {"loss.relief_weight", LOCAL}),
        (1.0, 1.0, {"objective.temperature", "model.projection", LOCAL}),
        (1.0, 0.3, {"objective.lam", "objective.temperature", "model.projection", LOCAL}),
        (0.5, 0.0, {"model.projection"}),
        (0.5, 0.5, set()),
    ],
)
def test_what_a_method_does_not_use_is_said(alpha, lam, ignored):
    config = default()
    config.objective.alpha, config.objective.lam = alpha, lam
    config.loss.relief_weight = 20.0
    config.objective.temperature = 0.1
    config.model.projection = (64, 64)
    config.objective.local.patches = 2
    checks.check(config)
    said = checks.without_effect(config)
    assert {line.split()[0].removeprefix("config.") for line in said} == ignored
    assert all("has no effect: " in line for line in said)


def test_what_no_method_of_an_experiment_uses_is_said():
    config = comparison("linear")
    config.loss.relief_weight = 20.0
    config.finetune.frozen_batchnorm = "training"
    assert checks.without_effect(config) == []
    config.experiment.methods = ("random", "simclr")
    config.finetune.frozen_epochs = 0
    fields = [line.split()[0] for line in checks.without_effect(config)]
    assert fields == ["config.loss.relief_weight", "config.finetune.frozen_batchnorm"]
    config.experiment.pretrain.epochs = 7
    assert len(checks.without_effect(config)) == 2
    config.experiment.methods = ("random",)
    said = checks.without_effect(config)
    assert (
        "config.experiment.pretrain.epochs is 7 and has no effect: nothing is pre-trained" in said
    )


@pytest.mark.parametrize("task", checks.TASKS)
def test_every_field_belongs_to_a_task_and_every_entry_is_a_field(task):
    fields = checks._flat(default())
    for entry in checks.TASKS[task]:
        assert any(checks._belongs(field, (entry,)) for field in fields), entry
    used = [entry for entries in checks.TASKS.values() for entry in entries]
    assert all(checks._belongs(field, used) for field in fields)


@pytest.mark.parametrize("bounds", [(float("nan"), 1.0), (0.0, float("nan")), (0.0, float("inf"))])
def test_ranges_are_finite(tiny, bounds):
    tiny.data.value_range = bounds
    with pytest.raises(InputError, match=r"config.data.value_range is"):
        checks.check(tiny)


def test_synthetic_chips_and_ones_own_exclude_each_other(tiny):
    tiny.data.synthetic.size = 32
    checks.check(tiny)
    (line,) = checks.without_effect(tiny)
    assert line.startswith("config.data.synthetic.size is 32 and has no effect")
    tiny.data.synthetic.chips = 100
    checks.check(tiny)
    assert checks.without_effect(tiny) == []
    tiny.data.dir = "prepared"
    with pytest.raises(InputError, match=r"config.data.dir is 'prepared'.*synthetic.chips=0"):
        checks.check(tiny)


def test_crops_of_one_size_are_allowed(tiny):
    tiny.augment.contrastive.crop_scale = (1.0, 1.0)
    checks.check(tiny)


def test_cells_of_an_experiment_have_one_protocol(tiny):
    tiny.task = "experiment"
    saved = json.loads(tiny.to_json_best_effort())
    tiny.epochs += 1
    assert checks.differences(tiny, saved) == ["epochs was 2 and is 3"]


def test_differences_name_what_makes_another_run(tiny):
    saved = json.loads(tiny.to_json_best_effort())
    assert checks.differences(tiny, saved) == []
    tiny.epochs = 7
    tiny.data.dir = "elsewhere"
    tiny.log.every_steps = 3
    assert checks.differences(tiny, saved) == []
    tiny.objective.alpha = 0.25
    assert checks.differences(tiny, saved) == ["objective.alpha was 0.5 and is 0.25"]


def test_an_experiment_may_be_widened(tiny):
    saved = json.loads(tiny.to_json_best_effort())
    tiny.experiment.pretrain_seeds = 5
    assert checks.differences(tiny, saved) == []
    tiny.experiment.label_draws = 1  # the first labels are another experiment
    assert checks.differences(tiny, saved) == ["experiment.label_draws was 0 and is 1"]


@pytest.mark.parametrize(
    ("field", "measured", "left", "other"),
    [
        ("finetune.num_classes", 3, 0, 2),
        ("data.value_range", ((1.0, 2.0), (3.0, 4.0)), ("auto",), (0.0, 6000.0)),
        ("data.value_range", (1.0, 2.0), "auto", (1.0, 3.0)),
        ("data.std", (5.0,), ("auto",), (6.0,)),
        ("data.nodata", (0.0,), (), (1.0,)),
    ],
)
def test_what_is_left_to_the_data_is_compared_when_they_are_known(
    tiny, field, measured, left, other
):
    tiny.update_from_flattened_dict({field: measured})
    saved = json.loads(tiny.to_json_best_effort())
    for value, before, then in ((measured, 0, 0), (left, 0, 1), (other, 1, 1)):
        tiny = tiny.copy_and_resolve_references()
        with tiny.ignore_type():
            tiny.update_from_flattened_dict({field: value})
        assert len(checks.differences(tiny, saved, data_known=False)) == before
        assert len(checks.differences(tiny, saved)) == then


def test_a_sensor_without_a_value_for_none_does_not_make_another_run(tiny):
    tiny.data.inputs, tiny.data.nodata = ("s2", "s1"), (0.0, float("nan"))
    checks.check(tiny)
    saved = json.loads(tiny.to_json_best_effort())
    assert checks.differences(tiny, saved) == []
    tiny.data.nodata = (1.0, float("nan"))
    assert len(checks.differences(tiny, saved)) == 1


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
