import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from elev_ssl_jax import sensor_scale
from elev_ssl_jax.checks import check
from elev_ssl_jax.config import default
from elev_ssl_jax.fields import without_effect
from elev_ssl_jax.finetuning import experiment, labelled, methods
from elev_ssl_jax.recipes import recipe

SHAPES = {"s1": (8, 8, 2), "s2": (8, 8, 13), "image": (8, 8, 3)}
CHIP = {name: np.zeros((1, *shape)) for name, shape in SHAPES.items()}
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_and_its_demo_are_valid(path):
    get_config = load(path)
    for config in (get_config(), get_config("demo")):
        check(config)
        assert without_effect(config) == []
        if config.task == "experiment":
            config.data.update(sensor_scale.measure(config, CHIP))
            members = [m for name in config.experiment.methods for m in methods.members_of(name)]
            for member in members:
                settings = methods.config_of(config, member, SHAPES)
                check(methods.finetune_config(settings))
                if recipe(member).pretrained:
                    check(methods.pretrain_config(settings))
    with pytest.raises(ValueError, match="nope") as refused:
        get_config("nope")
    for shown in re.findall(r"\.py:([a-z_]+)", path.read_text()):
        assert f":{shown}" in str(refused.value)


def fake_labels(config, count):
    """As many labelled chips as there are, of all classes, in no memory."""
    side = config.augment.crop_size = min(config.augment.crop_size, 64) or 32
    rng = np.random.default_rng(0)
    names = [name for name in config.data.inputs if name != "elevation"]
    bands = {"s1": 2, "s2": 13, "image": 3}
    inputs = {n: rng.uniform(-25, 9000, (1, side, side, bands[n])) for n in names}
    inputs = {n: np.broadcast_to(array, (count, *array.shape[1:])) for n, array in inputs.items()}
    classes = np.arange(count) % (8 if "s2" in names else 2)
    if labelled.target_of(config) != "label":
        classes = np.broadcast_to(classes[:, None, None], (count, side, side))
    return labelled.Labelled(inputs, classes.astype(np.uint8))


@pytest.mark.parametrize("variant", ["", "demo"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_can_learn_from_the_labels_that_its_data_have(path, variant):
    config = load(path)(variant)
    if config.task == "pretrain":
        return
    two = "s2" in config.data.inputs
    chips = config.data.synthetic.chips // 10 or (986 if two else 3000)
    train = fake_labels(config, chips)
    config.data.update(sensor_scale.measure(config, train.inputs))
    config = labelled.with_classes(config, train, train)
    if config.task == "finetune":
        labelled.check_chips(config, train, train)
    else:
        config = methods.with_counts(config, chips)
        experiment._check_labels(config, train, train)


def test_relief_is_the_demos_and_the_papers_settings_stay():
    def settings(name, variant=""):
        config = load(next(path for path in CONFIGS if path.stem == name))(variant)
        its = config if config.task == "pretrain" else config.experiment.pretrain
        loss, model = config.loss, config.model
        return its.optimizer.learning_rate, loss.relief_weight, model.elevation_padding

    for name in ("simclr_elev", "table1"):
        assert settings(name) == (1e-3, 1.0, "zeros")
        assert settings(name, "demo") == (3e-3, 20.0, "edge")
    assert settings("simclr", "demo") == (3e-3, 1.0, "zeros")  # it has no elevation
    assert settings("dual_swin", "demo")[0] == settings("swin_table", "demo")[0] == 5e-4
    assert settings("dual_simclr", "demo")[0] == 1e-3
    # LARS has other rates.
    assert settings("large_batch", "demo")[0] == settings("large_batch")[0] == 0.3


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_variant_sets_only_what_its_task_uses(path):
    config, plain = load(path)("demo"), default()
    if config.task != "experiment":
        assert config.experiment.to_dict() == plain.experiment.to_dict()
    else:
        assert config.data.split == plain.data.split
        demos, whole = {"fusion_table": (5, 3), "study": (2, 5)}.get(path.stem, (1, 3))
        assert config.experiment.pretrain_seeds == demos
        assert load(path)().experiment.pretrain_seeds == whole


@pytest.mark.parametrize("variant", ["multi", "multi_demo", "pixels", "pixels_demo"])
def test_variants_of_two_sensors_are_valid(variant):
    names = {"multi": ("fusion_table", "finetune_two_sensors")}
    names["pixels"] = ("swin_table", "finetune_two_sensors")
    for name in names[variant.removesuffix("_demo")]:
        config = load(next(path for path in CONFIGS if path.stem == name))(variant)
        check(config)
        assert without_effect(config) == []
        assert (config.data.synthetic.chips > 0) == variant.endswith("demo")
        assert config.finetune.target == ("present" if "multi" in variant else "mask")
