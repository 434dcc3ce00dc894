import json
import re

import pytest

from elev_ssl_jax import checks, fields
from elev_ssl_jax.config import (
    comparison,
    default,
    fine_tuning,
    fusion,
    two_sensor_fine_tuning,
    two_sensors,
)

LOCAL = "objective.local.patches"


def ignored(config):
    """The fields that have no effect, by the reason."""
    checks.check(config)
    lines = fields.without_effect(config)
    assert all(line.startswith("no effect, since ") for line in lines)
    reasons = [line.split(": ")[0].removeprefix("no effect, since ") for line in lines]
    assert len(set(reasons)) == len(reasons)
    named = [set(re.findall(r"config\.([\w.]+)=", line)) for line in lines]
    return dict(zip(reasons, named, strict=True))


def names(config):
    return set().union(*ignored(config).values())


@pytest.mark.parametrize(
    ("alpha", "lam", "unused"),
    [
        (0.0, 1.0, {"loss.relief_weight", LOCAL}),
        (1.0, 1.0, {"objective.temperature", "objective.negatives", "model.projection", LOCAL}),
        (
            *(1.0, 0.3),
            {"objective.lam", "objective.temperature", "objective.negatives", "model.projection"}
            | {LOCAL},
        ),
        (0.5, 0.0, {"model.projection"}),
        (0.5, 0.5, set()),
    ],
)
def test_what_a_method_does_not_use_is_said(alpha, lam, unused):
    config = default()
    config.objective.alpha, config.objective.lam = alpha, lam
    config.loss.relief_weight = 20.0
    config.objective.temperature, config.objective.negatives = 0.1, "across"
    config.model.projection = (64, 64)
    config.objective.local.patches = 2
    assert names(config) == unused


def test_fields_without_effect_share_a_line_by_their_reason():
    config = default()
    config.objective.alpha, config.loss.relief_weight = 0.0, 20.0
    config.model.elevation_padding = "edge"
    assert fields.without_effect(config) == [
        "no effect, since elevation has no weight: config.loss.relief_weight=20.0, "
        "config.model.elevation_padding='edge'"
    ]


def test_what_is_said_of_classes_and_quantities_that_are_not_learned_is_named():
    config = fine_tuning("regression")
    config.finetune.quantity, config.finetune.classes = ("NDVI", "1"), ("a", "b")
    assert ignored(config) == {
        "no quantity is learned": {"finetune.quantity"},
        "no classes are learned": {"finetune.classes"},
    }
    config.finetune.target, config.finetune.classes = "quantity", ()
    assert ignored(config) == {}
    config = fine_tuning("unet")
    config.finetune.quantity = ("NDVI", "1")
    assert ignored(config) == {"no quantity is learned": {"finetune.quantity"}}


def test_two_sensors_have_no_augmented_views_and_maps_no_head():
    config = two_sensors()
    assert ignored(config) == {}
    config.augment.contrastive.hue = config.augment.elevation.hue = 0.1
    views = {"augment.contrastive.hue"}
    assert ignored(config) == {
        "the views are what two sensors see": views,
        "elevation has no weight": {"augment.elevation.hue"},
    }
    config.objective.alpha = 0.5
    assert names(config) == views | {"augment.elevation.hue"}
    config.augment.update(default().augment)
    config.augment.crop_size = 128
    config.model.projection = (64, 64)
    assert ignored(config) == {}
    config.objective.global_features = "map"
    assert ignored(config) == {"maps have no head": {"model.projection"}}


def test_what_no_method_of_an_experiment_uses_is_said():
    config = comparison("linear")
    config.loss.relief_weight = 20.0
    config.finetune.frozen_batchnorm = "training"
    assert names(config) == set()
    config.experiment.methods = ("random", "simclr")
    config.finetune.frozen_epochs = 0
    assert names(config) == {"loss.relief_weight", "finetune.frozen_batchnorm"}
    config.experiment.pretrain.epochs = 7
    assert len(names(config)) == 2
    config.experiment.methods = ("random",)
    assert ignored(config)["nothing is pre-trained"] == {"experiment.pretrain.epochs"}


def test_validation_chips_of_probes_have_an_effect_without_a_pre_training():
    config = comparison("linear")
    config.experiment.methods, config.data.validation_split = ("random",), "labeled[90:]"
    (said,) = fields.without_effect(config)
    assert said == "no effect, since nothing is probed: config.data.validation_split='labeled[90:]'"
    config.experiment.tasks = ("linear", "knn")
    assert fields.without_effect(config) == []


def test_what_every_method_of_an_experiment_says_itself_is_said():
    config = fusion("commonest", ("late_fusion", "mma", "dual_simclr"))
    config.model.fusion, config.model.encoder = "late", "resnet34"
    config.augment.contrastive.hue, config.objective.negatives = 0.1, "across"
    assert ignored(config) == {
        "each method has its own": {"model.fusion"},
        "the views are what two sensors see": {"augment.contrastive.hue"},
    }
    config.experiment.methods = ("late_swin", "mma")
    config.model.projection = (64, 64)
    assert ignored(config) == {
        "each method has its own": {
            *("model.fusion", "model.encoder", "objective.negatives", "objective.temperature")
        },
        "the views are what two sensors see": {"augment.contrastive.hue"},
        "maps have no head": {"model.projection"},
    }
    config.experiment.methods = ("early_fusion", "simclr_rgb")
    config.model.fusion, config.model.encoder = "early", "resnet18"
    assert ignored(config) == {}


def test_a_drop_after_the_end_and_a_share_that_nothing_asks_for_are_said():
    config = two_sensor_fine_tuning("commonest")
    assert ignored(config) == {}
    config.epochs, config.finetune.present_share = 100, 0.2
    assert ignored(config) == {
        "there are 100 epochs": {"optimizer.drop_epoch"},
        "finetune.target is not present": {"finetune.present_share"},
    }
    config.epochs, config.finetune.frozen_epochs = 0, 120
    config.finetune.target = "present"
    assert ignored(config) == {}
    config = comparison("linear")
    config.experiment.pretrain.optimizer.schedule = "constant"
    config.experiment.pretrain.optimizer.drop_epoch = 300
    assert names(config) == {"experiment.pretrain.optimizer.drop_epoch"}


@pytest.mark.parametrize("task", fields.TASKS)
def test_every_field_belongs_to_a_task_and_every_entry_is_a_field(task):
    known = fields.flatten(default())
    for entry in fields.TASKS[task]:
        assert any(fields.belongs(field, (entry,)) for field in known), entry
    used = [entry for entries in fields.TASKS.values() for entry in entries]
    assert all(fields.belongs(field, used) for field in known)


def test_cells_of_an_experiment_have_one_protocol(tiny):
    tiny.task = "experiment"
    saved = json.loads(tiny.to_json_best_effort())
    tiny.epochs += 1
    assert fields.differences(tiny, saved) == ["epochs was 2 and is 3"]


def test_differences_name_what_makes_another_run(tiny):
    saved = json.loads(tiny.to_json_best_effort())
    assert fields.differences(tiny, saved) == []
    tiny.epochs = 7
    tiny.data.dir = "elsewhere"
    tiny.log.every_steps = 3
    assert fields.differences(tiny, saved) == []
    tiny.objective.alpha = 0.25
    assert fields.differences(tiny, saved) == ["objective.alpha was 0.5 and is 0.25"]


def test_an_experiment_may_be_widened(tiny):
    saved = json.loads(tiny.to_json_best_effort())
    tiny.experiment.pretrain_seeds, tiny.experiment.metrics = 5, ("mean_iou",)
    assert fields.differences(tiny, saved) == []
    tiny.experiment.label_draws = 1  # the first labels are another experiment
    assert fields.differences(tiny, saved) == ["experiment.label_draws was 0 and is 1"]


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
        assert len(fields.differences(tiny, saved, data_known=False)) == before
        assert len(fields.differences(tiny, saved)) == then


def test_a_sensor_without_a_value_for_none_does_not_make_another_run(tiny):
    tiny.data.inputs, tiny.data.nodata = ("s2", "s1"), (0.0, float("nan"))
    checks.check(tiny)
    saved = json.loads(tiny.to_json_best_effort())
    assert fields.differences(tiny, saved) == []
    tiny.data.nodata = (1.0, float("nan"))
    assert len(fields.differences(tiny, saved)) == 1
