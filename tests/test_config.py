import importlib.util
import json
from pathlib import Path

import pytest

from elev_ssl_jax import config as config_lib
from elev_ssl_jax.errors import InputError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_and_its_demo_are_valid(path):
    get_config = load(path)
    config_lib.check(get_config())
    config_lib.check(get_config("demo"))
    with pytest.raises(ValueError, match="nope"):
        get_config("nope")


def test_relief_is_the_demos_and_the_papers_settings_stay():
    def settings(name, variant=""):
        config = load(next(path for path in CONFIGS if path.stem == name))(variant)
        its = config if config.task == "pretrain" else config.experiment.pretrain
        loss, model = config.loss, config.model
        return its.optimizer.learning_rate, loss.relief_weight, model.elevation_padding

    for name in ("simclr", "simclr_elev", "table1"):
        assert settings(name) == (1e-3, 1.0, "zeros")
        assert settings(name, "demo") == (3e-3, 20.0, "edge")
    # LARS has other rates.
    assert settings("large_batch", "demo")[0] == settings("large_batch")[0] == 0.3


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
        ("checkpoint.keep", 0),
    ],
)
def test_impossible_values_are_named(tiny, field, value):
    tiny.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=f"config.{field} is"):
        config_lib.check(tiny)


def test_images_of_a_known_size_are_checked_too(tiny):
    tiny.objective.lam = 0.5
    tiny.data.synthetic.chips, tiny.data.synthetic.size = 100, 12
    with pytest.raises(InputError, match=r"config.objective.local.patch_size is 16"):
        config_lib.check(tiny)


def test_unknown_fields_are_refused(tiny):
    with pytest.raises(AttributeError, match="alpha"):
        tiny.objective.alhpa = 0.5
    with tiny.unlocked():
        tiny.objective.alhpa = 0.5
    with pytest.raises(InputError, match=r"config.objective.alhpa is unknown"):
        config_lib.check(tiny)


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
    config = config_lib.default()
    config.task = task
    config_lib.check(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=f"config.{field} is .*the task {task} doesn't use"):
        config_lib.check(config)


@pytest.mark.parametrize("task", config_lib.TASKS)
def test_every_field_belongs_to_a_task_and_every_entry_is_a_field(task):
    fields = config_lib._flat(config_lib.default())
    for entry in config_lib.TASKS[task]:
        assert any(config_lib._belongs(field, (entry,)) for field in fields), entry
    used = [entry for entries in config_lib.TASKS.values() for entry in entries]
    assert all(config_lib._belongs(field, used) for field in fields)


@pytest.mark.parametrize("bounds", [(float("nan"), 1.0), (0.0, float("nan")), (0.0, float("inf"))])
def test_ranges_are_finite(tiny, bounds):
    tiny.data.value_range = bounds
    with pytest.raises(InputError, match=r"config.data.value_range is"):
        config_lib.check(tiny)


def test_the_size_of_synthetic_chips_needs_synthetic_chips(tiny):
    tiny.data.synthetic.size = 32
    with pytest.raises(InputError, match=r"config.data.synthetic.size"):
        config_lib.check(tiny)


def test_cells_of_an_experiment_have_one_protocol(tiny):
    tiny.task = "experiment"
    saved = json.loads(tiny.to_json_best_effort())
    tiny.epochs += 1
    assert config_lib.differences(tiny, saved) == ["epochs was 2 and is 3"]


def test_differences_name_what_makes_another_run(tiny):
    saved = json.loads(tiny.to_json_best_effort())
    assert config_lib.differences(tiny, saved) == []
    tiny.epochs = 7
    tiny.data.dir = "elsewhere"
    tiny.log.every_steps = 3
    assert config_lib.differences(tiny, saved) == []
    tiny.objective.alpha = 0.25
    assert config_lib.differences(tiny, saved) == ["objective.alpha was 0.5 and is 0.25"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_variant_sets_only_what_its_task_uses(path):
    config, plain = load(path)("demo"), config_lib.default()
    if config.task != "experiment":
        assert config.experiment.to_dict() == plain.experiment.to_dict()
    else:
        assert config.data.split == plain.data.split
        assert config.experiment.pretrain_seeds == 1
        assert load(path)().experiment.pretrain_seeds == 3


def test_an_experiment_may_be_widened(tiny):
    saved = json.loads(tiny.to_json_best_effort())
    tiny.experiment.pretrain_seeds = 5
    assert config_lib.differences(tiny, saved) == []
    tiny.experiment.label_draws = 1  # the first labels are another experiment
    assert config_lib.differences(tiny, saved) == ["experiment.label_draws was 0 and is 1"]
