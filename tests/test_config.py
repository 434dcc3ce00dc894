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
    settings = "optimizer.learning_rate", "loss.relief_weight", "model.elevation_padding"
    for name, demo in (("simclr_elev", (3e-3, 20.0, "edge")), ("simclr", (1e-3, 1.0, "zeros"))):
        get_config = load(next(path for path in CONFIGS if path.stem == name))
        for config, values in ((get_config(), (1e-3, 1.0, "zeros")), (get_config("demo"), demo)):
            assert tuple(config_lib.config_value(config, s) for s in settings) == values


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
        ("data.value_range", (10.0, 10.0)),
        ("data.elevation_scale", 0.0),
        ("data.rgb", (0, 1)),
        ("augment.contrastive.crop_scale", (0.0, 1.0)),
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


def test_differences_name_what_makes_another_run(tiny):
    saved = json.loads(tiny.to_json_best_effort())
    assert config_lib.differences(tiny, saved) == []
    tiny.epochs = 7
    tiny.data.dir = "elsewhere"
    tiny.log.every_steps = 3
    assert config_lib.differences(tiny, saved) == []
    tiny.objective.alpha = 0.25
    assert config_lib.differences(tiny, saved) == ["objective.alpha was 0.5 and is 0.25"]
